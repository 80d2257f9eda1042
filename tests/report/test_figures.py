"""Which pictures are drawn, and in which colours."""

import pandas as pd
from report_helpers import NORMS

from normstudy.plots import norm_colour


def test_a_norm_has_its_colour_in_every_picture(made):
    for name in ("ranking", "measures_test_accuracy", "measures_gap"):
        assert (made / "figures" / f"{name}.png").exists()
        content = (made / "figures" / f"{name}.svg").read_text(encoding="utf-8")
        assert [norm for norm in NORMS if norm_colour(norm) not in content] == [], name


def test_real_runs_are_looked_into(real):
    figures = {path.stem for path in (real / "figures").glob("*.png")}
    assert {"densities", "depth_first", "depth_last", "iterations", "weights", "ranking", "correlations"} <= figures
    assert {"groupings", "groupings_first", "groupings_last"} <= figures
    correlations = pd.read_csv(real / "tables" / "correlations.csv")
    assert {"stable_rank first", "grad_norm last", "class_similarity_pooled"} <= set(correlations["measure"])
    constant = ["class_similarity_centred", "nc2_equiangularity"]  # two classes have only one pair
    pooled = correlations[correlations["way"] == "pooled over settings"]
    assert (pooled.loc[~pooled["measure"].isin(constant), "n_settings"] == 5).all()
    assert correlations.loc[correlations["way"] == "between norms", "value"].isna().all()  # of four norms

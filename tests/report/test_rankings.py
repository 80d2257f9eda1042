"""Rankings of norms: differences between cells, failed runs, and the coverage of the intervals."""

import numpy as np
import pytest
from report_helpers import random_runs

from normstudy.report import rankings

pytestmark = pytest.mark.filterwarnings("error")


def test_the_ranking_takes_out_what_the_cells_differ_in():
    """A norm gains nothing by being tried only in cells with high accuracy."""
    runs = random_runs(
        9, **{"Model": ["VGG"] * 6 + ["ResNet-56"] * 3, "Batch Size": ["16"] * 9, "Mom & WD": ["True"] * 9}
    )
    runs["Norm"] = ["BatchNorm", "BatchNorm", "Plain", "Plain", "LayerNorm", "LayerNorm", "BatchNorm", "Plain", "Plain"]
    runs["Test Accuracy"] = [90.0, 90, 88, 88, 86, 86, 42, 40, 40]
    ranks = rankings.rank_norms(runs, resamples=200)
    assert ranks["Norm"].tolist() == ["BatchNorm", "Plain", "LayerNorm"]
    assert ranks["advantage"].tolist() == pytest.approx([(2 + 2 + 1) / 3, (0 + 0 - 1 - 1) / 4, -2])
    assert ranks["n"].tolist() == [3, 4, 2]
    assert ranks["rank_low"].tolist() == [1, 2, 3]


def test_each_network_has_a_ranking_of_its_own():
    """BatchNorm is better than EvoNormBO in every common cell, but its other cells have stronger comparison norms."""
    rows = [("vgg", "BatchNorm", 77), ("vgg", "EvoNormBO", 75), ("vgg", "Plain", 10)]
    rows += [("vit", "BatchNorm", 38), ("vit", "LayerNorm", 40), ("vit", "RMSNorm", 39)]
    runs = random_runs(6, Model=[row[0] for row in rows], Norm=[row[1] for row in rows]).assign(
        **{"Batch Size": 16, "Mom & WD": True, "Test Accuracy": [float(row[2]) for row in rows]}
    )
    found = rankings.rank_norms_by_network(runs, resamples=50)
    assert {network: ranks["Norm"].tolist() for network, ranks in found.items()} == {
        "vgg": ["BatchNorm", "EvoNormBO", "Plain"],
        "vit": ["LayerNorm", "RMSNorm", "BatchNorm"],
    }


def test_intervals_of_two_norms_mirror_each_other():
    runs = random_runs(
        12, **{"Model": ["VGG"] * 6 + ["ResNet-56"] * 6, "Batch Size": ["16"] * 12, "Mom & WD": ["True"] * 12}
    )
    runs["Norm"] = ["BatchNorm", "Plain"] * 6
    first, second = rankings.rank_norms(runs, resamples=500).to_dict("records")
    assert first["advantage"] == -second["advantage"] > 0
    assert (first["low"], first["high"]) == (pytest.approx(-second["high"]), pytest.approx(-second["low"]))
    assert first["low"] < first["advantage"] < first["high"]


def test_the_interval_of_norms_covers_the_truth_about_as_often_as_it_says():
    """Two norms differ by 4 points in 20 cells with two runs each: in 100 tables, the 95 % intervals cover ± 2."""
    generator, held = np.random.default_rng(0), 0
    runs = random_runs(
        80, **{"Model": ["VGG"] * 80, "Batch Size": np.repeat(np.arange(20), 4), "Mom & WD": ["True"] * 80}
    )
    runs["Norm"] = ["BatchNorm", "BatchNorm", "Plain", "Plain"] * 20
    for _ in range(100):
        effects = 4 + generator.normal(size=20).repeat(4)
        noise = generator.normal(size=80) + 10 * generator.normal(size=20).repeat(4)
        runs["Test Accuracy"] = 50 + noise + effects * (runs["Norm"] == "BatchNorm")
        row = rankings.rank_norms(runs, resamples=200).iloc[0]
        held += row["low"] <= 2 <= row["high"]
    assert held >= 88


def test_a_norm_that_stands_alone_in_its_cells_is_compared_with_nothing():
    runs = random_runs(4, **{"Norm": ["BatchNorm", "Plain", "RMSNorm", "RMSNorm"], "Mom & WD": ["True"] * 4})
    runs = runs.assign(Model="vgg", **{"Batch Size": [16, 16, 64, 64]})
    assert set(rankings.rank_norms(runs, resamples=50)["Norm"]) == {"BatchNorm", "Plain"}


def test_a_cell_is_equal_in_all_hyperparameters():
    runs = random_runs(4, Norm=["Plain"] * 4).assign(
        epochs=[1, 1, 60, 60], Model="vgg", **{"Batch Size": 16, "Mom & WD": True}
    )
    assert rankings.summarize_cells(runs)[["epochs", "n"]].to_numpy().tolist() == [["1", 2], ["60", 2]]


def test_failed_runs_are_counted_and_not_averaged():
    runs = random_runs(6, **{"Success": ["False"] + ["True"] * 5, "Norm": ["Plain"] * 6, "P Grouping": ["32"] * 6})
    [row] = rankings.rank_norms(runs, resamples=50).itertuples()
    assert (row.n, row.failed) == (5, 1)
    assert rankings.summarize_cells(runs)["failed"].sum() == 1
    assert rankings.summarize_cells(runs)["n"].sum() == 6


def test_one_run_has_no_interval():
    runs = random_runs(3, Norm=["Plain", "Plain", "BatchNorm"]).assign(
        Model="vgg", **{"Batch Size": 16, "Mom & WD": True}
    )
    runs["Test Accuracy"] = [80.0, 82, 90]
    ranks = rankings.rank_norms(runs, resamples=50)
    assert ranks["n"].tolist() == [1, 2]
    assert ranks[["low", "high", "rank_low", "rank_high"]].isna().all(axis=1).tolist() == [True, False]


def test_a_table_of_failures_has_an_empty_ranking():
    runs = random_runs(3, Success=["False"] * 3)
    assert rankings.rank_norms(runs).empty

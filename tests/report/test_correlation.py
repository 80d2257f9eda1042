"""The frame of associations: which runs and points enter, families, and Holm's adjustment."""

import numpy as np
import pandas as pd
import pytest
from report_helpers import random_runs, runs_of
from scipy import stats

from normstudy.report import correlation, primary, tables

pytestmark = pytest.mark.filterwarnings("error")
NORMS = ["BatchNorm", "LayerNorm", "RMSNorm", "Plain", "VarianceNorm", "EvoNormSO"]


def study(seeds=1, slope=1.0, **columns):
    """Runs of six norms whose class similarity and accuracy grow from norm to norm."""
    generator = np.random.default_rng(0)
    rows = []
    for place, norm in enumerate(NORMS):
        for seed in range(seeds):
            row = {"Norm": norm, "seed": seed, "Class Similarity": place + generator.normal(0, 0.1)}
            row |= {"Test Accuracy": 50 + slope * place + generator.normal(0, 0.1), "Trace": generator.normal()}
            rows.append(row | columns)
    return rows


def correlate(table, measures=("Class Similarity",)):
    return correlation.correlate_measures(table, measures, resamples=50)


def row_of(frame, way, measure="Class Similarity", outcome="Test Accuracy"):
    [row] = correlation.select(frame, measure, outcome, way).to_dict("records")
    return row


def test_the_frame_has_the_columns_and_families_of_the_documentation():
    frame = correlate(runs_of(study(3)), ["Class Similarity", "Trace"])
    assert ",".join(frame) == (
        "measure,outcome,way,coefficient,value,low,high,n_settings,n_norms,n_cells,p,p_holm,family"
    )
    between = row_of(frame, "between norms")
    assert (between["family"], between["n_norms"], between["value"]) == ("primary", 6, pytest.approx(1))
    assert row_of(frame, "within norms over seeds")["family"] == "within norms"
    exploratory = frame[(frame["measure"] == "Trace") | (frame["outcome"] != "Test Accuracy")]
    assert set(exploratory["family"]) == {"exploratory"}
    pooled = row_of(frame, "pooled over settings")
    settings = tables.average_over_seeds(runs_of(study(3)))
    assert pooled["value"] == stats.spearmanr(settings["Class Similarity"], settings["Test Accuracy"]).statistic
    assert np.isnan(pooled["p"])


def test_holm_is_over_the_primary_family_alone():
    table = runs_of(study()).assign(margin_10=np.arange(6.0), nc1=[1.0, 0, 2, 1, 0, 2])
    frame = correlate(table, ["Class Similarity", "margin_10", "nc1", "Trace", "l2_norm"])
    family = frame[frame["family"] == "primary"]
    assert family["p"].notna().sum() == 3
    np.testing.assert_allclose(family["p_holm"], correlation.holm_adjusted(family["p"].to_numpy()))


def test_more_seeds_of_the_same_norms_make_no_association_surer():
    runs = runs_of(study()).drop(columns="seed")
    frames = [correlate(each.assign(seed=np.nan)) for each in (runs, pd.concat([runs] * 4, ignore_index=True))]
    first, second = (row_of(frame, "between norms") for frame in frames)
    assert first == second


def test_between_and_within_can_have_opposite_signs():
    rows = []
    for place, norm in enumerate(NORMS):
        for seed in range(4):
            rows.append(
                {"Norm": norm, "seed": seed, "Class Similarity": 10 * place - seed, "Test Accuracy": 9 * place + seed}
            )
    frame = correlate(runs_of(rows))
    assert row_of(frame, "between norms")["value"] == pytest.approx(1)
    assert row_of(frame, "within norms over seeds")["value"] == pytest.approx(-1)
    assert row_of(frame, "within norms over seeds")["p"] < 0.05


def test_rates_of_a_norm_are_settings_within_it_and_cells_between_norms():
    rows = [
        {"Norm": norm, "init_lr": rate, "Class Similarity": rate + place, "Test Accuracy": 50 - rate + place}
        for place, norm in enumerate(NORMS)
        for rate in (0.5, 1, 2)
    ]
    frame = correlate(runs_of(rows))
    assert row_of(frame, "between norms")["n_cells"] == 3
    within = row_of(frame, "within norms over settings")
    assert within["value"] == pytest.approx(-1)
    assert np.isnan(within["p"])  # a rate is the same one for all norms


def test_values_of_other_samples_or_precision_are_in_other_cells():
    rows = study()
    for place, row in enumerate(rows):
        row["class_similarity_samples"] = 100 if place < 5 else 4096
        row["class_similarity_dtype"] = "float32"
    frame = correlate(runs_of(rows))
    assert row_of(frame, "between norms")["n_norms"] == 5
    rows[0]["class_similarity_dtype"] = "float64"
    assert np.isnan(row_of(correlate(runs_of(rows)), "between norms")["value"])


def test_runs_that_failed_or_did_not_reach_the_loss_are_left_out_and_named():
    rows = study(2, stop_at_loss="0.1", reached_loss="True")
    rows[0] |= {"reached_loss": "False", "Test Accuracy": 99}
    rows[3] |= {"Success": "False"}
    table = runs_of(rows)
    included = primary.included_runs(table)
    assert included.reasons == {
        "failed": ["vgg LayerNorm"],
        "did not reach the training loss": ["vgg BatchNorm"],
        "had one learning rate where others were tuned": [],
    }
    assert included.loss == "0.1"
    assert len(included.runs) == 10
    assert row_of(correlate(table), "between norms")["value"] == pytest.approx(1)


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, np.nan, 0.9], [1.0, np.nan, 1.0]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm(p, adjusted):
    np.testing.assert_allclose(correlation.holm_adjusted(np.array(p)), adjusted)


def test_holm_rejects_too_much_no_more_often_than_it_says():
    """With 20 true hypotheses at 5 %, at least one is rejected in 5 % of 2,000 families, ± 3 standard errors."""
    p = np.random.default_rng(0).uniform(size=(2000, 20))
    rejected = np.mean([correlation.holm_adjusted(family).min() < 0.05 for family in p])
    assert rejected == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("case", ["few", "constant", "missing", "failed", "none"])
def test_no_correlation_where_there_is_nothing_to_correlate(case):
    runs = random_runs(30)
    if case == "few":
        runs = runs.iloc[:2]
    if case == "constant":
        runs["Class Similarity"] = 1.0
    if case == "missing":
        runs["Class Similarity"] = np.nan
    if case == "failed":
        runs["has_failed"] = True
    if case == "none":
        runs = runs.iloc[:0]
    frame = correlate(runs)
    assert frame["value"].isna().all()
    assert frame["p_holm"].isna().all()

"""Coefficients of measures and outcomes, pooled and within cells, compared with scipy; Holm's adjustment."""

import numpy as np
import pandas as pd
import pytest
from report_helpers import random_runs
from scipy import stats

from normstudy.report import correlation, resampling, tables

pytestmark = pytest.mark.filterwarnings("error")
SCIPY = {"Pearson": stats.pearsonr, "Spearman": stats.spearmanr, "Kendall": stats.kendalltau}


def test_pooled_coefficients_are_scipys():
    runs = random_runs()
    frame = correlation.correlate_measures(runs, ["Class Similarity"], ["Test Accuracy"], resamples=200)
    for row in frame[frame["way"] == "pooled"].itertuples():
        value, p = SCIPY[row.coefficient](runs["Class Similarity"], runs["Test Accuracy"])[:2]
        assert (row.value, row.p, row.n) == (pytest.approx(value), pytest.approx(p), 60)
        assert row.low < row.value < row.high < 0


def test_within_cells_is_the_mean_over_cells_of_scipys():
    runs = random_runs(120)
    frame = correlation.correlate_measures(runs, ["Class Similarity"], ["Test Accuracy"], resamples=200)
    for name, function in SCIPY.items():
        total = weights = 0
        for _, cell in runs.groupby(["Model", "Batch Size", "Mom & WD"]):
            if len(cell) >= 5:
                total += len(cell) * function(cell["Class Similarity"], cell["Test Accuracy"])[0]
                weights += len(cell)
        [row] = frame[(frame["way"] == "within cells") & (frame["coefficient"] == name)].itertuples()
        assert (row.value, row.n) == (pytest.approx(total / weights), weights)


def test_kendalls_interval_is_left_empty_if_there_are_too_many_points(monkeypatch):
    monkeypatch.setattr(resampling, "MOST_PAIRWISE", 10)
    frame = correlation.correlate_measures(random_runs(120), ["Class Similarity"], ["Test Accuracy"], resamples=200)
    is_kendall = frame["coefficient"] == "Kendall"
    assert frame.loc[is_kendall, ["low", "high"]].isna().all(axis=None)
    assert np.isfinite(frame.loc[is_kendall, "value"]).all()
    assert np.isfinite(frame.loc[~is_kendall, ["low", "high"]]).all(axis=None)


def test_more_seeds_of_the_same_norms_make_no_correlation_surer():
    runs = random_runs(6, seed=3, Norm=["Plain", "BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "DynamicTanh"])
    runs = runs.assign(Model="vgg", **{"Batch Size": 256.0, "Mom & WD": True})
    frames = [
        correlation.correlate_measures(
            tables.average_over_seeds(table), ["Class Similarity"], ["Test Accuracy"], resamples=200
        )
        for table in (runs, pd.concat([runs] * 4, ignore_index=True))
    ]
    pd.testing.assert_frame_equal(*frames)
    assert frames[0]["n"].tolist() == [6] * 6


def test_within_cells_does_not_see_what_differs_between_cells():
    """Simpson's paradox: the outcome falls in each cell and rises over all runs."""
    x = np.tile(np.arange(10.0), 2) + np.repeat([0, 100], 10)
    runs = random_runs(
        20, **{"Model": ["VGG"] * 20, "Mom & WD": ["True"] * 20, "Batch Size": ["16"] * 10 + ["256"] * 10}
    )
    runs["Class Similarity"], runs["Test Accuracy"] = x, -np.tile(np.arange(10.0), 2) + np.repeat([0, 50], 10)
    frame = correlation.correlate_measures(runs, ["Class Similarity"], ["Test Accuracy"], resamples=200)
    spearman = frame[frame["coefficient"] == "Spearman"].set_index("way")["value"]
    assert spearman["pooled"] > 0.5
    assert spearman["within cells"] == pytest.approx(-1)


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
        runs = runs.iloc[:4]
    if case == "constant":
        runs["Class Similarity"] = 1.0
    if case == "missing":
        runs["Class Similarity"] = np.nan
    if case == "failed":
        runs["has_failed"] = True
    if case == "none":
        runs = runs.iloc[:0]
    frame = correlation.correlate_measures(runs, ["Class Similarity"], ["Test Accuracy"], resamples=50)
    assert frame["value"].isna().all()
    assert frame["p_holm"].isna().all()

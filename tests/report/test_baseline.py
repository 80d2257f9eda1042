"""Paired differences to a baseline norm, against scipy's paired t-test and power by simulation."""

import math

import numpy as np
import pytest
from report_helpers import runs_of
from scipy import stats

from normstudy.report import baseline

pytestmark = pytest.mark.filterwarnings("error")


def runs(accuracies, **columns):
    """Runs of norms, {norm: accuracy of each seed}."""
    return [
        {"Norm": norm, "seed": seed, "Test Accuracy": value} | columns
        for norm, values in accuracies.items()
        for seed, value in enumerate(values)
    ]


def test_a_difference_is_that_of_the_paired_t_test():
    ours, theirs = [80.0, 82, 79, 85], [78.0, 79, 78, 80]
    table = runs_of(runs({"LayerNorm": ours, "BatchNorm": theirs}))
    [row] = baseline.differences_to(table).to_dict("records")
    test = stats.ttest_rel(ours, theirs)
    interval = test.confidence_interval()
    assert row["difference"] == pytest.approx(2.75)
    assert (row["low"], row["high"]) == (pytest.approx(interval.low), pytest.approx(interval.high))
    assert (row["norm"], row["baseline"], row["n"], row["at"]) == ("LayerNorm", "BatchNorm", 4, "equal settings")


def test_seeds_of_different_cells_are_not_paired_and_cells_have_their_own_means():
    rows = runs({"LayerNorm": [80.0, 82], "BatchNorm": [70.0, 71]})
    rows += runs({"LayerNorm": [50.0, 53], "BatchNorm": [49.0, 50]}, **{"Batch Size": 16})
    [row] = baseline.differences_to(runs_of(rows)).to_dict("records")
    assert row["difference"] == pytest.approx((10.5 + 2) / 2)
    spread = math.sqrt((2 * 0.5**2 + 2 * 1**2) / 2)
    half = stats.t.ppf(0.975, 2) * spread * math.sqrt(1 / 2 + 1 / 2) / 2
    assert row["high"] - row["difference"] == pytest.approx(half)


def test_two_runs_that_happen_to_agree_are_no_certainty():
    table = runs_of(runs({"LayerNorm": [70.5, 73.5], "BatchNorm": [70.0, 73.0]}))
    [row] = baseline.differences_to(table).to_dict("records")
    assert row["difference"] == 0.5
    assert math.isnan(row["low"])
    assert row["verdict"] == "unknown: no spread between seeds"
    assert math.isnan(row["seeds_needed"])


def test_another_baseline_and_none_at_all():
    table = runs_of(runs({"LayerNorm": [80.0, 82], "RMSNorm": [70.0, 71]}))
    assert baseline.differences_to(table, "RMSNorm")["norm"].tolist() == ["LayerNorm"]
    assert baseline.differences_to(table).empty


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (-3, 2, "within chance"),
        (-0.5, 0.8, "equivalent within ±1 point"),
        (0.2, 4, "better"),
        (-4, -0.1, "worse"),
        (0.1, 0.9, "better, by less than 1 point"),
        (math.nan, math.nan, "unknown: no spread between seeds"),
    ],
)
def test_verdicts_tell_no_difference_from_no_evidence(low, high, verdict):
    assert baseline.verdict_of(low, high) == verdict


@pytest.mark.parametrize("spread", [0.8, 2.0])
def test_the_seeds_needed_give_a_power_of_four_fifths(spread):
    n = int(baseline.seeds_needed(spread))
    draws = np.random.default_rng(0).normal(1, spread, (20_000, n))
    power = (stats.ttest_1samp(draws, 0, axis=1).pvalue < 0.05).mean()
    fewer = (stats.ttest_1samp(draws[:, :-1], 0, axis=1).pvalue < 0.05).mean()
    assert fewer < 0.8 + 0.01
    assert power > 0.8 - 0.01
    assert math.isnan(baseline.seeds_needed(math.nan))

"""Association between and within norms: against scipy and all permutations, and simulations with a known truth."""

import itertools

import numpy as np
import pandas as pd
import pytest
from report_simulations import between, comparison, norm_values, points, within
from scipy import stats

from normstudy.report import association

pytestmark = pytest.mark.filterwarnings("error")


def table(values, **columns):
    """Points of norms a, b, c … in cells, {cell: [(x, y) of each norm]}."""
    rows = [(f"norm {chr(97 + n)}", cell, "", x, y) for cell, pairs in values.items() for n, (x, y) in enumerate(pairs)]
    return pd.DataFrame(rows, columns=["norm", "cell", "entity", "x", "y"])


def test_the_coefficient_is_the_mean_of_scipys_over_cells():
    generator = np.random.default_rng(0)
    sizes = {"one": 7, "two": 5, "few": 4}
    values = {cell: generator.integers(0, 5, (size, 2)).astype(float).tolist() for cell, size in sizes.items()}
    found = association.between_norms(table(values), resamples=50, permutations=20)
    rho = {cell: stats.spearmanr(*np.transpose(pairs)).statistic for cell, pairs in values.items()}
    assert found.value == pytest.approx((7 * rho["one"] + 5 * rho["two"]) / 12)  # the cell of four norms is too small
    assert (found.n_settings, found.n_norms, found.n_cells) == (12, 7, 2)


def test_groupings_are_averaged_so_that_a_norm_counts_once():
    values = {"cell": [(1.0, 2.0), (2.0, 1.0), (3.0, 5.0), (4.0, 3.0), (5.0, 4.0)]}
    base = table(values)
    more = pd.concat([base, base.iloc[[0] * 20].assign(x=1.0, y=[1.0, 3.0] * 10)])
    first, second = (association.between_norms(each, resamples=50, permutations=50) for each in (base, more))
    assert (first.value, first.p, first.low) == (second.value, second.p, second.low)
    assert second.n_settings == 25


@pytest.mark.parametrize("missing", [False, True])
def test_p_is_the_share_of_joint_permutations_of_whole_norms(missing):
    generator = np.random.default_rng(1)
    x, y = generator.normal(size=(2, 3, 6))
    y += 0.5 * x
    if missing:
        x[1, 2] = y[1, 2] = np.nan  # a failed run
    study = points(np.stack([x, y], -1))
    found = association.between_norms(study, resamples=10, permutations=6000)

    def coefficient(x):
        total = weights = 0
        for a, b in zip(x, y, strict=True):
            there = np.isfinite(a) & np.isfinite(b)
            if there.sum() >= 5:
                total += there.sum() * stats.spearmanr(a[there], b[there]).statistic
                weights += there.sum()
        return total / weights

    every = [abs(coefficient(x[:, list(order)])) for order in itertools.permutations(range(6))]
    assert found.value == pytest.approx(coefficient(x))
    assert found.p == pytest.approx(np.mean(np.array(every) >= abs(coefficient(x)) - 1e-9), abs=0.02)


def test_within_norms_is_the_mean_over_norms_and_sees_no_difference_between_them():
    """Simpson's paradox: y falls within every norm and rises from norm to norm."""
    rows = [(f"n{n}", "cell", f"s{i}", n * 10 + i, n * 10 - i) for n in range(6) for i in range(4)]
    study = pd.DataFrame(rows, columns=["norm", "cell", "entity", "x", "y"]).astype({"x": float, "y": float})
    inside = association.within_norms(study, resamples=50, permutations=500)
    outside = association.between_norms(study, resamples=50, permutations=500)
    assert inside.value == pytest.approx(-1)
    assert outside.value == pytest.approx(1)
    assert inside.p < 0.01
    assert (inside.n_settings, inside.n_norms) == (24, 6)


def test_settings_of_a_norm_are_permuted_together_in_all_cells():
    """Five cells that repeat the same four settings are no more evidence than one cell."""
    rows = [("n", f"c{c}", f"s{s}", float(s), float(s)) for c in range(5) for s in range(4)]
    found = association.within_norms(pd.DataFrame(rows, columns=["norm", "cell", "entity", "x", "y"]), 50, 5000)
    assert found.value == pytest.approx(1)
    assert found.p == pytest.approx(2 / 24, abs=0.02)
    assert np.isnan(found.low)  # one norm is no sample of norms


def test_nothing_is_said_where_there_is_nothing_to_say():
    empty = table({})
    constant = table({"cell": [(1.0, float(y)) for y in range(6)]})
    few = table({"cell": [(1.0, 2.0), (2.0, 1.0)]})
    for study in (empty, constant, few):
        assert np.isnan(association.between_norms(study, 20, 20).value)
        assert np.isnan(association.within_norms(study, 20, 20).value)
        assert np.isnan(association.compare_between(study.assign(rival=study["x"]), 20).value)


# Simulations: about 3 standard errors are allowed


@pytest.mark.parametrize("groupings", [None, {0: 10}])
def test_false_positives_with_clustered_norms_and_unequal_groupings(groupings):
    found = between(9, 12, 0.0, 100, groupings)
    assert found.rejected <= 0.12
    assert found.coverage >= 0.9


@pytest.mark.parametrize(("norms", "cells", "correlation", "power"), [(9, 1, 0.9, 0.7), (9, 12, 0.6, 0.4)])
def test_intervals_cover_the_truth_and_an_effect_is_found(norms, cells, correlation, power):
    found = between(norms, cells, correlation, 80)
    assert found.coverage >= 0.9
    assert found.rejected >= power


def test_false_positives_and_power_within_norms():
    null, effect = within(8, 5, 0.0, 100), within(8, 5, 0.7, 60)
    assert null.rejected <= 0.12
    assert null.coverage >= 0.88
    assert effect.rejected >= 0.85


def test_the_difference_of_two_equally_strong_measures_covers_zero():
    assert comparison(9, 12, 80).coverage >= 0.88


def test_treating_settings_as_independent_would_reject_true_nulls_often():
    """The reason for all this: scipy's p over settings, where one norm has ten groupings with its values."""
    generator, rejected = np.random.default_rng(0), 0
    for seed in range(60):
        study = points(norm_values(generator, 9, 4, 0.0), {0: 10, 1: 10}, 0.1, seed)
        ranks = study.groupby("cell")[["x", "y"]].rank()
        rejected += stats.spearmanr(ranks["x"], ranks["y"]).pvalue < 0.05
    assert rejected > 20

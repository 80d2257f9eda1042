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

    def scores(values):
        """Centred ranks, 0 where missing; the products of two such rows add up to √points · ρ · √points."""
        there = np.isfinite(values)
        ranks = stats.rankdata(values[there]) - (there.sum() + 1) / 2
        row = np.zeros(len(values))
        row[there] = ranks / np.linalg.norm(ranks) * there.sum() ** 0.25
        return row

    ours, theirs = (np.array([scores(row) for row in each]) for each in (x, y))
    every = []
    for order in itertools.permutations(range(6)):
        shares = (ours[:, list(order)] * theirs).sum(0)  # of each norm
        every.append(abs(shares.sum()) / (np.sqrt((shares**2).sum()) if missing else 1))
    assert found.p == pytest.approx(np.mean(np.array(every) >= every[0] - 1e-9), abs=0.02)


@pytest.mark.parametrize("correlation", [0.0, 0.8])
def test_p_holds_and_finds_an_effect_where_cells_have_different_norms(correlation):
    """Six cells with a rotating five of ten norms."""
    generator, rejected = np.random.default_rng(0), 0
    for seed in range(60):
        values = norm_values(generator, 10, 6, correlation)
        for cell in range(6):
            values[cell, [norm for norm in range(10) if (norm - cell) % 10 >= 5]] = np.nan
        rejected += association.between_norms(points(values), 50, 299, seed).p < 0.05
    assert rejected <= 9 if correlation == 0 else rejected >= 25


def test_within_norms_is_the_mean_over_norms_and_sees_no_difference_between_them():
    """Simpson's paradox: y falls within every norm and rises from norm to norm."""
    rows = [(f"n{n}", "cell", f"s{i}", n * 10 + i, n * 10 - i) for n in range(6) for i in range(4)]
    study = pd.DataFrame(rows, columns=["norm", "cell", "entity", "x", "y"]).astype({"x": float, "y": float})
    inside = association.within_norms(study, False, 50, 500)
    outside = association.between_norms(study, resamples=50, permutations=500)
    assert inside.value == pytest.approx(-1)
    assert outside.value == pytest.approx(1)
    assert inside.p < 0.01
    assert (inside.n_settings, inside.n_norms) == (24, 6)


def test_settings_of_a_norm_are_permuted_together_in_all_cells():
    """Five cells that repeat the same four settings are no more evidence than one cell."""
    rows = [("n", f"c{c}", f"s{s}", float(s), float(s)) for c in range(5) for s in range(4)]
    found = association.within_norms(pd.DataFrame(rows, columns=["norm", "cell", "entity", "x", "y"]), False, 50, 5000)
    assert found.value == pytest.approx(1)
    assert found.p == pytest.approx(2 / 24, abs=0.02)
    assert np.isnan(found.low)  # one norm is no sample of norms


def test_seeds_of_several_cells_are_permuted_in_each_cell():
    rows = [(f"n{n}", f"c{c}", str(s), float(s), float(s)) for n in range(6) for c in range(3) for s in range(5)]
    study = pd.DataFrame(rows, columns=["norm", "cell", "entity", "x", "y"])
    found = association.within_norms(study, True, 50, 500)
    assert found.value == pytest.approx(1)
    assert found.p < 0.01
    assert found.low < found.value == found.high


def test_perfect_agreement_is_no_certainty():
    values = {f"cell {c}": [(float(n), float(n)) for n in range(5)] for c in range(6)}
    found = association.between_norms(table(values), 100, 100)
    assert found.low < 0.6
    assert found.high == found.value == pytest.approx(1)


def test_a_comparison_counts_only_the_norms_of_its_cells():
    generator = np.random.default_rng(0)
    five = table({"cell": generator.normal(size=(5, 2)).tolist()}).assign(rival=generator.normal(size=5))
    others = table({"small": generator.normal(size=(4, 2)).tolist()}).assign(rival=generator.normal(size=4))
    others["norm"] += " other"
    first, second = (association.compare_between(each, 200) for each in (five, pd.concat([five, others])))
    assert first == second


def test_a_comparison_whose_resamples_all_agree_has_no_interval():
    study = table({"cell": [(float(n), float(n)) for n in range(5)]})
    found = association.compare_between(study.assign(rival=study["x"]), 200)
    assert found.value == 0
    assert np.isnan(found.low)


def test_the_norms_that_keep_running_statistics_are_left_out_together():
    names = ["BatchNorm", "EvoNormBO", "LayerNorm", "RMSNorm", "Plain", "EvoNormSO", "InstanceNorm"]
    study = pd.DataFrame({"norm": names, "cell": "c", "x": [9.0, 8, 1, 2, 3, 4, 5], "y": [9.0, 8, 5, 4, 3, 2, 1]})
    found = association.without_each_norm(study)
    assert found[association.WITHOUT_RUNNING] == pytest.approx(-1)
    assert set(found) == {*names, association.WITHOUT_RUNNING}


def test_nothing_is_said_where_there_is_nothing_to_say():
    empty = table({})
    constant = table({"cell": [(1.0, float(y)) for y in range(6)]})
    few = table({"cell": [(1.0, 2.0), (2.0, 1.0)]})
    for study in (empty, constant, few):
        assert np.isnan(association.between_norms(study, 20, 20).value)
        assert np.isnan(association.within_norms(study, False, 20, 20).value)
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

"""Claims of papers on made-up runs in which they hold or do not hold, compared with scipy."""

import math

import numpy as np
import pytest
from report_helpers import runs_of, table_rows
from scipy import stats

from normstudy.report import published_claims
from normstudy.report.probe_statistics import ProbeStatistics

pytestmark = pytest.mark.filterwarnings("error")


def probed(rows, **statistics):
    """Return what read_probe_statistics gives for such runs; a statistic is a list of values by site for each run."""
    sites = {"activation": ["activation", "blocks.0.activation2", "blocks.1.activation1", "blocks.1.activation2"]}
    pairs = []
    for index, row in enumerate(runs_of(rows).to_dict("records")):
        values = {key: {"first": np.array(lists[index], dtype=float)} for key, lists in statistics.items()}
        pairs.append((row, ProbeStatistics(sites, np.array([0]), values)))
    return pairs


def said(rows, pairs):
    return published_claims.published_claims_html(published_claims.published_claims(runs_of(rows), pairs))


@pytest.mark.parametrize(("growth", "verdict"), [(1000.0, "agrees"), (0.001, "does not agree")])
def test_growth_of_activation_variance_is_between_outputs_of_blocks(growth, verdict):
    """Sites in branches and before the first block do not count.

    Neither do runs of Plain, which is neither kind of norm, runs with SkipInit, which silences the branches, and
    pre-activation runs, which normalize before the sums.
    """
    norms = ["WeightNorm", "ScaledWeightStandardization"] * 2 + ["BatchNorm", "LayerNorm"] * 2 + ["Plain"]
    variances = [[9, 2, 5, 2 * growth * (1 + 0.1 * index)] for index in range(4)]
    variances += [[9, 2, 5, 2 + 0.1 * index] for index in range(4)] + [[1, 1, 1, 1e30]]
    rows = [{"Model": "ResNet-56", "Norm": norm} for norm in norms]
    rows += [{"Model": "ResNet-56", "Norm": "WeightNorm", name: "True"} for name in ("SkipInit", "preact")]
    variances += [[1, 1, 1, 1e30]] * 2
    [line] = table_rows(said(rows, probed(rows, activation_variance=variances)))
    expected = np.log10(growth * 1.15) - np.log10(1.075)
    assert line[2] == f"{expected:.3g}"
    assert line[3:] == ["8", f"{stats.mannwhitneyu(range(4), range(4, 8)).pvalue:.2g}", verdict]
    assert "× 1.1 in 4 with activation-based" in line[1]


def test_a_claim_without_enough_runs_cannot_be_said():
    rows = [{"Model": "ResNet-56", "Norm": norm} for norm in ("WeightNorm", "BatchNorm", "LayerNorm", "RMSNorm")]
    [line] = table_rows(said(rows, probed(rows, activation_variance=[[1, 1, 1, 8]] * 4)))
    assert line[-1] == "inconclusive (n = 4)"
    assert said(rows, []) == ""


def test_groupings_are_those_of_one_cell_with_channels_counted():
    sizes = [1.0, 0.5, 0.25, 0.125, 0.0625, 1e-7]
    rows = [{"Norm": "GroupNorm", "P Grouping": p, "epochs": "2"} for p in sizes]
    rows += [{"Norm": "GroupNorm", "P Grouping": p, "epochs": "2"} for p in (8, 32)]  # group size differs by layer
    rows += [{"Norm": "GroupNorm", "P Grouping": 1e-7, "epochs": "9"}]  # another cell
    ranks = [[1, 9 - index] for index in range(6)] + [[1, 50], [1, 50], [1, 99]]
    gradients = [[3 + index, 1] for index in range(6)] + [[9, 1], [9, 1], [0, 1]]
    pairs = probed(rows, stable_rank=ranks, grad_norm=gradients, activation_variance=ranks)
    higher, larger = table_rows(said(rows, pairs))
    assert (higher[2], higher[3], higher[5]) == ("1", "6", "agrees")
    assert (larger[2], larger[3], larger[5]) == ("-1", "6", "does not agree")
    assert "6 groupings" in higher[1]


def test_outliers_are_compared_by_the_share_of_the_largest_eigenvalue():
    n, rows = 1000, []
    for index in range(8):
        squares, largest = 100.0 + index, 4.0 + (index >= 4) * 4
        norm = "BatchNorm" if index < 4 else ("Plain", "LayerNorm")[index % 2]
        spectrum = {"Trace": 50, "Eigen Mean": 50 / n, "Eigen Variance": squares / n - (50 / n) ** 2}
        rows.append({"Norm": norm, "Max Eigen": largest} | spectrum)
    share, size = table_rows(said(rows, []))
    medians = 16 / np.median([100, 101, 102, 103]), 64 / np.median([104, 105, 106, 107])
    assert f"median {16 / 100:.3g}" not in share[1]
    assert float(share[2]) == pytest.approx(medians[1] - medians[0], rel=0.01)
    assert (share[5], size[2], size[5]) == ("agrees", "4", "agrees")


def test_the_p_of_ranks_that_agree_wholly_counts_permutations():
    values = np.arange(7.0)
    assert published_claims._spearman(values, values**3) == pytest.approx((1, 2 / math.factorial(7)))
    noise = np.random.default_rng(0).permutation(40)
    rho, p = published_claims._spearman(np.arange(40), noise)
    expected = stats.spearmanr(np.arange(40), noise)
    assert rho == pytest.approx(expected.statistic)
    assert p == pytest.approx(expected.pvalue, abs=0.02)

"""Claims beside made-up runs in which they hold, or do not, against scipy; trends of one table beside another's."""

import html
import math
import re

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from normstudy.report import comparison, published_claims, tables

pytestmark = pytest.mark.filterwarnings("error")


def frame(rows):
    about = {"Model": "VGG", "Dataset": "CIFAR-10", "Batch Size": "256", "Mom & WD": "True", "SkipInit": "False"}
    about |= {"Success": "True", "Test Accuracy": "70", "Train Accuracy": "80"}
    return tables.tidy_table(pd.DataFrame([about | {key: str(value) for key, value in row.items()} for row in rows]))


def lines(page):
    """The rows of the tables in a page, as lists of text."""
    found = re.findall(r"<tr>(<td.*?)</tr>", page)
    return [[html.unescape(re.sub("<[^>]+>", "", cell)) for cell in re.findall(r"<td.*?</td>", row)] for row in found]


# Papers


def probed(rows, **statistics):
    """What report_figures.read_probes gives; a statistic is a list of values by site for each run."""
    table = frame(rows)
    pairs = []
    for index, row in enumerate(table.to_dict("records")):
        part = {key: {"first": np.array(values[index], dtype=float)} for key, values in statistics.items()}
        part["sites"] = {"activation": ["activation", "blocks.0.activation2", "blocks.1.activation1"]}
        part["sites"]["activation"] += ["blocks.1.activation2"]
        pairs.append((row, part))
    return pairs


def said(rows, pairs):
    return published_claims.published_claims_html(published_claims.published_claims(frame(rows), pairs))


@pytest.mark.parametrize(("growth", "verdict"), [(1000.0, "agrees"), (0.001, "does not")])
def test_growth_of_activation_variance_is_between_outputs_of_blocks(growth, verdict):
    """Branches, and what stands before the first block, do not count; nor does Plain, which is neither kind, nor what
    SkipInit silences, nor what is normalized before the sums."""
    norms = ["WeightNorm", "ScaledWeightStandardization"] * 2 + ["BatchNorm", "LayerNorm"] * 2 + ["Plain"]
    variances = [[9, 2, 5, 2 * growth * (1 + 0.1 * index)] for index in range(4)]
    variances += [[9, 2, 5, 2 + 0.1 * index] for index in range(4)] + [[1, 1, 1, 1e30]]
    rows = [{"Model": "ResNet-56", "Norm": norm} for norm in norms]
    rows += [{"Model": "ResNet-56", "Norm": "WeightNorm", name: "True"} for name in ("SkipInit", "preact")]
    variances += [[1, 1, 1, 1e30]] * 2
    [line] = lines(said(rows, probed(rows, activation_variance=variances)))
    expected = np.log10(growth * 1.15) - np.log10(1.075)
    assert line[2] == f"{expected:.3g}"
    assert line[3:] == ["8", f"{stats.mannwhitneyu(range(4), range(4, 8)).pvalue:.2g}", verdict]
    assert "× 1.1 in 4 with activation-based" in line[1]


def test_a_claim_without_enough_runs_cannot_be_said():
    rows = [{"Model": "ResNet-56", "Norm": norm} for norm in ("WeightNorm", "BatchNorm", "LayerNorm", "RMSNorm")]
    [line] = lines(said(rows, probed(rows, activation_variance=[[1, 1, 1, 8]] * 4)))
    assert line[-1] == "cannot be said with n = 4"
    assert said(rows, []) == ""


def test_groupings_are_those_of_one_cell_with_channels_counted():
    sizes = [1.0, 0.5, 0.25, 0.125, 0.0625, 1e-7]
    rows = [{"Norm": "GroupNorm", "P Grouping": p, "epochs": "2"} for p in sizes]
    rows += [{"Norm": "GroupNorm", "P Grouping": p, "epochs": "2"} for p in (8, 32)]  # whose size differs by layer
    rows += [{"Norm": "GroupNorm", "P Grouping": 1e-7, "epochs": "9"}]  # of another cell
    ranks = [[1, 9 - index] for index in range(6)] + [[1, 50], [1, 50], [1, 99]]
    gradients = [[3 + index, 1] for index in range(6)] + [[9, 1], [9, 1], [0, 1]]
    pairs = probed(rows, stable_rank=ranks, grad_norm=gradients, activation_variance=ranks)
    higher, larger = lines(said(rows, pairs))
    assert (higher[2], higher[3], higher[5]) == ("1", "6", "agrees")
    assert (larger[2], larger[3], larger[5]) == ("-1", "6", "does not")
    assert "6 groupings" in higher[1]


def test_outliers_are_compared_by_the_share_of_the_largest_eigenvalue():
    n, rows = 1000, []
    for index in range(8):
        squares, largest = 100.0 + index, 4.0 + (index >= 4) * 4
        rows.append({"Norm": "BatchNorm" if index < 4 else ("Plain", "LayerNorm")[index % 2], "Trace": 50})
        rows[-1] |= {"Eigen Mean": 50 / n, "Eigen Variance": squares / n - (50 / n) ** 2, "Max Eigen": largest}
    share, size = lines(said(rows, []))
    medians = 16 / np.median([100, 101, 102, 103]), 64 / np.median([104, 105, 106, 107])
    assert f"median {16 / 100:.3g}" not in share[1]
    assert float(share[2]) == pytest.approx(medians[1] - medians[0], rel=0.01)
    assert (share[5], size[2], size[5]) == ("agrees", "4", "agrees")


# Another table


NORMS = ["BatchNorm", "LayerNorm", "InstanceNorm", "EvoNormBO", "Plain", "RMSNorm"]


def beside(ours, theirs, *arguments, **options):
    return comparison.comparison_html(*comparison.compare_tables(ours, theirs, *arguments, **options))


def study(accuracies, **more):
    return [{"Norm": norm, "Test Accuracy": value} | more for norm, value in zip(NORMS, accuracies, strict=False)]


def test_orders_of_norms_are_compared_in_cells_that_both_have():
    ours = study([80, 76, 70, 79, 50, 60], Dataset="ImageFolder", epochs="4", seed="0")
    ours += study([82, 77, 71, 78, 51, 61], Dataset="ImageFolder", epochs="4", seed="1")
    ours += study([10, 90], Dataset="ImageFolder", epochs="1", seed="0")  # another cell, with fewer norms
    theirs = study([90, 80, 60, 89, 51, 62]) + study([1, 2, 3, 4, 5], **{"Batch Size": 16}) + study([5, 4], Model="ViT")
    page = beside(frame(ours), frame(theirs), ("ImageFolder", "CIFAR-10"), resamples=100)
    [line] = lines(page)
    expected = stats.kendalltau([81, 76.5, 70.5, 78.5, 50.5, 60.5], [90, 80, 60, 89, 51, 62])
    assert line[0] == "vgg, CIFAR-10, 256.0, true, false"
    assert line[1] == "BatchNorm, EvoNormBO, LayerNorm, InstanceNorm, RMSNorm, Plain"
    assert line[2] == "BatchNorm, EvoNormBO, LayerNorm, RMSNorm, InstanceNorm, Plain"
    assert line[3:] == ["6", f"{expected.statistic:.3g}", f"{expected.pvalue:.2g}", "agrees"]
    assert "No measure is there" in page


def test_skipinit_is_of_resnets_alone():
    ours, theirs = study([80, 76, 70]), study([90, 80, 70], SkipInit=True)
    assert "No cell" not in beside(frame(ours), frame(theirs))
    ours, theirs = ([row | {"Model": "ResNet-56"} for row in rows] for rows in (ours, theirs))
    assert "No cell" in beside(frame(ours), frame(theirs))


def test_tables_without_a_common_cell_say_so():
    ours = frame(study([80, 76], Dataset="ImageFolder"))
    assert "No cell" in beside(ours, frame(study([80, 76])))
    assert "No cell" in beside(ours.iloc[:0], frame(study([80, 76])))


def test_signs_agree_where_both_intervals_leave_out_zero():
    generator = np.random.default_rng(0)

    def made(sign, noise, seeds):
        rows = []
        for seed in range(seeds):
            for place, norm in enumerate(NORMS):
                accuracy = 70 + 4 * place + generator.normal()
                measured = {"Class Similarity": sign * accuracy + noise * generator.normal(), "Trace": accuracy}
                rows.append({"Norm": norm, "Test Accuracy": accuracy, "seed": str(seed)} | measured)
        return frame(rows)

    ours = made(-1, 0.1, 4)
    found = {}
    for name, theirs in (("same", made(-1, 0.1, 2)), ("opposite", made(1, 0.1, 2)), ("noise", made(0, 1, 2))):
        table = lines(beside(ours, theirs, resamples=200))
        found[name] = {(line[0], line[1]): line[4] for line in table[1:]}["class similarity", "test accuracy (%)"]
    assert (found["same"], found["opposite"]) == ("agrees", "does not")
    assert found["noise"].startswith("cannot be said")


def test_the_p_of_ranks_that_agree_wholly_counts_permutations():
    values = np.arange(7.0)
    assert published_claims._spearman(values, values**3) == pytest.approx((1, 2 / math.factorial(7)))
    noise = np.random.default_rng(0).permutation(40)
    rho, p = published_claims._spearman(np.arange(40), noise)
    expected = stats.spearmanr(np.arange(40), noise)
    assert rho == pytest.approx(expected.statistic)
    assert p == pytest.approx(expected.pvalue, abs=0.02)

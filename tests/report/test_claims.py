"""Published claims on made-up runs in which they hold or do not hold."""

import math

import numpy as np
import pytest
from report_helpers import runs_of
from scipy import stats

from normstudy.report import claims, rankings
from normstudy.report.probe_statistics import ProbeStatistics

pytestmark = pytest.mark.filterwarnings("error")
NORMS = ["BatchNorm", "LayerNorm", "RMSNorm", "EvoNormBO", "Plain", "InstanceNorm"]


def probed(rows, **statistics):
    """Return what read_probe_statistics gives for such runs; a statistic is a list of values by site for each run."""
    sites = {"activation": ["activation", "blocks.0.activation2", "blocks.1.activation1", "blocks.1.activation2"]}
    pairs = []
    for index, row in enumerate(runs_of(rows).to_dict("records")):
        values = {key: {"first": np.array(lists[index], dtype=float)} for key, lists in statistics.items()}
        pairs.append((row, ProbeStatistics(sites, np.array([0]), values)))
    return pairs


def compared(rows, pairs=(), source=None):
    table = runs_of(rows)
    frame = claims.compare_claims(claims.Runs(table, rankings.rank_norms(table), pairs, 100, 0))
    return frame if source is None else frame[frame["source"] == source]


@pytest.mark.parametrize(("growth", "verdict"), [(1000.0, "agrees"), (0.001, "does not agree")])
def test_growth_of_activation_variance_is_between_outputs_of_blocks(growth, verdict):
    """Sites in branches and before the first block do not count, nor Plain, SkipInit and pre-activation runs."""
    norms = (
        ["WeightNorm", "ScaledWeightStandardization"] * 2
        + ["BatchNorm", "LayerNorm", "RMSNorm", "EvoNormSO"]
        + ["Plain"]
    )
    variances = [[9, 2, 5, 2 * growth * (1 + 0.1 * index)] for index in range(4)]
    variances += [[9, 2, 5, 2 + 0.1 * index] for index in range(4)] + [[1, 1, 1, 1e30]]
    rows = [{"Model": "ResNet-56", "Norm": norm} for norm in norms]
    rows += [{"Model": "ResNet-56", "Norm": "WeightNorm", name: "True"} for name in ("SkipInit", "preact")]
    variances += [[1, 1, 1, 1e30]] * 2
    frame = compared(rows, probed(rows, activation_variance=variances))
    [row] = frame.to_dict("records")
    weight = np.log10(growth) + np.mean([np.log10([1, 1.2]).mean(), np.log10([1.1, 1.3]).mean()])
    assert row["value"] == pytest.approx(weight - np.median(np.log10([1, 1.05, 1.1, 1.15])))
    assert row["n"] == 6  # norms, not runs
    assert row["p"] == pytest.approx(stats.mannwhitneyu([5, 6], [1, 2, 3, 4]).pvalue)
    assert row["verdict"] == "inconclusive (n = 6)"  # two norms against four cannot be significant
    assert claims.verdict(row["value"], 0.01, 6) == verdict


def test_groupings_are_those_of_one_cell_with_channels_counted():
    sizes = [1.0, 0.5, 0.25, 0.125, 0.0625, 1e-7]
    rows = [{"Norm": "GroupNorm", "P Grouping": p, "epochs": "2"} for p in sizes]
    rows += [{"Norm": "GroupNorm", "P Grouping": p, "epochs": "2"} for p in (8, 32)]  # group size differs by layer
    rows += [{"Norm": "GroupNorm", "P Grouping": 1e-7, "epochs": "9"}]  # another cell
    ranks = [[1, 9 - index] for index in range(6)] + [[1, 50], [1, 50], [1, 99]]
    gradients = [[3 + index, 1] for index in range(6)] + [[9, 1], [9, 1], [0, 1]]
    pairs = probed(rows, stable_rank=ranks, grad_norm=gradients, activation_variance=ranks)
    higher, larger = compared(rows, pairs, claims.LUBANA).to_dict("records")
    assert (higher["value"], higher["n"], higher["verdict"]) == (pytest.approx(1), 6, "agrees")
    assert (larger["value"], larger["n"], larger["verdict"]) == (pytest.approx(-1), 6, "does not agree")


def spectra(shares, prefix=""):
    """Runs whose largest eigenvalue squared is this share of the sum of all squares, of 1,000 eigenvalues."""
    names = {"": ("Trace", "Max Eigen", "Eigen Variance"), "hessian-train:": ("trace", "max_eigen", "eigen_variance")}
    found = []
    for share in shares:
        trace, squares = 50.0, 100.0
        values = (trace, math.sqrt(share * squares), squares / 1000 - (trace / 1000) ** 2)
        keys = [prefix + name for name in names[prefix]] if prefix else names[prefix]
        found.append(dict(zip(keys, values, strict=True)) | {"Trace": trace, "Eigen Mean": trace / 1000})
    return found


def test_outliers_are_scored_in_the_mode_of_the_claim_and_beside_it_in_eval_mode():
    train, held_out = [0.01, 0.4, 0.5, 0.6, 0.5, 0.4], [0.9, 0.4, 0.5, 0.6, 0.5, 0.4]
    pairs = zip(NORMS, spectra(held_out), spectra(train, "hessian-train:"), strict=True)
    rows = [{"Norm": norm, **second, **first} for norm, first, second in pairs]
    batch, usual = compared(rows, source=claims.GHORBANI).to_dict("records")
    assert batch["where"] == "vgg, batch statistics"
    assert batch["value"] == pytest.approx(0.5 - 0.01)
    assert usual["where"] == "vgg, eval mode"
    assert usual["value"] == pytest.approx(0.5 - 0.9)
    assert batch["p"] == pytest.approx(1 / 6)  # one norm of six


def test_a_trace_of_another_matrix_gives_no_share():
    """The original study's table: its trace is not that of the Hessian, and the share would exceed 1."""
    rows = [{"Norm": norm, **each, "Max Eigen": 1e4} for norm, each in zip(NORMS, spectra([0.5] * 6), strict=True)]
    assert compared(rows, source=claims.GHORBANI).empty


def test_class_similarity_is_compared_with_the_measures_of_the_claim():
    generator = np.random.default_rng(0)
    rows = [
        {"Norm": norm, "Batch Size": 2**cell, "Test Accuracy": place, "Class Similarity": place, "nc1": place}
        | {"Trace": generator.normal(), "Max Eigen": -place}
        for cell in range(8)
        for place, norm in enumerate(NORMS)
    ]
    frame = compared(rows, source=claims.ORIGINAL)
    of_test = frame[frame["compared"].str.contains("test accuracy") & frame["where"].str.contains("between")]
    assert of_test["compared"].str.extract(r"of (\S+( \S+)?) \(")[0].tolist() == ["trace", "largest eigenvalue"]
    trace, largest = of_test.to_dict("records")
    assert trace["verdict"] == "agrees"
    assert trace["low"] > 0
    assert largest["value"] == pytest.approx(0)
    assert largest["verdict"].startswith("inconclusive")


def test_ranks_hold_if_their_interval_lies_within_the_two_best_or_worst():
    means = {"BatchNorm": 90, "EvoNormBO": 80, "LayerNorm": 70, "RMSNorm": 60, "InstanceNorm": 50, "Plain": 95}
    rows = [{"Norm": n, "seed": s, "Test Accuracy": m + 0.01 * s} for n, m in means.items() for s in range(4)]
    frame = compared(rows, source=claims.ORIGINAL).set_index("where")
    assert frame["verdict"].to_dict() == {
        "vgg, BatchNorm": "agrees",
        "vgg, EvoNormBO": "does not agree",
        "vgg, InstanceNorm": "agrees",
        "vgg, Plain": "does not agree",
    }


def test_tuned_norms_are_compared_at_their_best_rates_which_differ():
    """Cells of one rate would hold too few of the norms, because only the runs at the best rate are measured."""
    rows = []
    for place, (norm, spectrum) in enumerate(zip(NORMS, spectra([0.9, 0.4, 0.5, 0.6, 0.5, 0.4]), strict=True)):
        own = {"Norm": norm, "Test Accuracy": 50 + place}
        best = {"lr": 0.1 * 2 ** (place % 3), "validation_accuracy": 0.5, "Class Similarity": place, **spectrum}
        best |= {"Trace": spectrum["Trace"] * (1 + place), "Eigen Mean": spectrum["Eigen Mean"] * (1 + place)}
        rows += [own | best | {"seed": seed, "Test Accuracy": 50 + place + 0.1 * seed} for seed in (0, 1)]
        rows.append(own | {"lr": 0.9, "validation_accuracy": 0.3, "seed": 0})
    frame = compared(rows)
    assert {f"vgg, {norm}, best rate" for norm in ("BatchNorm", "Plain")} <= set(frame["where"])
    assert "vgg, eval mode" in set(frame["where"])
    similarity = frame[frame["compared"].str.contains("of class similarity")]
    assert set(similarity["n"]) == {len(NORMS)}


def test_made_up_images_say_nothing_about_claims():
    rows = [
        {"Norm": norm, "Dataset": "Synthetic", "Test Accuracy": i + 0.1 * s * i, "seed": s}
        for i, norm in enumerate(NORMS)
        for s in (0, 1)
    ]
    assert compared(rows).empty
    assert not compared([row | {"Dataset": "CIFAR-10"} for row in rows]).empty


def test_a_claim_is_a_function_and_a_line(monkeypatch):
    def compare(runs):
        yield claims.Comparison("here", "difference", 2.0, 1.0, 3.0, len(runs.table), np.nan)

    monkeypatch.setattr(claims, "CLAIMS", (claims.Claim("Norms help", "me", "always", compare),))
    [row] = compared([{"Norm": "Plain"}]).to_dict("records")
    assert (row["claim"], row["verdict"], row["n"]) == ("Norms help", "agrees", 1)


def test_the_p_of_ranks_that_agree_wholly_counts_permutations():
    values = np.arange(7.0)
    assert claims._spearman(values, values**3) == pytest.approx((1, 2 / math.factorial(7)))
    noise = np.random.default_rng(0).permutation(40)
    rho, p = claims._spearman(np.arange(40), noise)
    expected = stats.spearmanr(np.arange(40), noise)
    assert rho == pytest.approx(expected.statistic)
    assert p == pytest.approx(expected.pvalue, abs=0.02)

"""The comparison of one table's trends with those of another."""

import numpy as np
import pytest
from report_helpers import runs_of, table_rows
from scipy import stats

from normstudy.report import comparison, page_tables, tables

pytestmark = pytest.mark.filterwarnings("error")
NORMS = ["BatchNorm", "LayerNorm", "InstanceNorm", "EvoNormBO", "Plain", "RMSNorm"]


def beside(ours, theirs, *arguments, **options):
    frames = comparison.compare_tables(ours, theirs, *arguments, **options)
    return page_tables.comparison_html(*frames, tables.MEASURES)


def study(accuracies, **more):
    return [{"Norm": norm, "Test Accuracy": value} | more for norm, value in zip(NORMS, accuracies, strict=False)]


def test_orders_of_norms_are_compared_in_cells_that_both_have():
    ours = study([80, 76, 70, 79, 50, 60], Dataset="ImageFolder", epochs="4", seed="0")
    ours += study([82, 77, 71, 78, 51, 61], Dataset="ImageFolder", epochs="4", seed="1")
    ours += study([10, 90], Dataset="ImageFolder", epochs="1", seed="0")  # another cell, with fewer norms
    theirs = study([90, 80, 60, 89, 51, 62]) + study([1, 2, 3, 4, 5], **{"Batch Size": 16}) + study([5, 4], Model="ViT")
    page = beside(runs_of(ours), runs_of(theirs), ("ImageFolder", "CIFAR-10"), resamples=100)
    [line] = table_rows(page)
    expected = stats.kendalltau([81, 76.5, 70.5, 78.5, 50.5, 60.5], [90, 80, 60, 89, 51, 62])
    assert line[0] == "vgg, CIFAR-10, batch 256, momentum and weight decay on, SkipInit off"
    assert line[1] == "BatchNorm, EvoNormBO, LayerNorm, InstanceNorm, RMSNorm, Plain"
    assert line[2] == "BatchNorm, EvoNormBO, LayerNorm, RMSNorm, InstanceNorm, Plain"
    assert line[3:] == ["6", f"{expected.statistic:.3g}", f"{expected.pvalue:.2g}", "agrees"]
    assert "No measure has enough settings in both tables" in page


def test_tuned_norms_are_in_the_order_of_their_best_rates():
    ours = []
    for place, row in enumerate(study([80, 76, 70, 79, 50])):
        ours.append(row | {"lr": 0.1 * 2 ** (place % 3), "validation_accuracy": 0.5})
        ours.append(row | {"lr": 0.9, "validation_accuracy": 0.4, "Test Accuracy": 99 - place})
    [line] = table_rows(beside(runs_of(ours), runs_of(study([90, 80, 60, 89, 51])), resamples=100))
    assert line[1] == "BatchNorm, EvoNormBO, LayerNorm, InstanceNorm, Plain"


def test_skipinit_is_of_resnets_alone():
    ours, theirs = study([80, 76, 70]), study([90, 80, 70], SkipInit=True)
    assert "No cell" not in beside(runs_of(ours), runs_of(theirs))
    ours, theirs = ([row | {"Model": "ResNet-56"} for row in rows] for rows in (ours, theirs))
    assert "No cell" in beside(runs_of(ours), runs_of(theirs))


def test_tables_without_a_common_cell_say_so():
    ours = runs_of(study([80, 76], Dataset="ImageFolder"))
    assert "No cell" in beside(ours, runs_of(study([80, 76])))
    assert "No cell" in beside(ours.iloc[:0], runs_of(study([80, 76])))


def test_signs_agree_where_both_intervals_leave_out_zero():
    generator = np.random.default_rng(0)

    def made(sign, noise, seeds):
        rows = []
        for seed in range(seeds):
            for place, norm in enumerate(NORMS):
                accuracy = 70 + 4 * place + generator.normal()
                measured = {"Class Similarity": sign * accuracy + noise * generator.normal(), "Trace": accuracy}
                rows.append({"Norm": norm, "Test Accuracy": accuracy, "seed": str(seed)} | measured)
        return runs_of(rows)

    ours = made(-1, 0.1, 4)
    found = {}
    for name, theirs in (("same", made(-1, 0.1, 2)), ("opposite", made(1, 0.1, 2)), ("noise", made(0, 1, 2))):
        table = table_rows(beside(ours, theirs, resamples=200))
        found[name] = {(line[0], line[1]): line[4] for line in table[1:]}["class similarity", "test accuracy (%)"]
    assert (found["same"], found["opposite"]) == ("agrees", "does not agree")
    assert found["noise"].startswith("inconclusive")

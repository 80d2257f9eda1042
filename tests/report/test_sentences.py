"""The findings and limits that the summary states for made-up runs."""

import re

import numpy as np
from report_helpers import made_up, report


def test_the_summary_says_what_was_put_in(made):
    summary = (made / "report.html").read_text(encoding="utf-8").partition("<h2>Which")[0]
    assert "EvoNormBO had the highest test accuracy of 5 norms" in summary
    assert "InstanceNorm had the lowest test accuracy" in summary
    assert re.search(r"class similarity correlates with (test accuracy|the gap|the ratio)", summary)
    assert "160 runs, 2 of which failed" in summary
    assert "2 of 160 failed (Plain 2)" in summary


def test_two_norms_support_a_finding_and_no_claim_of_four(tmp_path):
    table = made_up(40)
    table = table[table["Norm"].isin(["EvoNormBO", "Instance_Normalization"])].assign(**{"Class Similarity": np.nan})
    page = report(tmp_path, table.drop(columns=["Trace", "Max Eigen"]).assign(epochs=3))
    assert "EvoNormBO had the highest test accuracy of 2 norms" in page
    assert "inconclusive: no cell has four norms" in page
    assert "settings that all runs share: Dataset: CIFAR-10, Mom &amp; WD: on, SkipInit: off, epochs: 3." in page
    assert "class similarity; class similarity, pooled features;" in page


def test_a_norm_with_one_run_is_not_said_to_be_best(tmp_path):
    table = made_up(80).drop(columns=["Class Similarity", "Trace", "Max Eigen"]).assign(Model="VGG")
    table.loc[len(table)] = table.iloc[0].to_dict() | {"Norm": "RMSNorm", "Test Accuracy": 99.0}
    page = report(tmp_path, table)
    assert re.search(r"(EvoNormBO|BatchNorm) had the highest test accuracy of the 5 norms with several runs", page)


def test_intervals_from_few_runs_are_said_to_be_too_narrow(tmp_path):
    page = report(tmp_path, made_up(10).assign(Model="vgg", **{"Batch Size": 16}))
    assert re.search(r"\(vgg: \w+ 2(, \w+ 2){4}\)", page)
    assert "an interval from two runs only spans their values" in page

"""The sentences of the summary, checked on made-up runs."""

import re

import numpy as np
import pandas as pd
from report_helpers import made_up, report, runs_of

from normstudy.report import association, correlation, data, primary, sentences, tables


def found_in(table):
    """The findings of the primary analysis of a table."""
    titles = tables.MEASURES
    frame = correlation.correlate_measures(table, ["Class Similarity", "margin_10"], resamples=50)
    included = primary.included_runs(table)
    measures = correlation.closest_measures(frame)
    points = {name: correlation.points_of(included.runs, name, "Test Accuracy") for name in measures}
    influences = {name: association.without_each_norm(each) for name, each in points.items()}
    return sentences.primary_findings(frame, influences, titles)


def basis_of(table):
    included = primary.included_runs(table)
    return list(sentences.basis_sentences(included, data.association_of_rates(included)))


NORMS = ["BatchNorm", "LayerNorm", "RMSNorm", "EvoNormBO", "Plain", "VarianceNorm", "EvoNormSO"]


def study(sign=-1, within=-1, **columns):
    rows = []
    for place, norm in enumerate(NORMS):
        for seed in range(3):
            accuracy = 60 + 3 * place + seed
            similarity = sign * 3 * place + within * seed
            rows.append(
                {"Norm": norm, "seed": seed, "Test Accuracy": accuracy, "Class Similarity": similarity} | columns
            )
    return runs_of(rows)


def test_a_finding_of_the_primary_analysis_is_stated_with_its_numbers_and_its_basis():
    [finding] = found_in(study())
    assert finding.measure == "Class Similarity"
    assert finding.claim == "Between norms, higher class similarity goes with lower test accuracy."
    assert finding.evidence.startswith("ρ = −1.00 (95 % interval −1 to ")
    assert re.search(r"7 norms, 1 cell; p (<|=) 0\.00\d+ after Holm's adjustment", finding.evidence)
    assert re.search(r"Within norms over seeds: ρ = −1\.00 \(p (<|=) 0\.00\d+ after Holm's adj", finding.evidence)
    assert finding.evidence.endswith("It is the only measure of the primary analysis that these runs have.")
    # fewer than five norms are left without those that keep running statistics
    assert finding.overturn == "Without any one norm, ρ is −1.00 to −1.00."
    lacking, stages, rates = basis_of(study())
    assert lacking == (
        "Left out: 13 of 14 measures, because no cell has them for 5 norms (measured by run_measures.py, "
        "run_class_similarity.py, run_hessian.py --scale=element)."
    )
    assert stages.startswith(
        "The runs did not stop at a common training loss: their training accuracies are 80 to 80 %"
    )
    assert "In each cell, all norms have the same learning rate" in rates


def test_an_opposite_sign_within_norms_is_said():
    assert "The sign is the opposite." in found_in(study(within=1))[0].evidence


def test_without_a_finding_that_is_the_finding():
    table = study()
    table["Class Similarity"] = np.random.default_rng(2).normal(size=len(table))
    [finding] = found_in(table)
    assert finding.claim == "No measure of the primary analysis is shown to go with test accuracy from norm to norm."
    assert finding.evidence.startswith("The closest is class similarity: ρ = ")
    assert finding.evidence.endswith("It is the only measure of the primary analysis that these runs have.")


def test_runs_at_one_loss_are_said_to_be_and_late_ones_are_named():
    table = study(stop_at_loss="0.1", reached_loss="True")
    table.loc[0, "reached_loss"] = "False"
    late, _, loss, *_ = basis_of(table)
    assert [late, loss] == [
        "Left out: 1 run that did not reach the training loss (vgg BatchNorm).",
        "The runs stopped at the first epoch with a training loss of at most 0.1: some trained longer than others.",
    ]


def test_a_measure_that_no_cell_has_for_enough_norms_is_left_out():
    """Five norms have the margin, but not on the same number of images."""
    margins = study(margin_10=1.0, cross_entropy=1.0, measures_samples=256)
    few = margins.assign(measures_samples=margins["measures_samples"].where(margins["Norm"].isin(NORMS[:4]), 512))
    for table, missing in ((margins, 11), (few, 13)):
        assert basis_of(table)[0].startswith(
            f"Left out: {missing} of 14 measures, because no cell has them for 5 norms"
        )


def test_the_page_says_what_was_left_out_and_which_settings_have_an_effect(made):
    page = (made / "report.html").read_text(encoding="utf-8")
    summary = page.partition(">Which norm is best, and where</a></h2>")[0]
    assert "160 runs, 2 of which failed" in summary
    assert "2 of 160 failed (Plain 2)" in summary
    assert re.search(r"Batch Size: 256 instead of 16 changed test accuracy by [+-]", page)


def test_shared_settings_and_missing_measures_are_limits(tmp_path):
    table = made_up(40)
    table = table[table["Norm"].isin(["EvoNormBO", "Instance_Normalization"])].assign(**{"Class Similarity": np.nan})
    page = report(tmp_path, table.drop(columns=["Trace", "Max Eigen"]).assign(epochs=3))
    assert "There is no primary analysis" in page
    assert "settings that all runs share: Dataset: CIFAR-10, Mom &amp; WD: on, SkipInit: off, epochs: 3." in page
    assert re.search(r"Correlations of .*unscaled.* and \d+ other measures: fewer than 5 settings have a value", page)


def test_effects_are_of_axes_that_change_alone():
    rows = [
        {"Norm": norm, "Batch Size": batch, "epochs": epochs, "Test Accuracy": 50 + (batch == 256) * (5 + place)}
        for place, norm in enumerate(NORMS)
        for batch, epochs in ((256, 60), (16, 10))
    ]
    [accuracy, gap] = sentences.effect_sentences(runs_of(rows))
    assert accuracy.startswith("Batch Size & epochs: 256 instead of 16 changed test accuracy by +8.0 points")
    assert "by −8.0 points" in gap


def ranks(**bounds):
    rows = [
        {"network": network, "norm": norm, "at": "equal settings", "rank_low": low, "rank_high": high}
        for network, best in bounds.items()
        for norm, (low, high) in best.items()
    ]
    return pd.DataFrame(rows)


def test_a_norm_is_best_only_if_no_other_rank_is_left():
    frame = ranks(
        vgg={"BatchNorm": (1, 1), "Plain": (2, 2)},
        vit={"Plain": (1, 2), "RMSNorm": (1, 2)},
        own={"A": (np.nan, np.nan)},
    )
    included = primary.included_runs(study(Model="vgg"))
    best, several, unknown, untuned = sentences.ranking_sentences(frame, included)
    assert best == "vgg, at equal settings: BatchNorm is best."
    assert (
        several == "vit, at equal settings: no norm is shown to be best. Plain comes first, but its rank may be 1 to 2."
    )
    assert unknown == "own, at equal settings: no norm is shown to be best. A comes first, but it has no interval."
    assert untuned.startswith("These runs do not show which norm is best at its own best learning rate in vgg:")


def test_sharpness_is_said_to_go_with_an_outcome_only_if_it_does(monkeypatch):
    monkeypatch.setattr(correlation, "FEW_PERMUTATIONS", 1999)
    table = study()
    table["Trace"] = -table["Test Accuracy"]
    table["Max Eigen"] = np.random.default_rng(3).normal(size=len(table))
    frame = correlation.correlate_measures(table, ["Trace", "Max Eigen", "Class Similarity"], resamples=50)
    accuracy, gap, unscaled = sentences.sharpness_sentences(frame, tables.MEASURES)
    assert accuracy.startswith("Sharpness and test accuracy, between norms: significant: Hessian trace, unscaled. ")
    assert "largest eigenvalue, unscaled ρ = " in accuracy
    assert "class similarity" not in accuracy
    assert gap.startswith("Sharpness and the gap between train and test accuracy, between norms: ")
    assert "unscaled" in unscaled
    assert list(sentences.sharpness_sentences(frame[frame["measure"] == "Class Similarity"], tables.MEASURES)) == []


def test_a_finding_rests_on_runs_in_cells_of_enough_norms():
    table = pd.concat([study(), study(Model="vit").iloc[:12]], ignore_index=True)
    included = primary.included_runs(table).runs
    behind = correlation.runs_behind(included, "Class Similarity", "Test Accuracy")
    assert set(table.loc[behind.index, "Model"]) == {"vgg"}
    said = sentences.behind_sentence(included, behind)
    assert said == (
        "It rests on 21 runs in 1 cell; the other 12 are in cells of fewer than 5 norms, or lack the measure."
    )

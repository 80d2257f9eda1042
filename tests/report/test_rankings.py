"""Rankings of norms: differences between cells, failed runs, best rates, and the coverage of the intervals."""

import numpy as np
import pandas as pd
import pytest
from report_helpers import random_runs, runs_of
from report_simulations import effect, ranking
from scipy import stats

from normstudy.report import association, data, norm_figures, primary, rankings, sentences, tables, tuning
from normstudy.report.baseline import differences_to

pytestmark = pytest.mark.filterwarnings("error")
NORMS = ["BatchNorm", "LayerNorm", "RMSNorm"]


def vgg(n, **columns):
    return random_runs(n, **{"Mom & WD": ["True"] * n, "Norm": ["Plain"] * n} | columns).assign(
        Model="vgg", **{"Batch Size": 16.0}
    )


def test_the_ranking_takes_out_what_the_cells_differ_in():
    """A norm gains nothing by being tried only in cells with high accuracy."""
    runs = vgg(
        9, Norm=["BatchNorm", "BatchNorm", "Plain", "Plain", "RMSNorm", "RMSNorm", "BatchNorm", "Plain", "Plain"]
    )
    runs["Batch Size"] = [16] * 6 + [256] * 3
    runs["Test Accuracy"] = [90.0, 90, 88, 88, 86, 86, 42, 40, 40]
    ranks = rankings.rank_norms(runs)
    assert list(ranks) == rankings.COLUMNS
    assert ranks["norm"].tolist() == ["BatchNorm", "Plain", "RMSNorm"]
    assert ranks["advantage"].tolist() == pytest.approx([(2 + 1) / 2, (0 - 1) / 2, -2])  # each cell counts once
    assert ranks["n"].tolist() == [3, 4, 2]
    assert set(ranks["at"]) == {"equal settings"}


def test_each_network_has_a_ranking_of_its_own():
    rows = [("vgg", "BatchNorm", 77), ("vgg", "EvoNormBO", 75), ("vgg", "Plain", 10)]
    rows += [("vit", "BatchNorm", 38), ("vit", "LayerNorm", 40), ("vit", "RMSNorm", 39)]
    runs = random_runs(6, Model=[row[0] for row in rows], Norm=[row[1] for row in rows]).assign(
        **{"Batch Size": 16, "Mom & WD": True, "Test Accuracy": [float(row[2]) for row in rows]}
    )
    found = rankings.rank_norms(runs).groupby("network", sort=False)["norm"].agg(list).to_dict()
    assert found == {"vgg": ["BatchNorm", "EvoNormBO", "Plain"], "vit": ["LayerNorm", "RMSNorm", "BatchNorm"]}


def test_two_norms_in_one_cell_have_welchs_standard_error():
    runs = vgg(7, Norm=["BatchNorm"] * 3 + ["Plain"] * 4)
    runs["Test Accuracy"] = [80.0, 82, 87, 70, 71, 75, 76]
    first, second = rankings.rank_norms(runs).to_dict("records")
    assert first["advantage"] == pytest.approx(-second["advantage"])
    assert (first["low"], first["high"]) == (pytest.approx(-second["high"]), pytest.approx(-second["low"]))
    welch = stats.ttest_ind(runs["Test Accuracy"][:3], runs["Test Accuracy"][3:], equal_var=False)
    error = (83 - 73) / welch.statistic / 2  # the advantage is half of the difference
    freedom = np.sqrt(welch.df * 2)  # the larger part of the variance is that of BatchNorm, with 3 runs
    half = stats.t.ppf(0.975, freedom) * error
    assert first["high"] - first["advantage"] == pytest.approx(half)


def test_over_five_cells_the_interval_is_the_t_interval_of_their_advantages():
    generator = np.random.default_rng(0)
    values = generator.normal(70, 5, (6, 2))
    runs = vgg(12, Norm=["BatchNorm", "Plain"] * 6)
    runs["Batch Size"], runs["Test Accuracy"] = np.repeat(np.arange(6), 2), values.ravel()
    row = rankings.rank_norms(runs).set_index("norm").loc["BatchNorm"]
    advantages = (values[:, 0] - values[:, 1]) / 2
    low, high = stats.t.interval(0.95, 5, advantages.mean(), stats.sem(advantages))
    assert (row["low"], row["high"]) == (pytest.approx(low), pytest.approx(high))


def test_groupings_of_a_norm_are_averaged_and_their_differences_are_no_noise():
    rows = [
        {"Norm": "GroupNorm", "P Grouping": p, "Test Accuracy": a, "seed": s}
        for p, a in ((8, 60), (2, 80))
        for s in (0, 1)
    ]
    rows += [{"Norm": "BatchNorm", "Test Accuracy": 75 + s, "seed": s} for s in (0, 1)]
    ranks = rankings.rank_norms(runs_of(rows)).set_index("norm")
    assert ranks.loc["GroupNorm", "advantage"] == pytest.approx((70 - 75.5) / 2)
    assert ranks.loc["GroupNorm", "high"] - ranks.loc["GroupNorm", "advantage"] < 4  # not the 20 points between them


def test_a_rank_is_between_those_of_norms_that_differ_surely():
    runs = vgg(15, Norm=["BatchNorm"] * 5 + ["Plain"] * 5 + ["RMSNorm"] * 5)
    runs["Test Accuracy"] = [*(90 + 0.1 * np.arange(5)), *(70 + 0.1 * np.arange(5)), *(70.05 + 0.1 * np.arange(5))]
    ranks = rankings.rank_norms(runs)
    assert ranks[["rank_low", "rank_high"]].to_numpy().tolist() == [[1, 1], [2, 3], [2, 3]]


def test_one_run_has_no_interval():
    runs = vgg(3, Norm=["Plain", "Plain", "BatchNorm"])
    runs["Test Accuracy"] = [80.0, 82, 90]
    ranks = rankings.rank_norms(runs)
    assert ranks["n"].tolist() == [1, 2]
    assert ranks[["low", "high", "rank_low", "rank_high"]].isna().all(axis=1).tolist() == [True, False]
    half = stats.t.ppf(0.975, np.sqrt(9 / 5)) * np.sqrt((2 / 2 + 2 / 1) / 4)  # both have the variance of Plain's runs
    assert ranks["high"].iloc[1] - ranks["advantage"].iloc[1] == pytest.approx(half)


def test_a_norm_that_stands_alone_in_its_cells_is_compared_with_nothing():
    runs = vgg(4, Norm=["BatchNorm", "Plain", "RMSNorm", "RMSNorm"])
    assert set(rankings.rank_norms(runs.assign(**{"Batch Size": [16, 16, 64, 64]}))["norm"]) == {"BatchNorm", "Plain"}


def test_a_cell_is_equal_in_all_hyperparameters():
    runs = vgg(4).assign(epochs=[1, 1, 60, 60])
    assert rankings.summarize_cells(runs)[["epochs", "n"]].to_numpy().tolist() == [["1", 2], ["60", 2]]


def test_failed_runs_are_counted_and_not_averaged():
    runs = vgg(6, Success=["False"] + ["True"] * 5)
    [row] = rankings.rank_norms(runs).itertuples()
    assert (row.n, row.failed) == (5, 1)
    assert rankings.summarize_cells(runs)["failed"].sum() == 1
    assert rankings.summarize_cells(runs)["n"].sum() == 6


def test_an_accuracy_has_the_error_of_its_test_images():
    runs = vgg(2).assign(test_samples=["2000", "2000"])
    runs["Test Accuracy"] = [40.0, 50.0]
    [error] = rankings.summarize_cells(runs)["Test Accuracy image error"]
    assert error == pytest.approx(100 * np.sqrt(0.45 * 0.55 / 2000))  # 1.1 points


def test_a_table_of_failures_has_an_empty_ranking():
    assert rankings.rank_norms(vgg(3, Success=["False"] * 3)).empty


# Best rates


def tuned_runs():
    """Norms at two or three rates: BatchNorm is best at 1 on validation images and at 0.1 on test images."""
    rows = []
    for norm, rate, seed, validation, test in (
        *(("BatchNorm", 0.1, 0, 0.5, 90), ("BatchNorm", 1, 0, 0.7, 60), ("BatchNorm", 3, 0, 0.6, 65)),
        *(("BatchNorm", 1, 1, 0.1, 62), ("BatchNorm", 0.1, 1, 0.9, 91)),
        *(("LayerNorm", 0.1, 0, 0.6, 50), ("LayerNorm", 1, 0, 0.6, 80), ("LayerNorm", 0.1, 1, 0.5, 52)),
        *(("RMSNorm", 0.1, 0, 0.6, 55),),
    ):
        row = {"Norm": norm, "init_lr": rate, "seed": seed, "validation_accuracy": validation, "Test Accuracy": test}
        rows.append(row)
    return runs_of(rows)


def test_each_norm_is_taken_at_the_rate_with_the_best_validation_accuracy():
    found = tuning.at_best_rates(tuned_runs())
    assert found is not None
    kept = found.runs.sort_values(["Norm", "seed"])
    assert kept["Test Accuracy"].tolist() == [60, 62, 50, 52]  # of the first seed; of equal rates the smaller
    assert set(kept["init_lr"]) == {"tuned"}
    assert found.edges == ["vgg LayerNorm at 0.01"]
    ranks = rankings.rank_norms(tuned_runs())
    best = ranks[ranks["at"] == "best rate"]
    assert best["norm"].tolist() == ["BatchNorm", "LayerNorm"]
    assert best["advantage"].tolist() == pytest.approx([5, -5])


def test_the_rates_of_the_seed_that_chose_are_drawn_and_the_best_has_a_ring():
    runs = tuned_runs()
    curves = tuning.tuning_curves(runs)
    assert [curve["Test Accuracy"].tolist() for curve in curves] == [[90, 60, 65], [50, 80]]
    assert [curve["is_chosen"].tolist() for curve in curves] == [[False, True, False], [True, False]]
    figure = norm_figures.draw_rates(curves)
    assert figure is not None
    points = {str(line.get_label()): np.asarray(line.get_xydata()) for line in figure.axes[0].lines}
    assert points["BatchNorm"][:, 1].tolist() == [90, 60, 65]
    assert points["LayerNorm"][:, 1].tolist() == [50, 80]
    rings = [line for line in figure.axes[0].lines if line.get_markerfacecolor() == "none"]
    assert [pytest.approx(np.asarray(line.get_xydata())[0]) for line in rings] == [(0.1, 60), (0.01, 50)]
    late = runs.assign(reached_loss=["False" if rate == "3" else "True" for rate in runs["init_lr"]])
    assert tuning.tuning_curves(late)[0]["Test Accuracy"].tolist() == [90, 60]
    assert norm_figures.draw_rates(tuning.tuning_curves(runs[runs["init_lr"] == "1"])) is None


def test_test_labels_choose_no_rate():
    runs = tuned_runs()
    other = runs.assign(**{"Test Accuracy": 100 - runs["Test Accuracy"]})
    first, second = (tuning.at_best_rates(each) for each in (runs, other))
    assert first is not None
    assert second is not None
    assert first.runs.index.tolist() == second.runs.index.tolist()


def test_a_failed_rate_is_never_chosen():
    runs = tuned_runs()
    runs.loc[runs["init_lr"].isin(["1"]), "has_failed"] = True
    found = tuning.at_best_rates(runs)
    assert found is not None
    assert found.runs["Test Accuracy"].tolist() == [65, 50, 52]


def test_a_rate_that_did_not_reach_the_loss_is_chosen_only_if_none_did():
    runs = tuned_runs()
    late = runs.assign(reached_loss=["False" if rate == "1" else "True" for rate in runs["init_lr"]])
    found = tuning.at_best_rates(late)
    assert found is not None
    assert found.runs["Test Accuracy"].tolist() == [65, 50, 52]
    assert tuning.at_best_rates(runs.assign(reached_loss="False")).runs["Test Accuracy"].tolist() == [60, 62, 50, 52]  # type: ignore[union-attr]


def test_rates_are_peak_rates_whichever_flag_set_them():
    """BatchNorm is tuned by --lr, LayerNorm by --init_lr: at batch size 256, the rate is a tenth of init_lr."""
    rows: list[tuple[object, ...]] = [
        ("BatchNorm", 1, 0.01, 0.5, 70),
        ("BatchNorm", 1, 0.1, 0.6, 60),
        ("BatchNorm", 1, "", 0.4, 50),
    ]
    rows += [("LayerNorm", 0.1, "", 0.7, 55), ("LayerNorm", 1, "", 0.6, 65)]
    names = ("Norm", "init_lr", "lr", "validation_accuracy", "Test Accuracy")
    found = tuning.at_best_rates(runs_of([dict(zip(names, row, strict=True)) for row in rows]))
    assert found is not None
    assert sorted(found.runs["Test Accuracy"]) == [50, 55, 60]  # lr = 0.1 and init_lr = 1 are one rate


def test_norms_that_were_not_tuned_are_named():
    included = primary.included_runs(tuned_runs())
    assert included.tuned == ["vgg"]
    assert included.reasons["had one learning rate where others were tuned"] == ["vgg RMSNorm"]
    assert included.edges == ["vgg LayerNorm at 0.01"]


def test_a_network_without_tuning_keeps_its_runs_beside_a_tuned_one():
    other = tuned_runs().iloc[:2].assign(Model="vit", init_lr="1", validation_accuracy="")
    table = pd.concat([tuned_runs(), other], ignore_index=True)
    included = primary.included_runs(table)
    assert included.tuned == ["vgg"]
    assert included.runs["Model"].value_counts().to_dict() == {"vgg": 4, "vit": 2}
    said = list(sentences.basis_sentences(included, association.UNDEFINED))
    assert any(
        each.startswith("In vgg, each norm is at its best learning rate: that with the highest") for each in said
    )
    assert "Left out: 4 runs at other rates (0 did not reach the training loss, 0 failed)." in said
    assert "Best peak rates in vgg: BatchNorm 0.1, LayerNorm 0.01." in said
    assert said[-1].startswith("In the other cells, all norms have the same learning rate")


def late_study():
    """Three norms at three rates with seed 0 and at their best one with seed 1. Plain is late at 0.3, with 99 %."""
    rows = []
    for norm, best, accuracy in (("BatchNorm", 0.1, 60), ("LayerNorm", 0.1, 50), ("Plain", 0.2, 40)):
        for rate in (0.1, 0.2, 0.3):
            is_late = (norm, rate) == ("Plain", 0.3)
            row = {"Norm": norm, "lr": rate, "reached_loss": not is_late, "stop_at_loss": 0.1, "seed": 0}
            row |= {"validation_accuracy": 0.9 if is_late else 0.5 - abs(rate - best)}
            rows.append(row | {"Test Accuracy": 99 if is_late else accuracy, "Class Similarity": rate})
        rows.append(rows[-1] | {"lr": best, "seed": 1, "reached_loss": True, "Test Accuracy": accuracy + 2})
    return runs_of(rows)


def test_late_runs_are_in_no_ranking_and_equal_settings_need_all_norms():
    table = late_study()
    ranks = rankings.rank_norms(table).set_index(["at", "norm"])
    assert ranks.loc["best rate", "n"].to_dict() == {"BatchNorm": 2, "LayerNorm": 2, "Plain": 2}
    assert ranks.loc["best rate", "mean"].to_dict() == {"BatchNorm": 61, "LayerNorm": 51, "Plain": 41}
    assert ranks.loc["equal settings", "n"].to_dict() == {"BatchNorm": 3, "LayerNorm": 3, "Plain": 3}  # 0.3 is left out
    cells = rankings.summarize_cells(table)
    late = cells[(cells["Label"] == "Plain") & (cells["lr"] == "0.3")]
    assert late["late"].tolist() == [1]
    assert late["Test Accuracy mean"].isna().all()
    [plain] = [
        row for row in differences_to(table).to_dict("records") if (row["norm"], row["at"]) == ("Plain", "best rate")
    ]
    assert plain["difference"] == pytest.approx(-20)
    said = list(sentences.basis_sentences(primary.included_runs(table), association.UNDEFINED))
    assert "Left out: 6 runs at other rates (1 did not reach the training loss, 0 failed)." in said


def test_rates_are_compared_by_the_seed_that_chose_among_them():
    """A mean over two seeds at the best rate alone would differ from the other rates by the seeds."""
    table = late_study()
    kept = tuning.of_tuning_seeds(table)
    assert kept["seed"].tolist() == [0] * 9
    assert list(kept.columns) == list(table.columns)
    untuned = table.drop(columns="validation_accuracy")
    assert len(tuning.of_tuning_seeds(untuned)) == len(table)


def test_the_primary_coefficient_is_given_without_the_seed_that_chose_the_rates():
    """Test accuracy falls with class similarity among the seeds that chose no rate, and rises in the others."""
    rows = []
    for place, norm in enumerate(("BatchNorm", "LayerNorm", "Plain", "RMSNorm", "EvoNormBO")):
        for rate, seed in ((0.1, 0), (0.2, 0), (0.2, 1)):
            row = {"Norm": norm, "lr": rate, "seed": seed, "validation_accuracy": rate, "Class Similarity": place}
            rows.append(row | {"Test Accuracy": 50 - place if seed else 50 + 9 * place})
    included = primary.included_runs(runs_of(rows))
    found = data.influences_on(included.runs, "Class Similarity")
    assert found[association.WITHOUT_TUNING] == pytest.approx(-1)
    assert np.isnan(data.association_of_rates(included).value)  # all norms have the same best rate


def test_pictures_are_of_the_best_rates_where_rates_were_tuned():
    table = tuned_runs().assign(table="results.csv")
    table["run"] = [f"run {index}" for index in range(len(table))]
    rows = table.to_dict("records")
    chosen = tuning.pairs_at_comparable_rates(table, [(row, row["run"]) for row in rows])
    kept = tuning.at_comparable_rates(table).runs
    assert sorted(name for _, name in chosen) == sorted(kept["run"])
    assert {row["init_lr"] for row, _ in chosen} == {"tuned"}
    assert tuning.at_comparable_rates(table.drop(columns="validation_accuracy")).runs["run"].tolist() == list(
        table["run"]
    )


def test_runs_at_one_rate_are_not_tuned():
    runs = tuned_runs()
    assert tuning.at_best_rates(runs[runs["init_lr"] == "1"]) is None
    assert tuning.at_best_rates(runs.drop(columns="validation_accuracy")) is None


# Effects of hyperparameters


def test_an_effect_is_the_mean_over_norms_of_differences_in_one_axis():
    rows = []
    for index, norm in enumerate(("BatchNorm", "LayerNorm", "RMSNorm", "Plain", "GroupNorm", "GroupNorm")):
        for batch, epochs in ((256, 60), (16, 10)):
            accuracy = 50 + index + (batch == 256) * index
            grouping = 4 if index == 5 else 8
            row = {
                "Norm": norm,
                "P Grouping": grouping,
                "Batch Size": batch,
                "epochs": epochs,
                "Test Accuracy": accuracy,
            }
            rows.append(row | {"momentum": 0.9, "weight_decay": 1e-4})
    table = runs_of(rows)
    assert tables.axes_of(table) == {"Batch Size & epochs": ["Batch Size", "epochs"]}
    [found] = rankings.setting_effects(table, "Test Accuracy")
    differences = [0, 1, 2, 3, 4.5]  # the groupings of GroupNorm are averaged
    assert found.value == pytest.approx(np.mean(differences))
    low, high = stats.t.interval(0.95, 4, np.mean(differences), stats.sem(differences))
    assert (found.low, found.high, found.n) == (pytest.approx(low), pytest.approx(high), 6)
    assert found.settings == ["16.0", "256.0"]


# Simulations: about 3 standard errors are allowed


@pytest.mark.parametrize(("seeds", "ratio"), [(2, 1), (3, 4)])
def test_intervals_of_few_seeds_cover_the_truth_also_with_unequal_spread(seeds, ratio):
    found = ranking(seeds, 1, ratio, 20)
    assert found["first"].coverage >= 0.8
    assert found["others"].coverage >= 0.9
    assert found["difference"].coverage >= 0.8
    assert found["ranks"].coverage >= 0.95


def test_intervals_over_cells_cover_the_truth():
    found = ranking(1, 8, 1, 20, of_cells=1.0)
    assert found["others"].coverage >= 0.9
    assert found["ranks"].coverage >= 0.95
    assert effect(8, 60).coverage >= 0.86

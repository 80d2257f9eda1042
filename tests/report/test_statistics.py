"""Statistics of tables of runs against scipy on repeated points and against loops over pairs."""

import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from normstudy.cli import RunError
from normstudy.report import correlation, granulation, rankings, tables

pytestmark = pytest.mark.filterwarnings("error")
SCIPY = {"Pearson": stats.pearsonr, "Spearman": stats.spearmanr, "Kendall": stats.kendalltau}


def table(n=60, seed=0, **columns):
    """A table of n made-up runs in which class similarity goes with accuracy."""
    generator = np.random.default_rng(seed)
    similarity = generator.normal(size=n).round(1)  # with ties
    made = {
        "Model": generator.choice(["VGG", "ResNet-56"], n),
        "Norm": generator.choice(["BatchNorm", "Instance_Normalization", "GroupNorm", "plain"], n),
        "Dataset": "CIFAR-10",
        "Batch Size": generator.choice(["16", "256"], n),
        "Mom & WD": generator.choice(["True", "False"], n),
        "Success": "True",
        "P Grouping": generator.choice(["8.0", "32.0"], n),
        "Class Similarity": similarity.astype(str),
        "Max Eigen": generator.normal(size=n).astype(str),
        "Test Accuracy": (50 - 5 * similarity + generator.normal(size=n)).round(2).astype(str),
        "Train Accuracy": (60 + 5 * generator.normal(size=n)).astype(str),
    }
    return tables.tidy_table(pd.DataFrame(made | columns))


# Tables


def test_older_spellings_and_missing_values_are_understood():
    found = table(
        4, Norm=["Filter_Response_Normalization", "GroupNorm", "evonorm-b0", "Mine"], **{"Trace": ["", "x", "inf", "2"]}
    )
    assert found["Norm"].tolist() == ["FilterResponseNorm", "GroupNorm", "EvoNormBO", "Mine"]
    assert set(found["Model"]) <= {"vgg", "resnet-56"}
    assert found["Label"].str.match(r"GroupNorm p=(8|32)$").tolist() == [False, True, False, False]
    assert found["Trace"].isna().tolist() == [True, True, True, False]
    assert found["class_similarity_pooled"].isna().all()


def test_what_failed_is_what_says_so_or_has_no_accuracy():
    found = table(3, **{"Success": ["False", "True", "True"], "Test Accuracy": ["10", "", "50"]})
    assert found["has_failed"].tolist() == [True, True, False]


def test_gap_and_ratio_are_made_where_they_are_missing():
    found = table(2, **{"Test Accuracy": ["40", "30"], "Train Accuracy": ["80", "0"]})
    assert found["Gap"].tolist() == [40, -30]
    assert found["Gen. Ratio"].iloc[0] == 0.5
    assert np.isnan(found["Gen. Ratio"].iloc[1])


def test_tables_are_stacked(tmp_path):
    for name, columns in (
        ("a", "Model,Norm,Dataset,Batch Size,Test Accuracy"),
        ("b", "Norm,Model,Dataset,Batch Size,Test Accuracy,seed"),
    ):
        (tmp_path / name).write_text(f"{columns}\n" + ",".join("1" for _ in columns.split(",")) + "\n")
    assert len(tables.read_tables([tmp_path / "a", tmp_path / "b"])) == 2


@pytest.mark.parametrize("content", [b"", b"Model,Norm\nvgg,Plain\n", b"\xff\xfe\x00\x01", None])
def test_what_is_no_table_is_named(tmp_path, content):
    path = tmp_path / "x.csv"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(RunError, match=r"x\.csv"):
        tables.read_tables([path])


# Coefficients


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [5, 12, 40])
def test_a_resample_by_counts_is_scipys_coefficient_of_repeated_points(n, seed):
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, 6, n).astype(float), generator.normal(size=n).round(1)
    counts = generator.multinomial(n, np.full(n, 1 / n), size=20)
    found = correlation.resampled_coefficients(x, y, counts)
    for row, times in enumerate(counts):
        a, b = np.repeat(x, times), np.repeat(y, times)
        if np.ptp(a) > 0 and np.ptp(b) > 0:
            for name, function in SCIPY.items():
                assert found[name][row] == pytest.approx(function(a, b)[0], abs=1e-5)


def test_pooled_coefficients_are_scipys():
    runs = table()
    frame = correlation.correlate_measures(runs, ["Class Similarity"], ["Test Accuracy"], resamples=200)
    for row in frame[frame["way"] == "pooled"].itertuples():
        value, p = SCIPY[row.coefficient](runs["Class Similarity"], runs["Test Accuracy"])[:2]
        assert (row.value, row.p, row.n) == (pytest.approx(value), pytest.approx(p), 60)
        assert row.low < row.value < row.high < 0


def test_within_cells_is_the_mean_over_cells_of_scipys():
    runs = table(120)
    frame = correlation.correlate_measures(runs, ["Class Similarity"], ["Test Accuracy"], resamples=200)
    for name, function in SCIPY.items():
        total = weights = 0
        for _, cell in runs.groupby(["Model", "Batch Size", "Mom & WD"]):
            if len(cell) >= 5:
                total += len(cell) * function(cell["Class Similarity"], cell["Test Accuracy"])[0]
                weights += len(cell)
        [row] = frame[(frame["way"] == "within cells") & (frame["coefficient"] == name)].itertuples()
        assert (row.value, row.n) == (pytest.approx(total / weights), weights)


def test_a_setting_is_the_mean_over_its_seeds():
    runs = table(5, Norm=["Plain", "Plain", "BatchNorm", "Plain", "Plain"], Success=["True"] * 4 + ["False"])
    runs = runs.assign(Model="vgg", epochs=["3", "3", "3", "60", "3"], seed=[0, 1, 0, 0, 2], **{"Batch Size": 256.0})
    runs = runs.assign(**{"Mom & WD": True, "Test Accuracy": [70.0, 72, 80, 90, 10], "Trace": [5.0, np.nan, 7, 8, 9]})
    settings = tables.average_over_seeds(runs)
    found = settings.set_index(["Norm", "epochs"])[["Test Accuracy", "Trace"]].to_dict("index")
    assert found == {
        ("Plain", "3"): {"Test Accuracy": 71, "Trace": 5},
        ("BatchNorm", "3"): {"Test Accuracy": 80, "Trace": 7},
        ("Plain", "60"): {"Test Accuracy": 90, "Trace": 8},
    }


def test_more_seeds_of_the_same_norms_make_no_correlation_surer():
    runs = table(6, seed=3, Norm=["Plain", "BatchNorm", "LayerNorm", "RMSNorm", "GroupNorm", "DynamicTanh"])
    runs = runs.assign(Model="vgg", **{"Batch Size": 256.0, "Mom & WD": True})
    frames = [
        correlation.correlate_measures(
            tables.average_over_seeds(table), ["Class Similarity"], ["Test Accuracy"], resamples=200
        )
        for table in (runs, pd.concat([runs] * 4, ignore_index=True))
    ]
    pd.testing.assert_frame_equal(*frames)
    assert frames[0]["n"].tolist() == [6] * 6


def test_within_cells_does_not_see_what_differs_between_cells():
    """Simpson: falls in each cell, rises over all."""
    x = np.tile(np.arange(10.0), 2) + np.repeat([0, 100], 10)
    runs = table(20, **{"Model": ["VGG"] * 20, "Mom & WD": ["True"] * 20, "Batch Size": ["16"] * 10 + ["256"] * 10})
    runs["Class Similarity"], runs["Test Accuracy"] = x, -np.tile(np.arange(10.0), 2) + np.repeat([0, 50], 10)
    frame = correlation.correlate_measures(runs, ["Class Similarity"], ["Test Accuracy"], resamples=200)
    spearman = frame[frame["coefficient"] == "Spearman"].set_index("way")["value"]
    assert spearman["pooled"] > 0.5
    assert spearman["within cells"] == pytest.approx(-1)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """Correlation 0.5 of 40 points, 200 tables: 95 % intervals hold it 90 to 99 % of the time."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        x = generator.normal(size=40)
        y = 0.5 * x + np.sqrt(0.75) * generator.normal(size=40)
        counts = correlation.resample_counts(generator, 40, 400)
        low, high = correlation._interval(correlation.resampled_coefficients(x, y, counts)["Pearson"])
        held += low <= 0.5 <= high
    assert 0.88 * 200 <= held <= 0.99 * 200


@pytest.mark.parametrize(
    ("p", "adjusted"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),
        ([0.5, np.nan, 0.9], [1.0, np.nan, 1.0]),
        ([0.2], [0.2]),
        ([], []),
    ],
)
def test_holm(p, adjusted):
    np.testing.assert_allclose(correlation.holm_adjusted(np.array(p)), adjusted)


def test_holm_rejects_too_much_no_more_often_than_it_says():
    """20 true hypotheses at 5 %: some is rejected in 5 % of 2,000 families, ± 3 standard errors."""
    p = np.random.default_rng(0).uniform(size=(2000, 20))
    rejected = np.mean([correlation.holm_adjusted(family).min() < 0.05 for family in p])
    assert rejected == pytest.approx(0.05, abs=0.015)


@pytest.mark.parametrize("case", ["few", "constant", "missing", "failed", "none"])
def test_no_correlation_where_there_is_nothing_to_correlate(case):
    runs = table(30)
    if case == "few":
        runs = runs.iloc[:4]
    if case == "constant":
        runs["Class Similarity"] = 1.0
    if case == "missing":
        runs["Class Similarity"] = np.nan
    if case == "failed":
        runs["has_failed"] = True
    if case == "none":
        runs = runs.iloc[:0]
    frame = correlation.correlate_measures(runs, ["Class Similarity"], ["Test Accuracy"], resamples=50)
    assert frame["value"].isna().all()
    assert frame["p_holm"].isna().all()
    found, total, _, _ = granulation.granulated_psi(runs.iloc[:1], "Class Similarity", "Test Accuracy")
    assert (found, np.isnan(total)) == ({}, True)


def test_granulated_is_what_loops_over_pairs_give():
    runs = table(80)
    found, total, low, high = granulation.granulated_psi(runs, "Class Similarity", "Test Accuracy", resamples=200)
    axes = ["Label", "Model", "Batch Size", "Mom & WD"]
    assert set(found) == set(axes)
    for axis in axes:
        groups = {}
        for a, b in itertools.combinations(runs.to_dict("records"), 2):
            others = tuple(a[name] for name in axes if name != axis)
            if others == tuple(b[name] for name in axes if name != axis) and a[axis] != b[axis]:
                sign = np.sign(a["Class Similarity"] - b["Class Similarity"]) * np.sign(
                    a["Test Accuracy"] - b["Test Accuracy"]
                )
                groups.setdefault(others, []).append(sign)
        assert found[axis] == (pytest.approx(np.mean([np.mean(signs) for signs in groups.values()])), len(groups))
    assert total == pytest.approx(np.mean([psi for psi, _ in found.values()]))
    assert low < total < high


# Norms


def test_the_ranking_takes_out_what_the_cells_differ_in():
    """A norm that was only tried where everything is easy gains nothing by it."""
    runs = table(9, **{"Model": ["VGG"] * 6 + ["ResNet-56"] * 3, "Batch Size": ["16"] * 9, "Mom & WD": ["True"] * 9})
    runs["Norm"] = ["BatchNorm", "BatchNorm", "Plain", "Plain", "LayerNorm", "LayerNorm", "BatchNorm", "Plain", "Plain"]
    runs["Test Accuracy"] = [90.0, 90, 88, 88, 86, 86, 42, 40, 40]
    ranks = rankings.rank_norms(runs, resamples=200)
    assert ranks["Norm"].tolist() == ["BatchNorm", "Plain", "LayerNorm"]
    assert ranks["advantage"].tolist() == pytest.approx([(2 + 2 + 1) / 3, (0 + 0 - 1 - 1) / 4, -2])
    assert ranks["n"].tolist() == [3, 4, 2]
    assert ranks["rank_low"].tolist() == [1, 2, 3]


def test_each_network_has_a_ranking_of_its_own():
    """BatchNorm is better than EvoNormBO wherever both are, and stands in worse company."""
    rows = [("vgg", "BatchNorm", 77), ("vgg", "EvoNormBO", 75), ("vgg", "Plain", 10)]
    rows += [("vit", "BatchNorm", 38), ("vit", "LayerNorm", 40), ("vit", "RMSNorm", 39)]
    runs = table(6, Model=[row[0] for row in rows], Norm=[row[1] for row in rows]).assign(
        **{"Batch Size": 16, "Mom & WD": True, "Test Accuracy": [float(row[2]) for row in rows]}
    )
    found = rankings.rank_norms_by_network(runs, resamples=50)
    assert {network: ranks["Norm"].tolist() for network, ranks in found.items()} == {
        "vgg": ["BatchNorm", "EvoNormBO", "Plain"],
        "vit": ["LayerNorm", "RMSNorm", "BatchNorm"],
    }


def test_intervals_of_two_norms_mirror_each_other():
    runs = table(12, **{"Model": ["VGG"] * 6 + ["ResNet-56"] * 6, "Batch Size": ["16"] * 12, "Mom & WD": ["True"] * 12})
    runs["Norm"] = ["BatchNorm", "Plain"] * 6
    first, second = rankings.rank_norms(runs, resamples=500).to_dict("records")
    assert first["advantage"] == -second["advantage"] > 0
    assert (first["low"], first["high"]) == (pytest.approx(-second["high"]), pytest.approx(-second["low"]))
    assert first["low"] < first["advantage"] < first["high"]


def test_the_interval_of_norms_covers_the_truth_about_as_often_as_it_says():
    """Two norms that differ by 4 points in 20 cells of two runs each, 100 tables: 95 % intervals hold ± 2."""
    generator, held = np.random.default_rng(0), 0
    runs = table(80, **{"Model": ["VGG"] * 80, "Batch Size": np.repeat(np.arange(20), 4), "Mom & WD": ["True"] * 80})
    runs["Norm"] = ["BatchNorm", "BatchNorm", "Plain", "Plain"] * 20
    for _ in range(100):
        effects = 4 + generator.normal(size=20).repeat(4)
        noise = generator.normal(size=80) + 10 * generator.normal(size=20).repeat(4)
        runs["Test Accuracy"] = 50 + noise + effects * (runs["Norm"] == "BatchNorm")
        row = rankings.rank_norms(runs, resamples=200).iloc[0]
        held += row["low"] <= 2 <= row["high"]
    assert held >= 88


def test_a_norm_that_stands_alone_in_its_cells_is_compared_with_nothing():
    runs = table(4, **{"Norm": ["BatchNorm", "Plain", "RMSNorm", "RMSNorm"], "Mom & WD": ["True"] * 4})
    runs = runs.assign(Model="vgg", **{"Batch Size": [16, 16, 64, 64]})
    assert set(rankings.rank_norms(runs, resamples=50)["Norm"]) == {"BatchNorm", "Plain"}


def test_a_cell_is_equal_in_all_hyperparameters():
    runs = table(4, Norm=["Plain"] * 4).assign(
        epochs=[1, 1, 60, 60], Model="vgg", **{"Batch Size": 16, "Mom & WD": True}
    )
    assert rankings.summarize_cells(runs)[["epochs", "n"]].to_numpy().tolist() == [["1", 2], ["60", 2]]


def test_failed_runs_are_counted_and_not_averaged():
    runs = table(6, **{"Success": ["False"] + ["True"] * 5, "Norm": ["Plain"] * 6, "P Grouping": ["32"] * 6})
    [row] = rankings.rank_norms(runs, resamples=50).itertuples()
    assert (row.n, row.failed) == (5, 1)
    assert rankings.summarize_cells(runs)["failed"].sum() == 1
    assert rankings.summarize_cells(runs)["n"].sum() == 6


def test_one_run_has_no_interval():
    runs = table(3, Norm=["Plain", "Plain", "BatchNorm"]).assign(Model="vgg", **{"Batch Size": 16, "Mom & WD": True})
    runs["Test Accuracy"] = [80.0, 82, 90]
    ranks = rankings.rank_norms(runs, resamples=50)
    assert ranks["n"].tolist() == [1, 2]
    assert ranks[["low", "high", "rank_low", "rank_high"]].isna().all(axis=1).tolist() == [True, False]


def test_a_table_of_failures_has_an_empty_ranking():
    runs = table(3, Success=["False"] * 3)
    assert rankings.rank_norms(runs).empty

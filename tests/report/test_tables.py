"""Tables of runs: spellings, missing values, failed runs, and settings averaged over their seeds."""

import numpy as np
import pytest
from report_helpers import random_runs, runs_of

from normstudy.cli import RunError
from normstudy.report import tables

pytestmark = pytest.mark.filterwarnings("error")


def test_older_spellings_and_missing_values_are_understood():
    found = random_runs(
        4, Norm=["Filter_Response_Normalization", "GroupNorm", "evonorm-b0", "Mine"], **{"Trace": ["", "x", "inf", "2"]}
    )
    assert found["Norm"].tolist() == ["FilterResponseNorm", "GroupNorm", "EvoNormBO", "Mine"]
    assert set(found["Model"]) <= {"vgg", "resnet-56"}
    assert found["Label"].str.match(r"GroupNorm p=(8|32)$").tolist() == [False, True, False, False]
    assert found["Trace"].isna().tolist() == [True, True, True, False]
    assert found["class_similarity_pooled"].isna().all()


def test_what_failed_is_what_says_so_or_has_no_accuracy():
    found = random_runs(3, **{"Success": ["False", "True", "True"], "Test Accuracy": ["10", "", "50"]})
    assert found["has_failed"].tolist() == [True, True, False]


def test_gap_and_ratio_are_made_where_they_are_missing():
    found = random_runs(2, **{"Test Accuracy": ["40", "30"], "Train Accuracy": ["80", "0"]})
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


def test_a_setting_is_the_mean_over_its_seeds():
    runs = random_runs(5, Norm=["Plain", "Plain", "BatchNorm", "Plain", "Plain"], Success=["True"] * 4 + ["False"])
    runs = runs.assign(Model="vgg", epochs=["3", "3", "3", "60", "3"], seed=[0, 1, 0, 0, 2], **{"Batch Size": 256.0})
    runs = runs.assign(**{"Mom & WD": True, "Test Accuracy": [70.0, 72, 80, 90, 10], "Trace": [5.0, np.nan, 7, 8, 9]})
    settings = tables.average_over_seeds(runs)
    found = settings.set_index(["Norm", "epochs"])[["Test Accuracy", "Trace"]].to_dict("index")
    assert found == {
        ("Plain", "3"): {"Test Accuracy": 71, "Trace": 5},
        ("BatchNorm", "3"): {"Test Accuracy": 80, "Trace": 7},
        ("Plain", "60"): {"Test Accuracy": 90, "Trace": 8},
    }


# Settings that build the same network


def test_one_network_has_one_name():
    found = runs_of(
        [
            {"Norm": "GroupNorm", "P Grouping": 1},
            {"Norm": "GroupNorm", "P Grouping": 1e-7},
            {"Norm": "GroupNorm", "P Grouping": 1e-7, "Model": "ViT"},
            {"Norm": "GroupNorm", "P Grouping": 8},
            {"Norm": "InstanceNorm", "P Grouping": 32},
        ]
    )
    assert found["Norm"].tolist() == ["InstanceNorm", "LayerNorm", "GroupNorm", "GroupNorm", "InstanceNorm"]
    assert found["Label"].tolist()[:2] == ["InstanceNorm", "LayerNorm"]
    assert found["Grouping"].isna().tolist() == [True, True, False, False, True]
    listed = tables.as_groupings(found)
    assert sorted(listed["Label"]) == [
        "GroupNorm p=1 (InstanceNorm)",
        "GroupNorm p=1 (InstanceNorm)",
        "GroupNorm p=1e-07",
        "GroupNorm p=1e-07 (LayerNorm)",
        "GroupNorm p=8",
    ]
    assert set(listed["Norm"]) == {"GroupNorm"}


def test_a_network_that_was_trained_under_two_names_is_counted_once(tmp_path, capsys):
    rows = ["Model,Norm,Dataset,Batch Size,Test Accuracy,P Grouping,seed,data,run"]
    rows += ["vgg,InstanceNorm,CIFAR-10,256,50,32,0,f,one", "vgg,GroupNorm,CIFAR-10,256,50,1,0,f,two"]
    rows += ["vgg,GroupNorm,CIFAR-10,256,51,1,1,f,three"]  # another seed
    (tmp_path / "table.csv").write_text("\n".join(rows) + "\n")
    found = tables.read_tables([tmp_path / "table.csv"])
    assert found["run"].tolist() == ["one", "three"]
    assert "counted once: two is the same network as another run of InstanceNorm" in capsys.readouterr().err


def test_settings_that_a_network_cannot_have_are_equal():
    rows = [
        {"Norm": "Plain", "Model": model, "SkipInit": skip, "cfg": "cfg_10"}
        for model in ("VGG", "ResNet-56")
        for skip in (True, False)
    ]
    found = runs_of(rows)
    assert found["SkipInit"].tolist() == [False, False, True, False]
    assert found["cfg"].tolist() == ["cfg_10", "cfg_10", "", ""]


def test_a_column_that_follows_from_others_is_no_axis():
    rows = [
        {
            "Model": model,
            "image_size": size,
            "Batch Size": batch,
            "epochs": epochs,
            "momentum": m,
            "Norm": "Plain",
            "weight_decay": m / 1e3,
        }
        | {"Mom & WD": m > 0}
        for model, size in (("VGG", ""), ("ViT", 224))
        for batch, epochs in ((256, 60), (64, 60), (16, 10))
        for m in (0.9, 0)
    ]
    assert tables.axes_of(runs_of(rows)) == {
        "Model & image_size": ["Model", "image_size"],
        "Batch Size": ["Batch Size", "epochs"],
        "momentum & weight_decay": ["momentum", "weight_decay"],
    }

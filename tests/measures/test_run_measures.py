"""The command run_measures.py and its file."""

import csv
import math

import pytest
import torch
from measures_helpers import ONE_PRODUCT, read

import run_hessian
import run_measures
from config import peak_learning_rate
from models import build_from_config
from normstudy.datasets import balanced_subset, evaluation_batches, load
from normstudy.measures import adaptive_sharpness, generalization_measures, weight_noise
from normstudy.plots import draw_measures
from normstudy.storage import stored_config

SMALL = ["--samples=20", "--batch_size=20", "--dtype=float64"]
QUICK = ["--samples=20", "--measures=margin,weights"]


@pytest.fixture
def run(narrow, train, tmp_path):
    """A finished run of a narrow VGG on two classes, with checkpoints of epochs 0, 5 and 6."""
    return train(tmp_path, "--probe_layers=False")


@pytest.fixture(autouse=True)
def fewer(monkeypatch):
    monkeypatch.setattr(weight_noise, "DRAWS", 2)
    monkeypatch.setattr(weight_noise, "PRECISION", 1.3)
    monkeypatch.setattr(adaptive_sharpness, "STEPS", 2)


def test_the_file_holds_the_measures_of_the_network_and_the_table_their_values(run, capsys):
    assert run_hessian.main([str(run.path), *ONE_PRODUCT, "--dtype=float64"]) == 0
    assert run_measures.main([str(run.path), *SMALL]) == 0
    assert "margin, weights, noise, sharpness, gradients, about" in capsys.readouterr().out
    content = read(run.path / "measures.json")
    config = stored_config(run)
    images = load(config).train
    [batch] = evaluation_batches(images.take(balanced_subset(images.labels, 20, 2, seed=0)), config.image_size)
    model, initial = (build_from_config(config, 2).double().eval() for _ in range(2))
    for network, epoch in ((model, 6), (initial, 0)):
        network.load_state_dict(torch.load(run.checkpoint(epoch), weights_only=True))
    rate = peak_learning_rate(config)
    expected = generalization_measures(
        model, initial, [(batch[0].double(), batch[1])], torch.Generator().manual_seed(0), learning_rate=rate
    )
    exact = ("l2_norm", "distance_from_init", "margin_10", "cross_entropy", "gradient_norm", "loss_range")
    for name in (*exact, "gradient_predictiveness", "empirical_fisher_trace"):
        assert content[name] == pytest.approx(expected[name], rel=1e-6)
    assert content.keys() >= expected.keys()
    hessian = read(run.path / "hessian.json")
    sums = [
        sum(w * v / (v + 1) for v, w in zip(probe["nodes"], probe["weights"], strict=True) if v > 0)
        for probe in hessian["probes"]
    ]
    assert content["effective_dimension_standard_error"] is None  # a single probe
    assert content["effective_dimension"] == pytest.approx(hessian["dimension"] * sum(sums) / len(sums))
    assert content["distance_from_init"] > 0
    assert content["learning_rate"] == rate
    with open(run.path.parent / "results.csv", newline="") as file:
        [row] = [row for row in csv.DictReader(file) if row["run"] == run.path.name]
    assert float(row["margin_10"]) == content["margin_10"]
    assert row["measures_samples"] == "20"
    assert row["inverse_squared_margin"] == "" or float(row["inverse_squared_margin"]) > 0


def test_groups_are_chosen_and_the_rest_is_absent(run):
    assert run_measures.main([str(run.path), *QUICK]) == 0
    content = read(run.path / "measures.json")
    assert math.isfinite(content["margin_10"])
    assert "pac_bayes_sigma" not in content
    assert "gradient_norm" not in content
    assert (run.path / "measures.png").read_bytes()[:4] == b"\x89PNG"
    with pytest.raises(ValueError, match="'marginn' is not one of margin, weights"):
        run_measures.groups("weights, marginn")
    assert run_measures.groups(" Weights,margin ") == "margin,weights"


def test_every_group_alone_has_a_picture(run, tmp_path):
    for group in run_measures.GROUPS:
        assert run_measures.main([str(run.path), "--samples=20", f"--measures={group}", f"--tag={group}"]) == 0
        picture = run.path / f"measures-{group}.png"
        picture.unlink()
        draw_measures(run.path / f"measures-{group}.json")
        assert picture.exists()


def test_measures_over_training_and_without_the_first_checkpoint(run):
    run.checkpoint(0).unlink()
    assert run_measures.main([str(run.path), *QUICK, "--checkpoint=all"]) == 0
    contents = [read(path) for path in run.measurements("measures")]
    assert [content["epoch"] for content in contents] == [5, 6]
    assert all(content["distance_from_init"] is None for content in contents)
    assert (run.path / "measures_over_training.png").exists()


def test_the_number_of_images_depends_on_the_device(run):
    assert run_measures.main([str(run.path), "--measures=weights"]) == 0
    settings = read(run.path / "measures.json")["settings"]
    assert settings["samples"] == (run_measures.SAMPLES_ON_GPU if torch.cuda.is_available() else run_measures.SAMPLES)


def test_a_network_that_cannot_be_measured_is_left_out(run, capsys):
    assert run_measures.main([str(run.path), "--samples=20", "--checkpoint=epoch_0042"]) == 1
    assert "left out" in capsys.readouterr().err


def test_the_effective_dimension_is_not_that_of_another_matrix(run):
    """A tag can be the name of a matrix: measures-filter.json is not next to the Hessian that it needs."""
    assert run_hessian.main([str(run.path), *ONE_PRODUCT, "--scale=filter"]) == 0
    assert run_measures.main([str(run.path), *QUICK, "--tag=filter"]) == 0
    assert read(run.path / "measures-filter.json")["effective_dimension"] is None

"""run_hessian.py and run_class_similarity.py on small runs: what they leave, that it is right, what they refuse."""

import csv
import math
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from torch.nn import functional as F

import main
import run_class_similarity
import run_hessian
from models import build_from_config
from normstudy.cli import stops_at_safe_points
from normstudy.datasets import batches, loading, splits
from normstudy.measures import hessian as measures_hessian
from normstudy.plots import class_similarity, hessian
from normstudy.storage import files, run_directory, run_settings
from utils import class_means, mean_pairwise_cosine

ROOT = Path(__file__).parents[2]
SMALL = [
    "--dataset=Synthetic",
    "--image_size=8",
    "--train_samples=50",
    "--test_samples=20",
    "--batch_size=16",
    "--device=cpu",
    "--probe_layers=False",
]
SMALL_IMAGES = ["--dataset=ImageFolder", "--batch_size=16", "--device=cpu", "--probe_layers=False"]
QUICK = ["--lanczos_steps=2", "--trace_probes=1", "--samples=30"]
ONE_PRODUCT = ["--lanczos_steps=1", "--num_probes=1", "--trace_probes=0", "--samples=30"]


def copy(source, target):
    """Copies a folder; checkpoints, which are large, are linked and may only be replaced."""
    shutil.copytree(source, target, copy_function=lambda a, b: (os.link if a.endswith(".pt") else shutil.copy2)(a, b))


def replace(path, content):
    path.unlink()
    path.write_bytes(content)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run with checkpoints of epochs 5 and 6, and an unfinished, a diverged and a damaged one."""
    results = tmp_path_factory.mktemp("trained")
    done = run_directory.RunDirectory(main.main([*SMALL, "--epochs=6", f"--results_dir={results}"]))
    unfinished, diverged, damaged = (results / name for name in ("unfinished", "diverged", "damaged"))
    for folder in (unfinished, diverged, damaged):
        copy(done.path, folder)
    (unfinished / "summary.json").unlink()
    summary = read(diverged / "summary.json")
    files.write_json(diverged / "summary.json", summary | {"status": "diverged", "diverged_at_step": 3})
    replace(damaged / "checkpoints" / "epoch_0006.pt", done.checkpoint(6).read_bytes()[:1000])
    return results


@pytest.fixture
def results(trained, tmp_path):
    """A copy of the results folder, and the name of the run that is done."""
    copy(trained, tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def run(results):
    return run_directory.RunDirectory(next(results.glob("vgg_*")))


read = files.read_json


def test_hessian_json_holds_what_it_should(run):
    assert run_hessian.main([str(run.path), *QUICK]) == 0
    content = read(run.path / "hessian.json")
    assert content["dimension"] == sum(content_sizes(run))
    assert content["products"] == 2 * 2 + 1
    assert content["num_samples"] == 30
    assert content["epoch"] == 6
    assert content["settings"]["samples"] == 30
    assert content["versions"]["torch"] == str(torch.__version__)
    for probe in content["probes"]:
        assert sum(probe["weights"]) == pytest.approx(1)
        assert len(probe["nodes"]) == 2
    for key in ("trace", "eigen_mean", "eigen_variance"):
        assert content[f"{key}_standard_error"] > 0
    assert content["max_eigen_residual"] >= 0 <= content["min_eigen_residual"]
    assert content["max_eigen"] > content["min_eigen"]
    assert content["eigen_mean"] == pytest.approx(content["trace"] / content["dimension"])
    layers = content["layer_traces"].values()
    assert sum(layer["trace"] for layer in layers) == pytest.approx(content["trace"], rel=1e-4)
    assert len(content["layer_traces"]) == 21
    assert (run.path / "hessian.png").read_bytes()[:4] == b"\x89PNG"


def content_sizes(run):
    state = torch.load(run.checkpoint(6), weights_only=True)
    return [tensor.numel() for name, tensor in state.items() if "running" not in name]


def reference(run, samples, epoch=6):
    """(model, images, labels) as a measurement should see them, made step by step."""
    config = run_settings.stored_config(run)
    dataset = loading.load(config)
    model = build_from_config(config, 10).double().eval()
    model.load_state_dict(torch.load(run.checkpoint(epoch), weights_only=True))
    chosen = splits.balanced_subset(dataset.train.labels, samples, 10, seed=0)
    split = dataset.train.take(chosen)
    return model, batches.prepare(split.images, None, config.image_size).double(), split.labels


def test_loss_and_gradient_are_those_of_the_subset_in_eval_mode(run):
    run_hessian.main([str(run.path), *ONE_PRODUCT, "--dtype=float64"])
    model, images, labels = reference(run, 30)
    loss = F.cross_entropy(model(images), labels)
    loss.backward()
    norm = math.sqrt(sum(p.grad.square().sum().item() for p in model.parameters()))
    content = read(run.path / "hessian.json")
    assert content["loss"] == pytest.approx(loss.item(), rel=1e-10)
    assert content["gradient_norm"] == pytest.approx(norm, rel=1e-8)


def test_the_trace_probes_are_quadratic_forms_of_the_hessian(run):
    """One probe of one step: the trace is vᵀHv of its Rademacher vector, by two backward passes."""
    run_hessian.main([str(run.path), *ONE_PRODUCT])
    model, images, labels = reference(run, 30)
    parameters = list(model.parameters())
    dimension = sum(p.numel() for p in parameters)
    signs = torch.randint(0, 2, (dimension,), generator=splits.seeded_generator("hessian", 0), dtype=torch.int8)
    vector = signs.double() * 2 - 1
    parts = [part.view_as(p) for part, p in zip(vector.split([p.numel() for p in parameters]), parameters, strict=True)]
    gradients = torch.autograd.grad(F.cross_entropy(model(images), labels), parameters, create_graph=True)
    products = torch.autograd.grad(gradients, parameters, parts)
    exact = sum((product * part).sum().item() for product, part in zip(products, parts, strict=True))
    content = read(run.path / "hessian.json")
    assert content["trace"] == pytest.approx(exact, rel=2e-2)
    assert content["trace_standard_error"] is None


def test_trace_probes_are_added_for_the_error_that_is_asked_for(run, capsys):
    flags = [str(run.path), *QUICK, "--num_probes=1"]
    assert run_hessian.main([*flags, "--trace_probes=2", "--trace_error=1e-9"]) == 0
    content = read(run.path / "hessian.json")
    assert content["trace_samples"] == 1 + 20 * 2
    assert content["products"] == 2 + 20 * 2
    said = capsys.readouterr()
    assert "at least 4 products" in said.out
    part = content["trace_standard_error"] / abs(content["trace"])
    assert said.err == f"the standard error is still {part:.0%} of the trace after 41 probes\n"
    assert run_hessian.main([*flags, "--trace_probes=2", "--trace_error=1e9", "--overwrite"]) == 0
    assert read(run.path / "hessian.json")["trace_samples"] == 3
    assert capsys.readouterr().err == ""


def test_the_batch_size_changes_no_result(run):
    run_hessian.main([str(run.path), *ONE_PRODUCT, "--dtype=float64"])
    expected = read(run.path / "hessian.json")
    run_hessian.main([str(run.path), *ONE_PRODUCT, "--dtype=float64", "--batch_size=11", "--overwrite"])
    content = read(run.path / "hessian.json")
    for key in ("trace", "eigen_variance", "max_eigen", "min_eigen", "loss"):
        assert content[key] == pytest.approx(expected[key], rel=1e-6), key
    assert content["sample_indices_sha256"] == expected["sample_indices_sha256"]


def test_the_same_command_gives_the_same_numbers(run):
    assert run_hessian.main([str(run.path), *QUICK]) == 0
    first = read(run.path / "hessian.json")
    assert run_hessian.main([str(run.path), *QUICK, "--overwrite=True"]) == 0
    second = read(run.path / "hessian.json")
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}


def test_the_gauss_newton_matrix_has_no_negative_eigenvalues(run):
    assert run_hessian.main([str(run.path), *QUICK, "--curvature=ggn"]) == 0
    content = read(run.path / "hessian.json")
    assert content["settings"]["curvature"] == "ggn"
    assert content["min_eigen"] > -1e-5 * content["max_eigen"]


def test_batch_statistics_give_other_numbers(run):
    run_hessian.main([str(run.path), *ONE_PRODUCT])
    eval_mode = read(run.path / "hessian.json")
    run_hessian.main([str(run.path), *ONE_PRODUCT, "--bn_mode=train", "--overwrite=True"])
    train_mode = read(run.path / "hessian.json")
    assert train_mode["loss"] != pytest.approx(eval_mode["loss"], rel=1e-3)


def test_all_checkpoints_give_curvature_over_training(run):
    assert run_hessian.main([str(run.path), *ONE_PRODUCT, "--checkpoint=all"]) == 0
    assert read(run.path / "hessian_epoch_0005.json")["epoch"] == 5
    assert read(run.path / "hessian.json")["epoch"] == 6
    assert (run.path / "hessian_epoch_0005.png").exists()
    assert (run.path / "hessian_over_training.png").read_bytes()[:4] == b"\x89PNG"
    assert run_class_similarity.main([str(run.path), "--checkpoint=all"]) == 0
    assert read(run.path / "class_similarity_epoch_0005.json")["epoch"] == 5
    assert (run.path / "class_similarity_over_training.png").exists()


def test_one_checkpoint_by_name(run):
    assert run_class_similarity.main([str(run.path), "--checkpoint=epoch_0005"]) == 0
    assert read(run.path / "class_similarity_epoch_0005.json")["epoch"] == 5
    assert not (run.path / "class_similarity.json").exists()


def test_class_similarity_is_that_of_brute_force(run):
    assert run_class_similarity.main([str(run.path), "--dtype=float64", "--batch_size=7"]) == 0
    content = read(run.path / "class_similarity.json")
    model, images, labels = reference(run, 50)
    with torch.no_grad():
        features = model.features(images)
    means = class_means(features, labels, 10)
    pooled = class_means(features.mean((2, 3)), labels, 10)
    centred = means - features.flatten(1).mean(0)
    for key, rows in (("", means), ("_pooled", pooled), ("_centred", centred)):
        assert content[f"class_similarity{key}"] == pytest.approx(mean_pairwise_cosine(rows), rel=1e-8)
    within = (features.flatten(1) - means[labels]).square().sum(1).mean().item()
    assert content["within_class_variance"] == pytest.approx(within, rel=1e-8)
    between = (centred[labels]).square().sum(1).mean().item()
    assert content["within_over_between"] == pytest.approx(within / between, rel=1e-8)
    matrix = torch.tensor(content["matrix"])
    assert matrix.shape == (10, 10)
    assert torch.equal(matrix, matrix.T)
    assert content["classes"] == [f"pattern {index}" for index in range(10)]
    assert (run.path / "class_similarity.png").read_bytes()[:4] == b"\x89PNG"


def test_the_test_images_can_be_measured(run):
    assert run_class_similarity.main([str(run.path), "--split=test"]) == 0
    assert read(run.path / "class_similarity.json")["num_samples"] == 20


def test_pictures_are_drawn_from_the_json_alone(run, tmp_path):
    run_hessian.main([str(run.path), *QUICK])
    run_class_similarity.main([str(run.path)])
    for name, draw in (("hessian", hessian.draw_hessian), ("class_similarity", class_similarity.draw_class_similarity)):
        shutil.copy(run.path / f"{name}.json", tmp_path)
        draw(tmp_path / f"{name}.json")
        assert (tmp_path / f"{name}.png").read_bytes() == (run.path / f"{name}.png").read_bytes()


def test_the_density_of_a_probe_integrates_to_one():
    probes = [{"nodes": [-1.0, 0.0, 5.0], "weights": [0.2, 0.7, 0.1]}]
    points = torch.linspace(-3, 8, 20001, dtype=torch.float64).numpy()
    density = hessian.spectral_density(probes, points, 0.1)
    assert density.shape == (1, 20001)
    assert density.sum() * (points[1] - points[0]) == pytest.approx(1, abs=1e-6)


def test_the_table_of_runs_takes_the_measures(run, results):
    run_hessian.main([str(run.path), *QUICK])
    run_class_similarity.main([str(run.path)])
    with open(results / "results.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["run"] == run.path.name)
    hessian, similarity = read(run.path / "hessian.json"), read(run.path / "class_similarity.json")
    assert float(row["Trace"]) == hessian["trace"]
    assert float(row["Max Eigen"]) == hessian["max_eigen"]
    assert float(row["trace_standard_error"]) == hessian["trace_standard_error"]
    assert float(row["Class Similarity"]) == similarity["class_similarity"]
    assert row["hessian_samples"] == "30"


def test_the_table_takes_no_other_matrix_for_the_hessian(run, results):
    run_hessian.main([str(run.path), *QUICK, "--curvature=ggn"])
    with open(results / "results.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["run"] == run.path.name)
    assert row["Trace"] == ""


# What is left out


@pytest.mark.parametrize("command", [run_hessian, run_class_similarity])
def test_what_cannot_be_measured_gets_one_line_and_the_rest_is_measured(command, run, results, capsys):
    flags = QUICK if command is run_hessian else ["--samples=30"]
    assert command.main([f"--results_dir={results}", *flags]) == 1
    name = "hessian" if command is run_hessian else "class_similarity"
    assert (run.path / f"{name}.json").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for word in ("unfinished", "diverged", "damaged"):
        assert sum(word in line for line in lines) == 1, lines
    assert [path.parent.name for path in results.glob(f"*/{name}.json")] == [run.path.name]


def test_what_is_measured_is_not_measured_again(run, results, capsys):
    for broken in ("unfinished", "diverged", "damaged"):
        shutil.rmtree(results / broken)
    assert run_class_similarity.main([f"--results_dir={results}"]) == 0
    stamp = (run.path / "class_similarity.json").stat().st_mtime_ns
    assert run_class_similarity.main([f"--results_dir={results}"]) == 0
    assert run_class_similarity.main([str(run.path)]) == 0
    assert (run.path / "class_similarity.json").stat().st_mtime_ns == stamp
    assert "1 of 1 runs" in capsys.readouterr().out


def test_other_settings_are_not_passed_off_as_these(run, capsys):
    assert run_class_similarity.main([str(run.path)]) == 0
    before = (run.path / "class_similarity.json").read_bytes()
    assert run_class_similarity.main([str(run.path), "--samples=20"]) == 1
    assert "samples=10000, here 20" in capsys.readouterr().err
    assert (run.path / "class_similarity.json").read_bytes() == before


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (lambda run: [str(run.checkpoint(6))], "give the run's folder, and --checkpoint"),
        (lambda run: [str(run.path.parent)], "--results_dir="),
        (lambda run: [str(run.path), "--samples=5"], "raise --samples"),
    ],
    ids=["file", "folder above", "too few images"],
)
def test_what_is_not_quite_right_gets_a_hint(run, flags, words, capsys):
    assert run_class_similarity.main(flags(run)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


def test_images_that_are_not_there_are_said_with_the_run_and_where_its_path_comes_from(small, tmp_path, narrow, capsys):
    images = tmp_path / "images"
    shutil.copytree(small[-1].partition("=")[2], images)
    folder = main.main([*SMALL_IMAGES, f"--data_dir={images}", "--epochs=1", f"--results_dir={tmp_path}"])
    shutil.move(images, tmp_path / "moved")
    assert run_class_similarity.main([str(folder)]) == 1
    line = capsys.readouterr().err
    assert all(words in line for words in (str(folder), f"config.json says that they lie in {images}", "--data_dir"))
    assert run_class_similarity.main([str(folder), f"--data_dir={tmp_path / 'moved' / 'train'}"]) == 1
    assert f"try --data_dir={tmp_path / 'moved'}" in capsys.readouterr().err
    assert run_class_similarity.main([str(folder), f"--data_dir={tmp_path / 'moved'}"]) == 0
    (tmp_path / "moved" / "train" / "cat" / "0.png").unlink()
    assert run_class_similarity.main([str(folder), f"--data_dir={tmp_path / 'moved'}", "--overwrite=True"]) == 1
    line = capsys.readouterr().err
    assert "2 classes, 50 training images" in line
    assert "2 classes, 49 training images" in line


def test_one_image_of_a_class_has_no_variance_within_it(run, capsys):
    assert run_class_similarity.main([str(run.path), "--samples=10"]) == 0
    content = read(run.path / "class_similarity.json")
    assert (content["within_class_variance"], content["within_over_between"]) == (0.0, None)
    assert "variance undefined" in capsys.readouterr().out


def test_batch_statistics_are_said_to_matter_or_not(tmp_path, capsys):
    for norm, matters in (("BatchNorm", True), ("LayerNorm", False)):
        folder = main.main([*SMALL, f"--norm_type={norm}", "--epochs=1", f"--results_dir={tmp_path}"])
        assert run_hessian.main([str(folder), *ONE_PRODUCT, "--bn_mode=train"]) == 0
        assert ("--bn_mode=train changes nothing" in capsys.readouterr().err) != matters
        assert read(folder / "hessian.json")["has_batch_statistics"] == matters


@pytest.mark.parametrize(
    ("value", "residual", "words"),
    [
        (44.92, 11.3, "45 (residual 11)"),
        (-1.902, 0.53, "-1.9 (residual 0.5)"),
        (44.9217, 6e-06, "44.92 (residual 6e-06)"),
        (3.0, 0.0, "3 (residual 0)"),
        (-0.04, 1.2, "0 (residual 1)"),
        (1234.5, 3e7, "0 (residual 3e+07)"),
        (1.5, math.inf, "1.5 (residual inf)"),
    ],
)
def test_an_eigenvalue_has_no_more_digits_than_are_sure(value, residual, words):
    assert hessian.format_with_residual(value, residual) == words


def damage_config(run, **changes):
    settings = read(run.config)
    run.config.unlink()
    files.write_json(run.config, {k: v for k, v in (settings | changes).items() if v is not ...})


def forget_checksums(run):
    """As where checkpoints come from somewhere else."""
    summary = read(run.summary)
    del summary["files"], summary["identity"]
    run.summary.unlink()
    files.write_json(run.summary, summary)


def damage_unchecked_config(run, **changes):
    damage_config(run, **changes)
    forget_checksums(run)


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: damage_config(run, momentum=...), "another version"),
        (lambda run: damage_config(run, norm_type="LayerNorm"), "not of the same run"),
        (lambda run: damage_unchecked_config(run, cfg="cfg_20"), "does not fit"),
        (lambda run: damage_unchecked_config(run, norm_type="Plain"), "does not fit"),
        (lambda run: damage_unchecked_config(run, seed=1), "other images"),
        (lambda run: run.config.write_text("{"), "cannot be read"),
        (lambda run: run.config.unlink(), "missing"),
        (lambda run: run.summary.write_text("{}"), "damaged"),
        (lambda run: shutil.rmtree(run.path / "checkpoints"), "no checkpoints"),
        (lambda run: replace(run.checkpoint(6), b""), "damaged"),
        (lambda run: replace(run.checkpoint(6), run.checkpoint(5).read_bytes()), "not what this run wrote"),
        (lambda run: (forget_checksums(run), replace(run.checkpoint(6), run.last.read_bytes())), "does not fit"),
    ],
)
def test_a_run_that_is_not_sound_is_left_out_with_one_line(run, damage, words, capsys):
    damage(run)
    assert run_hessian.main([str(run.path), *QUICK]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert words in errors[0]
    assert not (run.path / "hessian.json").exists()


def test_a_network_that_is_not_finite_is_left_out(run, capsys):
    state = torch.load(run.checkpoint(6), weights_only=True)
    state["classifier.weight"][0, 0] = math.nan
    run.checkpoint(6).unlink()
    torch.save(state, run.checkpoint(6))
    forget_checksums(run)
    assert run_hessian.main([str(run.path), *QUICK]) == 1
    assert "classifier.weight that are not finite" in capsys.readouterr().err


def test_a_checkpoint_that_is_not_there_is_named(run, capsys):
    assert run_hessian.main([str(run.path), *QUICK, "--checkpoint=3"]) == 1
    assert "no checkpoint epoch_0003; it has epoch_0005, epoch_0006" in capsys.readouterr().err


def test_too_little_memory_for_the_basis_names_the_flag(run, capsys, monkeypatch):
    monkeypatch.setattr(measures_hessian, "free_memory", lambda device: 1e8)
    assert run_hessian.main([str(run.path), "--lanczos_steps=40", "--samples=30"]) == 1
    error = capsys.readouterr().err
    assert "lower --lanczos_steps to 2 or less" in error
    assert not (run.path / "hessian.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the device is there")
def test_a_basis_device_that_is_not_there_is_said(run, capsys):
    assert run_hessian.main([str(run.path), *ONE_PRODUCT, "--basis_device=cuda"]) == 1
    assert "cuda is not on this machine" in capsys.readouterr().err


def test_a_run_without_its_settings_is_not_passed_over(run, results, capsys):
    run.config.unlink()
    assert run_class_similarity.main([f"--results_dir={results}"]) == 1
    assert f"{run.config} is missing" in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_made_smaller(run, monkeypatch, capsys):
    run_hessian.main([str(run.path), *ONE_PRODUCT])
    expected = read(run.path / "hessian.json")
    assert "a batch of 30 holds" in capsys.readouterr().out
    monkeypatch.setattr(measures_hessian, "place_basis", lambda *_: "cpu")
    monkeypatch.setattr(measures_hessian, "free_memory", lambda device: 2e6)
    assert run_hessian.main([str(run.path), *ONE_PRODUCT, "--overwrite"]) == 0
    assert re.search(r"a batch of [1-9] holds", capsys.readouterr().out)
    assert read(run.path / "hessian.json")["trace"] == pytest.approx(expected["trace"], rel=1e-2)
    assert run_hessian.main([str(run.path), *ONE_PRODUCT, "--overwrite", "--bn_mode=train"]) == 1
    assert "lower --batch_size to" in capsys.readouterr().err


def test_graphs_are_kept_where_they_fit_and_change_no_result(run, monkeypatch, capsys):
    flags = [str(run.path), *ONE_PRODUCT, "--dtype=float64", "--overwrite"]
    run_hessian.main(flags)
    assert "the graphs of all, kept for speed" in capsys.readouterr().out
    kept = read(run.path / "hessian.json")
    monkeypatch.setattr(measures_hessian, "fit_graphs", lambda *_: 0)
    run_hessian.main(flags)
    assert "kept for speed" not in capsys.readouterr().out
    assert read(run.path / "hessian.json")["trace"] == pytest.approx(kept["trace"], rel=1e-9)


def test_the_graphs_must_leave_room(run, monkeypatch, capsys):
    monkeypatch.setattr(measures_hessian, "place_basis", lambda *_: "cpu")
    monkeypatch.setattr(measures_hessian, "free_memory", lambda device: 2e6)
    run_hessian.main([str(run.path), *ONE_PRODUCT, "--overwrite"])
    assert "kept for speed" not in capsys.readouterr().out


def test_batch_statistics_belong_to_their_batch_size(run, capsys):
    flags = [str(run.path), *ONE_PRODUCT, "--bn_mode=train"]
    assert run_hessian.main([*flags, "--batch_size=30"]) == 0
    assert run_hessian.main([*flags, "--batch_size=10"]) == 1
    assert "batch_size=30, here 10" in capsys.readouterr().err


def test_a_run_that_another_process_works_on_is_left_out(run, capsys):
    with run.lock():
        assert run_class_similarity.main([str(run.path)]) == 1
    assert f"worked on by process {os.getpid()}" in capsys.readouterr().err


def test_more_samples_than_there_are_means_all(run):
    assert run_hessian.main([str(run.path), "--lanczos_steps=1", "--trace_probes=0", "--num_probes=1"]) == 0
    assert read(run.path / "hessian.json")["num_samples"] == 50


def interrupted(presses, checks):
    """How many of the checks were passed before so many presses of Ctrl-C ended the work."""
    passed = 0
    try:
        with stops_at_safe_points() as points:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
            for _ in range(checks):
                passed += 1
                points.check()
    except KeyboardInterrupt:
        return passed
    pytest.fail("the interrupt was lost")


@pytest.mark.parametrize(("presses", "checks", "passed"), [(1, 3, 1), (1, 0, 0), (2, 3, 0)])
def test_an_interrupt_waits_for_a_safe_point_and_a_second_does_not(presses, checks, passed):
    before = signal.getsignal(signal.SIGINT)
    assert interrupted(presses, checks) == passed
    assert signal.getsignal(signal.SIGINT) is before


# The command line


def command(script, *flags):
    return subprocess.run([sys.executable, script, *flags], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", ["run_hessian.py", "run_class_similarity.py"])
def test_help_teaches(script):
    done = command(script, "--help")
    assert done.returncode == 0
    assert "--checkpoint" in done.stdout
    assert "examples:" in done.stdout


@pytest.mark.parametrize("script", ["run_hessian.py", "run_class_similarity.py"])
@pytest.mark.parametrize(
    "flag", ["--samples=0", "--checkpoint=first", "--device=gpu", "--sample=3", "--results_dir=nowhere", "--dtype=half"]
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(script, flag):
    done = command(script, flag)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_runs_is_said(tmp_path):
    done = command("run_hessian.py", f"--results_dir={tmp_path}")
    assert done.returncode == 2
    assert "there are no runs" in done.stderr


def test_left_out_runs_show_in_the_exit_code(run):
    done = command("run_class_similarity.py", str(run.path), str(run.path / "nowhere"))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"left out: {run.path / 'nowhere'} is not a folder"]
    assert (run.path / "class_similarity.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT")
def test_ctrl_c_keeps_what_is_finished(run):
    assert command("run_hessian.py", str(run.path), "--checkpoint=5", *ONE_PRODUCT).returncode == 0
    slow = [str(run.path), *ONE_PRODUCT, "--trace_probes=100000"]
    process = subprocess.Popen(
        [sys.executable, "run_hessian.py", *slow], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    process.stdout.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(error.splitlines()) == 1
    assert "the same command measures the rest" in error
    assert read(run.path / "hessian_epoch_0005.json")["products"] == 1
    assert not (run.path / "hessian.json").exists()

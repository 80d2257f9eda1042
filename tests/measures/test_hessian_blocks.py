"""run_hessian.py: blocks of images, scales, eigenvectors, several measurements, and measurements that were stopped."""

import csv
import math
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import NARROW
from measures_helpers import QUICK, SMALL, copy, read, reference
from scipy import stats
from torch.nn import functional as F

import config
import main
import run_hessian
from normstudy.measures import hessian_operator, probe_store
from normstudy.measures.hessian_operator import number_of_blocks
from normstudy.plots import hessian
from normstudy.storage import RunDirectory, measurement_name

ROOT = Path(__file__).parents[2]
BLOCKS = ["--lanczos_steps=2", "--num_probes=1", "--trace_probes=2", "--samples=30", "--image_blocks=5"]


@pytest.fixture(scope="module")
def narrow_results(tmp_path_factory):
    """Results with a run of a narrow VGG, whose measurements take a second."""
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setitem(config.VGG_LAYERS, "cfg_10", NARROW)
        results = tmp_path_factory.mktemp("narrow")
        main.main([*SMALL, "--epochs=6", f"--results_dir={results}"])
    return results


@pytest.fixture
def results(narrow_results, tmp_path, narrow):
    copy(narrow_results, tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def run(results):
    return RunDirectory(next(results.glob("vgg_*")))


@pytest.fixture
def wide_run(trained, tmp_path):
    copy(trained, tmp_path / "trained")
    return RunDirectory(next((tmp_path / "trained").glob("vgg_*")))


@pytest.mark.parametrize(
    ("samples", "wanted", "found"),
    [(130, 10, 10), (4096, 10, 16), (100, 10, 10), (131, 10, 10), (60, 1, 1), (7, 10, 7), (12, 10, 12), (22, 10, 11)],
)
def test_the_number_of_blocks_divides_the_images_where_it_can(samples, wanted, found):
    assert number_of_blocks(samples, wanted) == found


def test_errors_of_probes_and_images_are_in_the_file(run, capsys):
    assert run_hessian.main([str(run.path), *BLOCKS]) == 0
    content = read(run.path / "hessian.json")
    assert content["image_blocks"] == 5
    assert content["block_size"] == 6
    assert content["products"] == 2 + 2 + 1 + 2  # probes, error of the largest eigenvalue, two halves of two products
    for key in ("trace_image_error", "trace_total_error", "max_eigen_image_error", "eigen_mean_total_error"):
        assert content[key] > 0, key
    assert content["trace_total_error"] >= 0.999 * content["trace_standard_error"]
    low, high = content["trace_interval"]
    assert low < content["trace"] < high
    assert content["max_eigen_cross_fitted"] > 0
    assert content["max_eigen_cross_fitted_residual"] > 0
    for name, layer in content["layer_traces"].items():
        assert layer["total_error"] >= 0.999 * layer["standard_error"], (name, layer)
    said = capsys.readouterr().out
    assert "3 probes and 5 blocks of images" in said
    assert "5 blocks of 6" in said


def test_the_estimates_are_those_of_the_subset(run):
    run_hessian.main([str(run.path), *BLOCKS, "--dtype=float64"])
    found = read(run.path / "hessian.json")
    run_hessian.main([str(run.path), *BLOCKS[:-1], "--dtype=float64", "--image_blocks=1", "--tag=whole"])
    whole = read(run.path / "hessian-whole.json")
    for key in ("trace", "trace_standard_error", "max_eigen", "min_eigen", "loss", "gradient_norm"):
        assert found[key] == pytest.approx(whole[key], rel=1e-6), key
    assert whole["trace_total_error"] is None
    assert whole["sample_indices_sha256"] == found["sample_indices_sha256"]


def test_with_batch_statistics_each_block_is_a_batch(run, capsys):
    assert run_hessian.main([str(run.path), *BLOCKS, "--bn_mode=train", "--dtype=float64"]) == 0
    content = read(run.path / "hessian-train.json")
    assert "statistics of 6 images" in capsys.readouterr().out
    model, images, labels = reference(run, 30)
    order = torch.argsort(labels, stable=True)
    losses = [F.cross_entropy(model.train()(images[order[b::5]]), labels[order[b::5]]).item() for b in range(5)]
    assert content["loss"] == pytest.approx(np.mean(losses), rel=1e-9)
    assert content["statistics_size"] == 6
    flags = [*BLOCKS[:-1], "--image_blocks=1", "--batch_size=10", "--bn_mode=train", "--tag=ten"]
    assert run_hessian.main([str(run.path), *flags]) == 0
    assert read(run.path / "hessian-train-ten.json")["statistics_size"] == 10
    assert "statistics of 10 images" in capsys.readouterr().out
    assert run_hessian.main([str(run.path), *BLOCKS, "--bn_mode=train", "--samples=31", "--tag=odd"]) == 1
    assert "31 images do not divide into 5 blocks of equal size" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--bn_mode=train", "--batch_size=6"], "--batch_size does not apply"),
        (["--bn_mode=train", "--curvature=empirical_fisher"], "needs --bn_mode=eval"),
        (["--save_eigenvectors"], "needs --eigenvectors"),
        (["--tag=a-b"], "not a word"),
    ],
)
def test_flags_that_do_not_go_together(run, capsys, flags, words):
    with pytest.raises(SystemExit) as ended:
        run_hessian.main([str(run.path), *flags])
    assert ended.value.code == 2
    assert words in capsys.readouterr().err


def test_several_measurements_of_a_run_and_their_columns(run, results):
    for flags in ([], ["--curvature=ggn"], ["--scale=filter", "--bn_mode=train"], ["--curvature=empirical_fisher"]):
        assert run_hessian.main([str(run.path), *QUICK, *flags]) == 0
    assert run_hessian.main([str(run.path), *QUICK, "--lanczos_steps=1", "--tag=short"]) == 0
    names = ["hessian", "hessian-empirical_fisher", "hessian-ggn", "hessian-short", "hessian-train-filter"]
    assert run.measurement_names() == names
    for name in names:
        assert (run.path / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
    with open(results / "results.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["run"] == run.path.name)
    assert float(row["Trace"]) == read(run.path / "hessian.json")["trace"]
    assert float(row["hessian-ggn:trace"]) == read(run.path / "hessian-ggn.json")["trace"]
    assert float(row["hessian-train-filter:max_eigen"]) == read(run.path / "hessian-train-filter.json")["max_eigen"]
    assert not [name for name in row if "short" in name]


def test_the_name_of_a_measurement():
    assert measurement_name("hessian", {"curvature": "hessian", "bn_mode": "eval", "scale": "none"}) == "hessian"
    settings = {"curvature": "ggn", "bn_mode": "train", "scale": "element", "tag": "few"}
    assert measurement_name("hessian", settings) == "hessian-ggn-train-element-few"
    assert measurement_name("class_similarity", {"split": "test"}) == "class_similarity"


def test_eigenvectors_and_what_they_share(run, capsys):
    flags = ["--eigenvectors=3", "--save_eigenvectors", "--dtype=float64", "--scale=filter"]
    assert run_hessian.main([str(run.path), *BLOCKS, *flags]) == 0
    content = read(run.path / "hessian-filter.json")
    found = content["eigenvectors"]
    said = capsys.readouterr().out
    assert f"{found['gradient_share']:.0%} of the squared gradient is in the span" in said
    assert f"largest eigenvalues (± s.e. over blocks of images): {found['values'][0]:.4g} ± " in said
    stored = torch.load(run.path / "hessian-filter_vectors.pt", weights_only=True)
    vectors = stored["vectors"]
    assert vectors.shape == (3, content["dimension"])
    assert found["values"] == sorted(found["values"], reverse=True)
    assert max(found["residuals"]) < 2e-3 * found["values"][0]
    assert content["max_eigen"] <= found["values"][0] * (1 + 1e-6)
    model, images, labels = reference(run, 30)
    F.cross_entropy(model(images), labels).backward()
    gradient = torch.cat([p.grad.reshape(-1) for p in model.parameters()])
    scales = torch.cat(
        [
            (p.flatten(1).norm(dim=1)[:, None].expand(len(p), p[0].numel()) if p.dim() > 1 else p.abs()).reshape(-1)
            for p in model.parameters()
        ]
    ).detach()
    scaled = scales * gradient
    expected = (vectors @ scaled).square() / scaled.square().sum()
    assert found["gradient_shares"] == pytest.approx(expected.tolist(), rel=1e-5, abs=1e-9)
    assert found["gradient_share"] == pytest.approx(expected.sum().item(), rel=1e-5)
    of_layers = np.array(list(found["layer_shares"].values()))
    assert of_layers.sum(0) == pytest.approx(np.ones(3))
    assert all(error > 0 for error in found["image_errors"])


def test_the_largest_eigenvalue_of_each_layer(run):
    flags = [*BLOCKS[:-1], "--image_blocks=1", "--lanczos_steps=6"]
    assert run_hessian.main([str(run.path), *flags, "--layer_eigenvalues", "--dtype=float64"]) == 0
    content = read(run.path / "hessian.json")
    layers = content["layer_eigenvalues"]
    assert layers.keys() == content["layer_traces"].keys()
    largest = content["max_eigen"] + content["max_eigen_residual"]
    assert all(layer["max_eigen"] <= largest * (1 + 1e-6) + 1e-9 for layer in layers.values())  # interlacing


def test_a_measurement_that_is_stopped_continues(run, monkeypatch, capsys):
    monkeypatch.setattr(probe_store, "SECONDS", 0.0)
    assert run_hessian.main([str(run.path), *BLOCKS, "--tag=whole"]) == 0
    whole = read(run.path / "hessian-whole.json")
    passes = []
    original = hessian_operator.CountedBatches.__iter__

    def stopping(self):
        passes.append(1)
        if len(passes) == 24:
            raise KeyboardInterrupt
        return original(self)

    monkeypatch.setattr(hessian_operator.CountedBatches, "__iter__", stopping)
    with pytest.raises(KeyboardInterrupt):
        run_hessian.main([str(run.path), *BLOCKS])
    monkeypatch.setattr(hessian_operator.CountedBatches, "__iter__", original)
    assert (run.path / "hessian.partial.pt").exists()
    assert run_hessian.main([str(run.path), *BLOCKS]) == 0
    assert "continuing after" in capsys.readouterr().out
    content = read(run.path / "hessian.json")
    assert not (run.path / "hessian.partial.pt").exists()
    for key in ("trace", "trace_total_error", "max_eigen", "max_eigen_cross_fitted", "products", "trace_samples"):
        assert content[key] == whole[key], key


def test_probes_of_other_settings_are_not_taken_over(run, monkeypatch, capsys):
    monkeypatch.setattr(probe_store, "SECONDS", 0.0)
    monkeypatch.setattr(probe_store.ProbeStore, "remove", lambda self: None)
    assert run_hessian.main([str(run.path), *BLOCKS]) == 0
    assert run_hessian.main([str(run.path), *BLOCKS, "--seed=1", "--overwrite"]) == 0
    (run.path / "hessian.partial.pt").unlink()
    (run.path / "hessian.partial.pt").write_bytes(b"cut")
    assert run_hessian.main([str(run.path), *BLOCKS, "--seed=2", "--overwrite"]) == 0
    assert "continuing" not in capsys.readouterr().out


def test_the_interval_is_that_of_students_t(run):
    run_hessian.main([str(run.path), *BLOCKS])
    content = read(run.path / "hessian.json")
    half = (content["trace_interval"][1] - content["trace_interval"][0]) / 2
    assert half >= stats.norm.ppf(0.975) * content["trace_total_error"]
    assert math.isfinite(half)


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT")
def test_ctrl_c_says_that_the_same_command_continues(wide_run):
    command = [sys.executable, "run_hessian.py", str(wide_run.path), *BLOCKS, "--trace_probes=100000"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    process.stdout.readline()
    partial = wide_run.path / "hessian.partial.pt"
    deadline = time.monotonic() + 90
    while not partial.exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(error.splitlines()) == 1
    assert partial.exists()


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("norm", ["BatchNorm", "LayerNorm"])
def test_curvature_over_training_shows_the_edge_of_stability(tmp_path, monkeypatch, norm):
    folder = main.main([*SMALL, f"--norm_type={norm}", "--epochs=1", f"--results_dir={tmp_path}"])
    drawn = []
    original = hessian._draw_edge_of_stability

    def draw(*args):
        drawn.append(args[2:])
        original(*args)

    monkeypatch.setattr(hessian, "_draw_edge_of_stability", draw)
    assert run_hessian.main([str(folder), *QUICK, "--bn_mode=train", "--checkpoint=all"]) == 0
    [(epochs, largest, rates)] = drawn
    assert epochs == [0, 1]
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert rates == [float(rows[0]["learning_rate"])] * 2
    assert largest == [
        read(folder / name)["max_eigen"] for name in ("hessian-train_epoch_0000.json", "hessian-train.json")
    ]
    assert (folder / "hessian-train_over_training.png").exists()
    drawn.clear()
    assert run_hessian.main([str(folder), *QUICK, "--scale=filter", "--checkpoint=all"]) == 0
    assert not drawn

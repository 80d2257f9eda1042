"""The numbers of run_hessian.py against autograd, and its flags."""

import math

import pytest
import torch
from measures_helpers import ONE_PRODUCT, QUICK, SMALL, read, reference
from torch.nn import functional as F

import main
import run_hessian
from normstudy.datasets import splits


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
    """With one probe and one step, the trace is vᵀHv of the Rademacher vector, here from two backward passes."""
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
    assert "at least 4 matrix-vector products" in said.out
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


def test_the_gauss_newton_matrix_has_no_negative_eigenvalues(run):
    assert run_hessian.main([str(run.path), *QUICK, "--curvature=ggn"]) == 0
    content = read(run.path / "hessian-ggn.json")
    assert content["settings"]["curvature"] == "ggn"
    assert content["min_eigen"] > -1e-5 * content["max_eigen"]


def test_batch_statistics_give_other_numbers(run):
    run_hessian.main([str(run.path), *ONE_PRODUCT])
    eval_mode = read(run.path / "hessian.json")
    run_hessian.main([str(run.path), *ONE_PRODUCT, "--bn_mode=train"])
    train_mode = read(run.path / "hessian-train.json")
    assert train_mode["loss"] != pytest.approx(eval_mode["loss"], rel=1e-3)


def test_batch_statistics_are_said_to_matter_or_not(tmp_path, capsys):
    for norm, matters in (("BatchNorm", True), ("LayerNorm", False)):
        folder = main.main([*SMALL, f"--norm_type={norm}", "--epochs=1", f"--results_dir={tmp_path}"])
        assert run_hessian.main([str(folder), *ONE_PRODUCT, "--bn_mode=train"]) == 0
        assert ("bn_mode=train changes nothing" in capsys.readouterr().err) != matters
        assert read(folder / "hessian-train.json")["has_batch_statistics"] == matters

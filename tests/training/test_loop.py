"""How a run ends when a loss or gradient is not finite."""

import math

import pytest
import torch

import main
import models
from normstudy.kernels import devices
from normstudy.storage import files, probe_files, run_directory
from normstudy.training import loop

pytestmark = pytest.mark.usefixtures("narrow")


def poison(step):
    """Return a gradient hook that sets one entry to NaN at the global step `step`."""
    seen = 0

    def hook(gradient):
        nonlocal seen
        seen += 1
        if seen == step + 1:
            gradient = gradient.clone()
            gradient[(0,) * gradient.dim()] = math.nan
        return gradient

    return hook


def test_bf16_on_a_processor_without_it_is_said(train, tmp_path, capfd):
    train(tmp_path, "--epochs=1", "--precision=bf16")
    is_said = "no bf16 units: --precision=fp32" in capfd.readouterr().err
    assert is_said == devices.is_bf16_emulated(torch.device("cpu"))
    train(tmp_path, "--epochs=1")
    assert "bf16" not in capfd.readouterr().err


@pytest.mark.parametrize("step", [0, 6, 23])
@pytest.mark.parametrize("layer", ["classifier.weight", "blocks.0.conv.weight"])
def test_a_gradient_that_is_not_finite_ends_the_run_at_its_step(small, tmp_path, monkeypatch, step, layer):
    """The run has 24 steps. At the step tested, the gradient is not finite, but the loss still is."""
    original = models.build_from_config

    def build(*arguments):
        model = original(*arguments)
        model.get_parameter(layer).register_hook(poison(step))
        return model

    monkeypatch.setattr(loop, "build_from_config", build)
    run = run_directory.RunDirectory(main.main([*small, "--epochs=6", f"--results_dir={tmp_path}"]))
    summary = files.read_json(run.summary)
    assert (summary["status"], summary["diverged_at_step"]) == ("diverged", step)
    assert summary["epochs_done"] == step // 4
    assert (summary["test_accuracy"] is None) == (step < 4)
    probes = probe_files.load_probes(run)
    assert probes is not None
    assert probes["iteration"].tolist() == list(range(step + 1))
    assert run.curves.exists()

"""Runs whose network cannot be measured, and the images on which a checkpoint is measured."""

import math
import shutil

import pytest
import torch
from measures_helpers import QUICK, damage_config, damage_unchecked_config, forget_checksums, read, replace

import run_hessian


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda run: damage_config(run, momentum=...), "another version"),
        (lambda run: damage_config(run, norm_type="LayerNorm"), "do not belong to the same run"),
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
    assert "non-finite values in classifier.weight" in capsys.readouterr().err


def test_more_samples_than_there_are_means_all(run):
    assert run_hessian.main([str(run.path), "--lanczos_steps=1", "--trace_probes=0", "--num_probes=1"]) == 0
    assert read(run.path / "hessian.json")["num_samples"] == 50

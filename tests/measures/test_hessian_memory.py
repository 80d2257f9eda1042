"""run_hessian.py with little memory."""

import re

import pytest
import torch
from measures_helpers import ONE_PRODUCT, read

import run_hessian
from normstudy.measures import hessian_memory


def test_too_little_memory_for_the_basis_names_the_flag(run, capsys, monkeypatch):
    monkeypatch.setattr(hessian_memory, "free_memory", lambda device: 1e8)
    assert run_hessian.main([str(run.path), "--lanczos_steps=40", "--samples=30"]) == 1
    error = capsys.readouterr().err
    assert "lower --lanczos_steps to 2 or less" in error
    assert not (run.path / "hessian.json").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has the device")
def test_a_basis_device_that_is_not_there_is_said(run, capsys):
    assert run_hessian.main([str(run.path), *ONE_PRODUCT, "--basis_device=cuda"]) == 1
    assert "cuda is not available on this machine" in capsys.readouterr().err


def test_a_batch_that_does_not_fit_is_made_smaller(run, monkeypatch, capsys):
    run_hessian.main([str(run.path), *ONE_PRODUCT])
    expected = read(run.path / "hessian.json")
    assert "GB for a batch of 30," in capsys.readouterr().out
    monkeypatch.setattr(hessian_memory, "place_basis", lambda *_: "cpu")
    monkeypatch.setattr(hessian_memory, "free_memory", lambda device: 2e6)
    assert run_hessian.main([str(run.path), *ONE_PRODUCT, "--overwrite"]) == 0
    assert re.search(r"GB for a batch of [1-9],", capsys.readouterr().out)
    assert read(run.path / "hessian.json")["trace"] == pytest.approx(expected["trace"], rel=1e-2)
    assert run_hessian.main([str(run.path), *ONE_PRODUCT, "--overwrite", "--bn_mode=train"]) == 1
    assert "lower --batch_size to" in capsys.readouterr().err


def test_graphs_are_kept_where_they_fit_and_change_no_result(run, monkeypatch, capsys):
    flags = [str(run.path), *ONE_PRODUCT, "--dtype=float64", "--overwrite"]
    run_hessian.main(flags)
    assert "GB for gradient graphs (kept for speed)" in capsys.readouterr().out
    kept = read(run.path / "hessian.json")
    monkeypatch.setattr(hessian_memory, "fit_graphs", lambda *_: 0)
    run_hessian.main(flags)
    assert "kept for speed" not in capsys.readouterr().out
    assert read(run.path / "hessian.json")["trace"] == pytest.approx(kept["trace"], rel=1e-9)


def test_the_graphs_must_leave_room(run, monkeypatch, capsys):
    monkeypatch.setattr(hessian_memory, "place_basis", lambda *_: "cpu")
    monkeypatch.setattr(hessian_memory, "free_memory", lambda device: 2e6)
    run_hessian.main([str(run.path), *ONE_PRODUCT, "--overwrite"])
    assert "kept for speed" not in capsys.readouterr().out

"""Where commands run: in a notebook, a console, an ASCII terminal, with paths that the shell leaves as they are."""

import argparse
import io
import logging
import os
import random
import runpy
import signal
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import content

import run_class_similarity
from config import from_settings
from normstudy.cli import flag_tables, progress_bar
from normstudy.cli.signals import STOP_SIGNALS
from normstudy.storage import run_directory

ROOT = Path(__file__).parents[2]
COMMANDS = [*flag_tables.PARSER_MODULES]
NO_PATHS = {"same_data", "filter", "baseline", "tag", "measures"}  # flags with other text
NO_PATHS |= {"slurm_partition", "slurm_account", "slurm_mem", "slurm_flags"}


def text_flags(command):
    """Return the actions of a command that accept the text ~/here."""
    found = []
    for action in flag_tables.parser_of(command)._actions:
        if callable(action.type) and action.dest not in NO_PATHS:
            try:
                found.append((action.dest, action.type("~/here")))
            except argparse.ArgumentTypeError:
                continue
    return found


@pytest.mark.parametrize("command", COMMANDS)
def test_every_path_flag_expands_the_home_folder(command, monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    found = text_flags(command)
    assert "results_dir" in dict(found)
    here = str(tmp_path / "here")
    assert all(value in (here, (here,)) for _, value in found), found


def test_lists_of_paths_expand_the_home_folder_in_each(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    args = flag_tables.parser_of("run_report.py").parse_args(["--table=~/a.csv,b.csv"])
    assert args.table == (str(tmp_path / "a.csv"), "b.csv")


def test_a_run_that_an_earlier_version_stored_in_a_folder_named_tilde_is_readable(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert from_settings({"results_dir": "~/r", "data_dir": "~/d"}).data_dir == str(tmp_path / "d")


@pytest.mark.parametrize("command", COMMANDS)
def test_help_is_shown_on_an_ascii_terminal(command, monkeypatch):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    flag_tables.parser_of(command).print_help()
    stream.flush()
    assert b"--results_dir" in stream.buffer.getvalue()


def surroundings():
    """Return everything that a command shares with the program around it, except memory."""
    cudnn = torch.backends.cudnn
    return {
        "signals": [signal.getsignal(number) for number in STOP_SIGNALS],
        "streams": [sys.stdout, sys.stderr, sys.excepthook],
        "encoding": [getattr(stream, "errors", None) for stream in (sys.stdout, sys.stderr)],
        "environment": dict(os.environ),
        "folder": os.getcwd(),
        "warnings": list(warnings.filters),
        "logging": [logging.root.level, *logging.root.handlers],
        "threads": torch.get_num_threads(),
        "numbers": [torch.get_default_dtype(), torch.get_float32_matmul_precision(), torch.is_grad_enabled()],
        "algorithms": [torch.are_deterministic_algorithms_enabled(), cudnn.allow_tf32, cudnn.benchmark],
        "random": [torch.get_rng_state().tolist(), str(np.random.get_state()), random.getstate()],  # noqa: NPY002 - theirs
    }


@pytest.fixture
def notebook(monkeypatch):
    """Return a function that runs a script as %run does, with a stream that is no file; it returns the exit code."""

    def run(script, *flags):
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [str(ROOT / script), *flags])
            with pytest.raises(SystemExit) as ended:
                runpy.run_path(str(ROOT / script), run_name="__main__")
        return ended.value.code

    monkeypatch.setattr(sys, "stdout", io.StringIO())
    return run


@pytest.mark.usefixtures("narrow")
def test_commands_leave_a_notebook_as_it_was_and_are_not_changed_by_it(notebook, train, small, tmp_path):
    usual = train(tmp_path / "usual", "--epochs=1", "--deterministic=True")
    assert run_class_similarity.main([str(usual.path)]) == 0
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.set_default_dtype(torch.float64)
        torch.set_float32_matmul_precision("medium")
        try:
            before = surroundings()
            flags = [*small, "--epochs=1", "--deterministic=True", f"--results_dir={tmp_path / 'notebook'}"]
            assert notebook("main.py", *flags) == 0
            assert notebook("run_class_similarity.py", f"--results_dir={tmp_path / 'notebook'}") == 0
            assert notebook("main.py", "--norm_type=Nothing") == 2
            assert notebook("main.py", f"--c_dir={tmp_path / 'nowhere'}") == 1
            assert surroundings() == before
        finally:
            torch.set_default_dtype(torch.float32)
            torch.set_float32_matmul_precision("highest")
    run = run_directory.RunDirectory(next((tmp_path / "notebook").glob("vgg_*")))
    ours, theirs = content(run), content(usual)
    for name in ("checkpoints/epoch_0001.pt", "metrics.csv", "probes/epoch_0001.pt"):
        assert ours[name] == theirs[name]
    similarity = [files["class_similarity.json"].partition(b'"seconds"')[0] for files in (ours, theirs)]
    assert similarity[0] == similarity[1]


def test_a_console_that_claims_to_be_a_terminal_and_is_no_file_shows_a_bar(monkeypatch):
    class Console(io.StringIO):
        def isatty(self):
            return True

    console = Console()
    monkeypatch.setattr(sys, "stderr", console)
    with progress_bar(10, "epoch") as bar:
        bar.update(5)
        bar.refresh()
    assert "epoch:  50%" in console.getvalue()


@pytest.mark.usefixtures("narrow")
def test_a_picture_that_cannot_be_drawn_costs_no_row(train, tmp_path, capsys):
    run = train(tmp_path, "--epochs=1")
    for repeat in range(2):
        (tmp_path / "results.csv").unlink()
        run.curves.unlink() if repeat == 0 else run.curves.rmdir()
        run.curves.mkdir()
        capsys.readouterr()
        assert train(tmp_path, "--epochs=1").path == run.path
        [line] = capsys.readouterr().err.splitlines()
        assert f"{run.curves} could not be drawn (" in line
        assert run.path.name in (tmp_path / "results.csv").read_text(encoding="utf-8")

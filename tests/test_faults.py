"""Runs that are killed, stopped, damaged, out of space or fought over: nothing is lost, nothing lies.

The runs are real, with a narrower VGG than any flag asks for, so that many of them fit into a minute.
"""

import contextlib
import csv
import errno
import json
import multiprocessing
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import config
import files
import main
import plots
import run_class_similarity
import runs
import states
import table
from errors import RunError

ROOT = Path(__file__).parent.parent
NARROW = (8, (8, 2), 16)
SMALL = ["--dataset=ImageFolder", "--batch_size=16", "--device=cpu"]
EVERY_STEP = "--checkpoint_minutes=1e-9"
TIMES = ("seconds", "images_per_second")
KILLS, KILL_SECONDS = 50, 240  # random kills, and the time after which they end

processes = multiprocessing.get_context("forkserver")  # its children start in no time, with torch loaded
processes.set_forkserver_preload(["main", "PIL.Image"])


@pytest.fixture(autouse=True)
def narrow(monkeypatch):
    monkeypatch.setitem(config.VGG_LAYERS, "cfg_10", NARROW)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """Flags of a small run, on images of its own."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 25), ("test", 10)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return [*SMALL, f"--data_dir={folder}"]


@pytest.fixture
def train(small):
    """A function that trains in this process: 6 epochs unless other flags say so."""

    def run(results_dir, *flags):
        return runs.RunDirectory(main.main([*small, "--epochs=6", f"--results_dir={results_dir}", *flags]))

    return run


def child(argv, fatal_operation=None):
    """A run in a process of its own; it kills itself right before its n-th operation on a file, where that is given.

    Its pictures are empty: drawing takes ten times as long as all else, and would get most of the kills.
    """
    config.VGG_LAYERS["cfg_10"] = NARROW
    plots.draw_curves = lambda run, title: files.write_bytes(run.curves, b"")
    plots.draw_probes = lambda run, title: files.write_bytes(run.probes_picture, b"")
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if fatal_operation is not None:
        count_operations(fatal_operation)
    main.main(argv)


def count_operations(fatal):
    """Kills this process before its `fatal`-th operation that changes what is on disk."""
    done = 0

    def counted(operation):
        def call(*arguments, **options):
            nonlocal done
            done += 1
            if done == fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return operation(*arguments, **options)

        return call

    for name in ("replace", "fsync", "unlink", "mkdir"):
        setattr(os, name, counted(getattr(os, name)))


def start(argv, fatal_operation=None):
    process = processes.Process(target=child, args=(argv, fatal_operation))
    process.start()
    return process


def finish(argv):
    process = start(argv)
    process.join()
    assert process.exitcode == 0


def content(run):
    """{name: bytes, or what the clock does not decide} of every file that a run recorded."""
    found = {}
    for path in sorted(run.path.rglob("*")):
        name = run.name_of(path)
        if path.is_dir() or name in (".lock", ".owner", "curves.png", "probes.png", "checkpoints/last.pt"):
            continue
        found[name] = path.read_bytes()
    with open(run.metrics, newline="") as file:
        found["metrics.csv"] = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    summary = files.read_json(run.summary)
    del summary["seconds"], summary["files"]["metrics.csv"]
    settings = files.read_json(run.config)
    del settings["results_dir"], settings["checkpoint_minutes"]
    return found | {"summary.json": summary, "config.json": settings}


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """An uninterrupted run, and the seconds that it took."""
    results = tmp_path_factory.mktemp("whole")
    argv = [*small, "--epochs=6", f"--results_dir={results}"]
    finish(argv)  # imports that happen on first use are behind us
    shutil.rmtree(results)
    begin = time.monotonic()
    finish(argv)
    return runs.RunDirectory(next(results.glob("vgg_*"))), time.monotonic() - begin


def rows(results):
    with open(results / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


# Killed


def test_killed_at_random_moments(small, whole, tmp_path):
    """SIGKILL again and again; every run that ends has the bits of the one that was left alone."""
    reference, seconds = whole
    expected = content(reference)
    moments = random.Random(0)
    argv = [*small, "--epochs=6", f"--results_dir={tmp_path}", EVERY_STEP]
    kills = ended = 0
    deadline = time.monotonic() + KILL_SECONDS
    while kills < KILLS and time.monotonic() < deadline:
        process = start(argv)
        process.join(moments.uniform(0, seconds))
        if process.exitcode is None:
            process.kill()
            process.join()
            kills += 1
        else:
            assert process.exitcode == 0
            assert content(runs.RunDirectory(tmp_path / reference.path.name)) == expected
            shutil.rmtree(tmp_path / reference.path.name)
            ended += 1
    finish(argv)
    assert content(runs.RunDirectory(tmp_path / reference.path.name)) == expected
    assert [row["run"] for row in rows(tmp_path)] == [reference.path.name]
    assert kills >= KILLS or time.monotonic() >= deadline
    print(f"{kills} kills, {ended + 1} runs ended as they should")


def test_killed_before_each_operation_on_a_file(small, tmp_path):
    """Two epochs, saved at each step: killed before every rename, flush, removal and new folder, one after another."""
    flags = [*small, "--epochs=2", EVERY_STEP]
    finish([*flags, f"--results_dir={tmp_path / 'whole'}"])
    name = next((tmp_path / "whole").glob("vgg_*")).name
    expected = content(runs.RunDirectory(tmp_path / "whole" / name))
    for operation in range(1, 1000):
        results = tmp_path / str(operation)
        argv = [*flags, f"--results_dir={results}"]
        process = start(argv, operation)
        process.join()
        if process.exitcode == 0:
            break  # there are no more operations
        finish(argv)
        assert content(runs.RunDirectory(results / name)) == expected, f"killed before operation {operation}"
        assert not list(results.rglob("*.tmp"))
        assert len(rows(results)) == 1
        shutil.rmtree(results)
    assert operation > 60
    print(f"killed before each of {operation - 1} operations")


# Stopped


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [(signal.SIGTERM, 99, "signal"), (signal.SIGUSR1, 99, "signal"), (signal.SIGINT, 130, "interrupted")],
)
def test_a_signal_finishes_the_step_and_the_same_command_continues_within_the_epoch(tmp_path, number, code, word):
    flags = ["--dataset=Synthetic", "--device=cpu", "--train_samples=2000", "--test_samples=20", "--batch_size=8"]
    argv = [*flags, "--image_size=8", "--epochs=1", f"--results_dir={tmp_path}"]
    command = [sys.executable, "-u", ROOT / "main.py", *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout.readline().startswith("training")
    time.sleep(1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.count("\n")) == (code, 1)
    assert word in stderr
    assert "the same command continues after 0." in stderr
    run = runs.RunDirectory(next(tmp_path.glob("vgg_*")))
    steps = len(files.read_torch(run.last)["within"]["losses"])
    assert 0 < steps < 250


def test_a_signal_while_modules_load_is_one_line():
    process = subprocess.Popen([sys.executable, ROOT / "main.py"], stderr=subprocess.PIPE, text=True)
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.count("\n")) == (130, 1)


@pytest.mark.parametrize("stop_at", [1, 4, 7, 9, 12])
def test_stopped_at_a_safe_point_it_continues_bit_for_bit(train, whole, tmp_path, monkeypatch, stop_at):
    """Within an epoch, between its end and the evaluation, and in the evaluation of the end."""
    passed = 0

    def check(points):
        nonlocal passed
        passed += 1
        if passed == stop_at:
            raise KeyboardInterrupt

    monkeypatch.setattr("errors.SafePoints.check", check)
    monkeypatch.setattr("errors.SafePoints.is_stop_due", lambda points: passed + 1 == stop_at)
    with pytest.raises(KeyboardInterrupt, match="the same command continues after"):
        train(tmp_path)
    monkeypatch.undo()
    monkeypatch.setitem(config.VGG_LAYERS, "cfg_10", NARROW)
    assert content(train(tmp_path)) == content(whole[0])


def test_a_closed_pipe_is_one_line():
    argv = ["--dataset=Synthetic", "--results_dir=/dev/null/none"]
    command = f"{sys.executable} {ROOT / 'main.py'} {' '.join(argv)} | true"
    answer = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert answer.stderr.count("\n") == 1
    assert "Traceback" not in answer.stderr

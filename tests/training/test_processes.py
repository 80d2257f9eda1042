"""Two processes that torchrun starts for one run: what they compute and write, and what remains when one dies."""

import csv
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import NARROW, content

import config
import layer_defs
from normstudy.cli import RunError
from normstudy.storage import PROBE_KEYS, files, probe_files, results_table, run_directory, run_settings

ROOT = Path(__file__).parents[2]
TORCHRUN = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2"]
# main.py with the narrow network of the other tests; KILL=rank,step,mark kills process `rank` at `step`, once
PROGRAM = f"""
import os, sys
sys.path.insert(0, {str(ROOT)!r})
import config
config.VGG_LAYERS["cfg_10"] = {NARROW!r}
import main, torch
from normstudy.cli import run_command
from normstudy.training import training_step as steps
torch.set_num_threads(1)
rank, step, mark = os.environ.get("KILL", "9,9,").split(",")
if rank == os.environ.get("RANK") and not os.path.exists(mark):
    original = steps.Step.__call__
    def call(self, indices, flips, rate, iteration):
        if iteration == int(step):
            open(mark, "w").close()
            os.kill(os.getpid(), 9)
        return original(self, indices, flips, rate, iteration)
    steps.Step.__call__ = call
run_command(main.main)
"""


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    path = tmp_path_factory.mktemp("program") / "main.py"
    path.write_text(PROGRAM)
    return path


@pytest.fixture
def joint(program, small, tmp_path):
    """Return a function that starts two processes of a run in tmp_path/`folder` and waits for them."""

    def start(folder, *flags, torchrun=(), wait=True, **variables):
        argv = [*TORCHRUN, *torchrun, program, *small, "--epochs=6", f"--results_dir={tmp_path / folder}", *flags]
        environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
        process = subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        if not wait:
            return process
        said, complained = process.communicate(timeout=300)
        return subprocess.CompletedProcess(argv, process.returncode, said, complained)

    return start


@pytest.fixture
def alone(train, tmp_path, narrow):
    return lambda folder, *flags: train(tmp_path / folder, *flags)


def the_run(folder):
    return run_directory.RunDirectory(next(folder.glob("*/config.json")).parent)


def metrics(run):
    with open(run.metrics, newline="") as file:
        rows = list(csv.DictReader(file))
    return torch.tensor([[float(row[name]) for name in row if name.startswith(("train_", "test_"))] for row in rows])


def test_steps_on_shared_batches_are_those_on_whole_ones():
    """All norms, float64: losses, weights, running statistics and probes; batches of 8, 7 and 1."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    argv = [*TORCHRUN, str(Path(__file__).with_name("joint_steps.py"))]
    done = subprocess.run(argv, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_norms_that_are_synchronized_are_those_with_batch_statistics():
    with_statistics = [
        name
        for name in layer_defs.NORMS
        if any("running" in key for key in layer_defs.build_norm(name, 32)[0].state_dict())
    ]
    assert sorted(with_statistics) == sorted(config.BATCH_NORMS)


@pytest.mark.parametrize("flags", [["--norm_type=GroupNorm", "--p_grouping=8"], ["--norm_type=BatchNorm", "--sync_bn"]])
def test_two_processes_give_the_run_of_one(joint, alone, tmp_path, flags):
    """There are 25 images per class in batches of 16, so the last batch of an epoch has 2 samples."""
    process = joint("two", *flags)
    assert process.returncode == 0, process.stderr
    assert process.stdout.count("epoch 6/6") == process.stdout.count("done in") == 1
    ours, theirs = the_run(tmp_path / "two"), alone("one", *[flag.replace("--sync_bn", "--seed=0") for flag in flags])
    assert ours.path.name == theirs.path.name
    assert sorted(content(ours)) == sorted(content(theirs))
    torch.testing.assert_close(metrics(ours), metrics(theirs), rtol=1e-3, atol=1e-4)
    recorded, alone_recorded = probe_files.load_probes(ours), probe_files.load_probes(theirs)
    assert recorded is not None
    assert alone_recorded is not None
    for key in PROBE_KEYS:
        torch.testing.assert_close(recorded[key], alone_recorded[key], rtol=5e-3, atol=1e-4, equal_nan=True)
    weights, expected = (files.read_torch(run.checkpoint(6)) for run in (ours, theirs))
    assert list(weights) == list(expected)
    for name in weights:
        torch.testing.assert_close(weights[name], expected[name], rtol=1e-3, atol=1e-4)
    row, complaints = results_table.table_row(ours)
    assert row is not None
    assert (row["batch_shares"], complaints) == ("1", [])
    assert files.read_json(ours.summary)["history"][0]["processes"] == 2


def test_statistics_of_shares_make_another_run_that_others_do_not_continue(joint, tmp_path, narrow):
    process = joint("two", "--epochs=1")
    assert process.returncode == 0, process.stderr
    run = the_run(tmp_path / "two")
    assert "_shares2_" in run.path.name
    row, _ = results_table.table_row(run)
    assert row is not None
    assert row["batch_shares"] == "2"
    given = config.parse_args([f"--c_dir={run.path}"])
    with pytest.raises(
        RunError, match=r"2 share\(s\) of each batch; continue it with torchrun with 2 processes and without"
    ):
        run_settings.open_run(given, 1)
    assert run_settings.open_run(given, 2)[0].batch_shares == 2
    whole = config.parse_args(["--epochs=1"])
    assert run_settings.open_run(whole)[1].path != run_settings.open_run(whole, 2)[1].path


def test_a_dead_process_ends_the_run_and_leaves_a_state_to_go_on_from(joint, alone, tmp_path):
    """Process 1 dies in the fourth epoch; one process continues to the result of an undisturbed run."""
    flags = ["--norm_type=LayerNorm"]
    process = joint("two", *flags, KILL=f"1,14,{tmp_path / 'mark'}")
    assert process.returncode != 0
    assert 'Traceback (most recent call last):\n  File "/' not in process.stderr.partition("torch/distributed")[0]
    run = the_run(tmp_path / "two")
    assert files.read_torch(run.last)["epoch"] == 3
    assert not run.summary.exists()
    alone("two", *flags)
    history = files.read_json(run.summary)["history"]
    assert [(entry["step"], entry["processes"]) for entry in history] == [(0, 2), (12, 1)]
    torch.testing.assert_close(metrics(run), metrics(alone("one", *flags)), rtol=1e-3, atol=1e-4)


def test_torchruns_restart_continues(joint, tmp_path):
    """Whichever process dies, the result is bit for bit that of two undisturbed processes."""
    assert joint("undisturbed").returncode == 0
    for rank in (0, 1):
        mark = tmp_path / f"mark{rank}"
        process = joint(f"restarted{rank}", torchrun=["--max-restarts=1"], KILL=f"{rank},14,{mark}")
        assert process.returncode == 0, process.stderr
        assert mark.exists()
        assert "3 of 6 epochs done" in process.stdout
        assert content(the_run(tmp_path / f"restarted{rank}")) == content(the_run(tmp_path / "undisturbed"))


def test_a_signal_saves_and_ends_all(joint, tmp_path):
    process = joint("two", "--epochs=3000", "--probe_layers=False", wait=False)
    deadline = time.monotonic() + 120
    while not list((tmp_path / "two").glob("*/checkpoints/last.pt")) and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(signal.SIGTERM)
    _, complained = process.communicate(timeout=120)
    assert process.returncode != 0
    assert "epochs are saved; run the same command again" in complained
    run = the_run(tmp_path / "two")
    assert not (run.path / ".owner").exists()
    assert files.read_torch(run.last)["epoch"] >= 1


def test_what_ends_the_first_process_ends_the_other(joint, tmp_path):
    """If the run is locked, one line says so and no process waits."""
    joint("two", "--epochs=1", "--norm_type=Plain")
    run = the_run(tmp_path / "two")
    run.summary.unlink()
    with run.lock():
        process = joint("two", "--epochs=1", "--norm_type=Plain")
    assert process.returncode == 1
    assert process.stderr.count("is being worked on by") == 1


def test_one_device_for_all_is_a_usage_error(joint):
    process = joint("two", "--device=cuda:0")
    assert process.returncode == 1
    assert "is one device for all processes" in process.stderr

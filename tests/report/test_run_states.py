"""The state of runs, read from their folders: real runs, notes of processes that are gone, and damaged files."""

import os
import platform
import subprocess
import time

import pytest

from normstudy.report.run_states import FAILED, KILLED, SILENT, FileCache, read_states
from normstudy.storage import RunDirectory, is_alive, read_owner, run_owner, write_json

HOUR = 3600
MACHINE = platform.node()


@pytest.fixture
def unended(tmp_path):
    """A run without an ending, 10 s old, with two epochs and a note of this process."""
    run = RunDirectory(tmp_path / "vgg_Plain_0")
    settings = {"arch": "vgg", "norm_type": "Plain", "dataset": "Synthetic", "seed": 0, "epochs": 10}
    write_json(run.config, settings | {"checkpoint_minutes": 60.0})
    run.metrics.write_text(
        "epoch,train_loss,validation_accuracy,test_accuracy,seconds\n1,2.3,,0.25,100\n2,1.5,,,100\n", encoding="utf-8"
    )
    run_owner.write_owner(run.owner)
    age(run, 10)
    return run


def age(run, seconds):
    for path in (run.metrics, run.owner):
        os.utime(path, (time.time() - seconds,) * 2)


def note(run, process, machine=MACHINE):
    run.owner.write_text(f"process {process} on {machine} since Thu Nov 27 2025\n")


def ended_process():
    process = subprocess.Popen(["true"])
    process.wait()
    return process.pid


def states_of(run):
    return read_states(run.path.parent, FileCache())


def kinds(run):
    return [failure.kind for failure in states_of(run).failures]


def test_a_run_of_a_living_process_is_in_training(unended):
    states = states_of(unended)
    [run] = states.training
    assert (run.last_epoch, run.latest("train_loss"), run.latest("test_accuracy")) == (2, 1.5, 0.25)
    assert states.failures == states.unfinished == []


def test_the_remaining_time_is_that_of_the_last_epochs(unended):
    [run] = states_of(unended).training
    assert run.seconds_left(run.heard + 40) == pytest.approx(60 + 7 * 100)
    assert run.seconds_left(run.heard + 1000) == pytest.approx(7 * 100), "an epoch that takes longer ends at any time"


def test_a_run_whose_process_is_gone_stopped_without_an_ending(unended):
    note(unended, ended_process())
    assert kinds(unended) == [KILLED]
    assert states_of(unended).training == []


def test_a_process_that_ended_but_was_not_waited_for_is_gone(unended):
    process = subprocess.Popen(["true"])
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    note(unended, process.pid)
    assert kinds(unended) == [KILLED]
    process.wait()


def test_another_process_with_the_same_number_is_not_the_owner(unended):
    """After a restart of the machine, numbers are given out again."""
    os.utime(unended.owner, (0, 0))
    owner = read_owner(unended.owner)
    assert owner is not None
    assert not is_alive(owner)


def test_a_run_on_another_machine_is_in_training_as_long_as_it_writes(unended):
    note(unended, 1, "elsewhere")
    age(unended, 2 * HOUR)
    assert len(states_of(unended).training) == 1  # its state is due every hour
    age(unended, 4 * HOUR)
    assert kinds(unended) == [SILENT]
    assert states_of(unended).failures[0].reason.endswith("by the process on elsewhere")


def test_a_stopped_run_is_unfinished(unended):
    unended.owner.unlink()
    states = states_of(unended)
    assert [run.path for run in states.unfinished] == [unended.path]
    assert states.failures == states.training == []


def test_a_run_that_failed_in_a_sweep_has_its_reason(unended):
    unended.failure.parent.mkdir()
    unended.failure.write_text(f"main.py: error: {unended.last} is damaged\n")
    unended.owner.unlink()
    [failure] = states_of(unended).failures
    assert failure.kind == FAILED
    assert failure.reason == f"main.py: error: {unended.path.parent}/…/checkpoints/last.pt is damaged"


def test_a_failed_run_may_have_no_folder(tmp_path):
    (tmp_path / "logs").mkdir()
    (tmp_path / "logs" / "vgg_p0.5.failed").write_text("no images")
    [failure] = read_states(tmp_path, FileCache()).failures
    assert (failure.run.path.name, failure.reason) == ("vgg_p0.5", "no images")


def test_a_failed_run_that_is_tried_again_is_in_training(unended):
    unended.failure.parent.mkdir()
    unended.failure.write_text("killed by the system")
    os.utime(unended.failure, (0, 0))
    assert (len(states_of(unended).training), kinds(unended)) == (1, [])
    note(unended, ended_process())  # and is killed a second time, by hand
    assert kinds(unended) == [KILLED]
    os.utime(unended.failure)  # or by the system, which its sweep noted
    assert kinds(unended) == [FAILED]


def test_an_ended_run_has_not_failed_because_an_earlier_try_did(tmp_path):
    run = RunDirectory(tmp_path / "run")
    write_json(run.summary, {"status": "done", "epochs_done": 2})
    run.failure.parent.mkdir()
    run.failure.write_text("run_hessian.py: too little memory")
    assert kinds(run) == [FAILED], "a measurement failed after the training"
    os.utime(run.failure, (0, 0))
    assert kinds(run) == []


def test_an_ended_run_that_is_locked_is_being_measured(tmp_path):
    run = RunDirectory(tmp_path / "run")
    write_json(run.summary, {"status": "done"})
    with run.lock():
        assert len(states_of(run).measured) == 1
    assert states_of(run).measured == []


@pytest.mark.parametrize("damage", [b"", b"epoch,train_loss\nx,1\n", b"epoch,train_loss\n,1\n", b"\xff\x00"])
def test_damaged_files_of_a_run_in_training_hide_numbers_only(unended, damage):
    unended.metrics.write_bytes(damage)
    unended.config.write_bytes(damage)
    [run] = states_of(unended).training
    assert (run.last_epoch, run.seconds_left(time.time()), run.total_epochs) == (0, None, None)


def test_folders_that_are_not_of_runs_are_left_out(tmp_path):
    for name in ("figures", "logs", "tables"):
        (tmp_path / name).mkdir()
    states = read_states(tmp_path, FileCache())
    assert not states.has_unended
    assert states.ended == {}


def test_a_file_is_read_again_only_if_it_has_changed(tmp_path):
    path, files, reads = tmp_path / "a.txt", FileCache(), []

    def read(path):
        reads.append(path)
        return path.read_text()

    path.write_text("one")
    assert [files.read(path, read, "") for _ in range(3)] == ["one"] * 3
    path.write_text("three")
    assert files.read(path, read, "") == "three"
    assert len(reads) == 2
    path.unlink()
    assert files.read(path, read, "none") == "none"

"""Runs that are killed, stopped, damaged, out of disk space or started twice lose nothing and report the truth.

The runs are real, with a narrower VGG than the flags offer, so that many of them fit into a minute.
"""

import contextlib
import csv
import errno
import multiprocessing
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from helpers import NARROW, content

import config
import main
import run_class_similarity
from normstudy import plots
from normstudy.cli import commands, describe_os_error
from normstudy.storage import files, results_columns, run_directory, training_state
from normstudy.training import loop

pytestmark = pytest.mark.usefixtures("narrow")

ROOT = Path(__file__).parents[2]
EVERY_STEP = "--checkpoint_minutes=1e-9"
KILLS, KILL_SECONDS = 50, 240  # number of random kills, and the time limit for them

processes = multiprocessing.get_context("forkserver")  # its children start at once, with torch loaded
# The last one is what the first optimizer of a process would load.
processes.set_forkserver_preload(["normstudy.training", "main", "PIL.Image", "torch._dynamo"])


def child(argv, fatal_operation=None):
    """Run main.main(argv) in this process, killed right before its file operation number `fatal_operation`, if given.

    Its pictures are empty: drawing takes ten times as long as everything else and would get most of the kills.
    """
    config.VGG_LAYERS["cfg_10"] = NARROW
    patches = pytest.MonkeyPatch()  # never undone: the process ends with the run
    patches.setattr(plots, "draw_curves", lambda run, title: files.write_bytes(run.curves, b""))
    patches.setattr(plots, "draw_probes", lambda run, title: files.write_bytes(run.probes_picture, b""))
    torch.set_num_threads(1)
    sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if fatal_operation is not None:
        count_operations(fatal_operation)
    main.main(argv)


def count_operations(fatal):
    """Kill this process before its `fatal`-th operation that changes the disk."""
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


@pytest.fixture(scope="module")
def whole(small, tmp_path_factory):
    """Return an uninterrupted run and its duration in seconds."""
    results = tmp_path_factory.mktemp("whole")
    argv = [*small, "--epochs=6", f"--results_dir={results}"]
    finish(argv)  # so that imports on first use are not timed
    shutil.rmtree(results)
    begin = time.monotonic()
    finish(argv)
    return run_directory.RunDirectory(next(results.glob("vgg_*"))), time.monotonic() - begin


def rows(results):
    with open(results / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


# Killed


def test_killed_at_random_moments(small, whole, tmp_path):
    """After repeated SIGKILLs, every run that ends equals an undisturbed one bit for bit."""
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
            assert content(run_directory.RunDirectory(tmp_path / reference.path.name)) == expected
            shutil.rmtree(tmp_path / reference.path.name)
            ended += 1
    finish(argv)
    assert content(run_directory.RunDirectory(tmp_path / reference.path.name)) == expected
    assert [row["run"] for row in rows(tmp_path)] == [reference.path.name]
    assert kills >= KILLS or time.monotonic() >= deadline
    print(f"{kills} kills, {ended + 1} runs ended with the expected files")


def test_killed_before_each_operation_on_a_file(small, tmp_path):
    """An epoch, saved at each step, is killed before every rename, flush, removal and new folder in turn."""
    flags = [*small, "--epochs=1", EVERY_STEP]
    finish([*flags, f"--results_dir={tmp_path / 'whole'}"])
    name = next((tmp_path / "whole").glob("vgg_*")).name
    expected = content(run_directory.RunDirectory(tmp_path / "whole" / name))
    for operation in range(1, 1000):
        results = tmp_path / str(operation)
        argv = [*flags, f"--results_dir={results}"]
        process = start(argv, operation)
        process.join()
        if process.exitcode == 0:
            break  # there are no more operations
        finish(argv)
        assert content(run_directory.RunDirectory(results / name)) == expected, f"killed before operation {operation}"
        assert not list(results.rglob("*.tmp"))
        assert len(rows(results)) == 1
        shutil.rmtree(results)
    assert operation > 40
    print(f"killed before each of {operation - 1} operations")


def test_killed_while_it_recovers_from_a_damaged_state(small, whole, tmp_path):
    """The state before the damaged one survives until a new one is saved."""
    argv = [*small, "--epochs=6", EVERY_STEP]
    start([*argv, f"--results_dir={tmp_path / 'begun'}"], fatal_operation=60).join()
    for operation in range(1, 16):
        results = tmp_path / str(operation)
        shutil.copytree(tmp_path / "begun", results)
        run = run_directory.RunDirectory(results / whole[0].path.name)
        run.last.write_bytes(run.previous.read_bytes()[:1000])
        process = start([*argv, f"--results_dir={results}"], operation)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert training_state.read_states(run)[0], "no state is left"
        finish([*argv, f"--results_dir={results}"])
        assert content(run) == content(whole[0])


# Stopped


@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGTERM, 99, "signal"),
        (signal.SIGUSR1, 99, "signal"),
        (signal.SIGUSR2, 99, "signal"),
        (signal.SIGINT, 130, "interrupted"),
    ],
)
def test_a_signal_finishes_the_step_and_the_same_command_continues_within_the_epoch(tmp_path, number, code, word):
    flags = ["--dataset=Synthetic", "--device=cpu", "--train_samples=2000", "--test_samples=20", "--batch_size=8"]
    argv = [*flags, "--image_size=8", "--epochs=1", f"--results_dir={tmp_path}"]
    command = [sys.executable, "-u", str(ROOT / "main.py"), *argv]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline().startswith("training")
    time.sleep(1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.count("\n")) == (code, 1)
    assert word in stderr
    assert re.search(r"0\.\d+ of \d+ epochs are saved; run the same command again to continue", stderr)
    run = run_directory.RunDirectory(next(tmp_path.glob("vgg_*")))
    steps = len(files.read_torch(run.last)["within"]["losses"])
    assert 0 < steps < 250


def test_a_signal_while_modules_load_is_one_line():
    process = subprocess.Popen([sys.executable, ROOT / "main.py"], stderr=subprocess.PIPE, text=True)
    time.sleep(0.6)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.count("\n")) == (130, 1)


@pytest.mark.parametrize("stop_at", [1, 4, 5, 9, 30, 31])
def test_stopped_at_a_safe_point_it_continues_bit_for_bit(train, whole, tmp_path, monkeypatch, stop_at):
    """Each epoch has four safe points after steps and one in evaluation; the 31st is in the final evaluation."""
    passed = 0

    def came(points):
        nonlocal passed
        passed += 1
        return signal.SIGINT if passed == stop_at else 0

    with monkeypatch.context() as patch:
        patch.setattr("normstudy.cli.signals.SafePoints.signal", came)
        with pytest.raises(KeyboardInterrupt, match="epochs are saved; run the same command again to continue"):
            train(tmp_path)
    assert content(train(tmp_path)) == content(whole[0])


def test_a_closed_pipe_is_one_line():
    argv = ["--dataset=Synthetic", "--results_dir=/dev/null/none"]
    command = f"{sys.executable} {ROOT / 'main.py'} {' '.join(argv)} | true"
    answer = subprocess.run(command, shell=True, capture_output=True, text=True)
    assert answer.stderr.count("\n") == 1
    assert "Traceback" not in answer.stderr


# Disks


@contextlib.contextmanager
def small_disk(folder, size):
    """Mount a file system of `size` bytes."""
    folder.mkdir(exist_ok=True)
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder], capture_output=True)
    if mounted.returncode:
        pytest.skip("this user cannot mount a small file system")
    try:
        yield folder
    finally:
        subprocess.run(["umount", folder], check=True)


def leave_free(disk, size):
    """Fill a disk until `size` bytes are free; return the file that fills it."""
    filler = disk / "filler"
    filler.write_bytes(b"0" * max(shutil.disk_usage(disk).free - size, 0))
    return filler


@pytest.mark.parametrize("share", [0, 0.02, 0.1, 0.25, 0.4, 0.55, 0.7, 0.8, 0.9])
def test_a_full_disk_ends_the_run_in_one_line_and_it_goes_on_once_there_is_space(train, whole, tmp_path, share):
    with small_disk(tmp_path / "disk", 2_000_000) as disk:
        filler = leave_free(disk, int(share * sum(path.stat().st_size for path in whole[0].path.rglob("*"))))
        with pytest.raises(OSError, match="No space left") as caught:
            train(disk / "results", EVERY_STEP)
        assert "\n" not in describe_os_error(caught.value)
        assert "free some space" in describe_os_error(caught.value)
        for path in disk.rglob("*.pt"):
            files.read_torch(path)
        for path in disk.rglob("*.json"):
            files.read_json(path)
        filler.unlink()
        assert content(train(disk / "results")) == content(whole[0])


def test_a_full_disk_as_a_user_sees_it(small, tmp_path):
    with small_disk(tmp_path / "disk", 10_000_000) as disk:
        code, line = said(*small, "--epochs=1", f"--results_dir={disk}")
    assert (code, line.count("\n")) == (1, 1)
    assert "/checkpoints/" in line
    assert "free some space" in line


def said(*argv, script="main.py", **options):
    """Run a script as a user would; return (exit code, stderr)."""
    answer = subprocess.run([sys.executable, ROOT / script, *argv], capture_output=True, text=True, **options)
    return answer.returncode, answer.stderr


def test_a_read_only_disk_is_one_line(small, whole, tmp_path):
    with small_disk(tmp_path / "disk", 2_000_000) as disk:
        shutil.copytree(whole[0].path, disk / whole[0].path.name)
        subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
        for script, argv in (
            ("main.py", [*small, "--epochs=1", f"--results_dir={disk}"]),
            ("run_class_similarity.py", [str(disk / whole[0].path.name)]),
        ):
            code, line = said(*argv, script=script)
            assert (code, line.count("\n")) == (1, 1)
            assert "Read-only file system" in line


def without_privileges(argv, report):
    """Run main.py as a user who is not root, with stderr in the file `report`."""
    sys.stderr = open(report, "w")  # noqa: SIM115
    if not os.geteuid():
        os.setgroups([])
        os.setgid(65534)
        os.setuid(65534)
    commands.run_command(lambda: main.main(argv))


def test_a_folder_without_permission_is_one_line(small, tmp_path):
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o500)
    argv = [*small, "--epochs=1", f"--results_dir={locked / 'results'}"]
    process = processes.Process(target=without_privileges, args=(argv, tmp_path / "said"))
    process.start()
    process.join()
    line = (tmp_path / "said").read_text()
    assert (process.exitcode, line.count("\n")) == (1, 1)
    assert "Permission denied" in line


@pytest.mark.parametrize("target", ["a file", "a folder in it"])
def test_a_file_in_the_place_of_a_folder_is_one_line(small, tmp_path, target):
    (tmp_path / "file").write_text("text")
    results = tmp_path / "file" if target == "a file" else tmp_path / "file" / "results"
    code, line = said(*small, "--epochs=1", f"--results_dir={results}")
    assert (code, line.count("\n")) == (1, 1)
    assert "Not a directory" in line or "File exists" in line
    assert (tmp_path / "file").read_text() == "text"


def test_folders_may_have_any_name_and_be_links(train, whole, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "Läufe & Ergebnisse $1").symlink_to(tmp_path / "elsewhere")
    run = train(tmp_path / "Läufe & Ergebnisse $1" / "neu é")
    assert content(run) == content(whole[0])
    assert (tmp_path / "elsewhere" / "neu é" / "results.csv").exists()
    checkpoints = run.path / "checkpoints"
    checkpoints.rename(tmp_path / "moved")
    checkpoints.symlink_to(tmp_path / "moved")
    train(tmp_path / "Läufe & Ergebnisse $1" / "neu é")
    assert run_class_similarity.main([str(run.path)]) == 0


# Several processes


def test_two_processes_on_one_run_do_not_mix(small, whole, tmp_path):
    """One trains and the other ends with an error; later processes find the files of an uninterrupted run."""
    argv = [*small, "--epochs=6", f"--results_dir={tmp_path}", EVERY_STEP]
    for _ in range(3):
        both = [start(argv), start(argv)]
        for process in both:
            process.join()
        codes = sorted(process.exitcode for process in both)
        assert codes in ([0, 0], [0, 1])  # both succeed if the second one finds the run finished
    assert content(run_directory.RunDirectory(tmp_path / whole[0].path.name)) == content(whole[0])


def test_the_lock_of_a_dead_process_is_free(small, tmp_path):
    argv = [*small, "--epochs=6", f"--results_dir={tmp_path}"]
    process = start(argv, fatal_operation=10)
    process.join()
    assert process.exitcode == -signal.SIGKILL
    run = run_directory.RunDirectory(next(tmp_path.glob("vgg_*")))
    assert f"process {process.pid}" in (run.path / ".owner").read_text()
    finish(argv)


@pytest.mark.parametrize("error", [NotImplementedError(), OSError(errno.ENOLCK, "No locks available")])
def test_on_a_disk_without_locks_a_run_says_so_and_goes_on(train, whole, tmp_path, monkeypatch, capsys, error):
    def acquire(*_, **__):
        raise error

    monkeypatch.setattr("filelock.FileLock.acquire", acquire)
    assert content(train(tmp_path)) == content(whole[0])
    assert "this disk has no locks" in capsys.readouterr().err


def test_many_processes_add_to_the_table_at_once(small, tmp_path):
    """32 runs end at about the same time while the table is read: no row is lost, no partial file is seen."""
    running = [start([*small, "--epochs=1", f"--seed={seed}", f"--results_dir={tmp_path}"]) for seed in range(32)]
    seen = [0]
    while any(process.exitcode is None for process in running):
        if (tmp_path / "results.csv").exists():
            found = rows(tmp_path)
            assert all(list(row) == list(results_columns.COLUMNS) and row["run"] for row in found)
            seen.append(len(found))
        time.sleep(0.01)
    assert [process.exitcode for process in running] == [0] * 32
    assert seen == sorted(seen)
    assert sorted(int(row["seed"]) for row in rows(tmp_path)) == list(range(32))


# Memory


def watched(argv, every, readings):
    """Run child(argv); after every `every` steps, put (resident bytes, number of open files) into `readings`."""
    original, steps = loop.Training.pause, 0

    def pause(*arguments):
        nonlocal steps
        steps += 1
        if steps % every == 0:
            resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")
            readings.put((resident, len(os.listdir("/proc/self/fd"))))
        return original(*arguments)

    pytest.MonkeyPatch().setattr(loop.Training, "pause", pause)
    child(argv)


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    ("epochs", "batch_size", "steps"), [(1, 1, 50), (20, 10, 5)], ids=["over 200 steps", "over 20 epochs"]
)
def test_memory_and_open_files_stay_flat(small, tmp_path, epochs, batch_size, steps):
    """Probes are on and a state is saved at each step. Steps include the batches of each evaluation."""
    settings = [f"--epochs={epochs}", f"--batch_size={batch_size}", f"--results_dir={tmp_path}", EVERY_STEP]
    if epochs == 1:
        settings += ["--dataset=Synthetic", "--train_samples=250", "--test_samples=20"]
        small = [flag for flag in small if "data" not in flag]
    readings = processes.Queue()
    process = processes.Process(target=watched, args=([*small, *settings], steps, readings))
    process.start()
    found = [readings.get(timeout=120) for _ in range(epochs * (250 if epochs == 1 else 6) // steps)]
    process.join()
    assert process.exitcode == 0
    resident, open_files = zip(*found, strict=True)
    settled = len(found) // 4
    assert max(resident[settled:]) - resident[settled] < 3e6, resident
    assert len(set(open_files[settled:])) == 1, open_files


@pytest.mark.parametrize("script", ["main", "run_hessian", "run_class_similarity", "run_sweep", "run_report"])
def test_a_missing_package_is_one_line(script):
    """-S leaves out what pip installed."""
    done = subprocess.run([sys.executable, "-S", ROOT / f"{script}.py"], capture_output=True, text=True)
    words = f"{script}.py: error: the module "
    assert (done.returncode, done.stderr.count("\n"), done.stderr[: len(words)]) == (1, 1, words)
    assert "is not installed: run pip install -r requirements.txt" in done.stderr

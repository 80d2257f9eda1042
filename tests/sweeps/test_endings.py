"""How a sweep interprets the end of a child process: of scripts in place of main.py, and of real commands."""

import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest

import run_sweep
from normstudy.cli import UsageError, outcome
from normstudy.sweeps import command, endings, failures, grid, run_parts, workers

ROOT = Path(__file__).parents[2]
SMALL = ["--dataset=Synthetic", "--image_size=8", "--train_samples=50", "--test_samples=20", "--batch_size=16"]
SMALL += ["--device=cpu", "--epochs=1"]
OPTIONS = {"retries": 9, "run_timeout": None, "cluster": "local"}
SCRIPT = """
import os, signal, sys, time
from normstudy.cli import Busy, RunError, UsageError, run_command

def main():
    {}

run_command(main)
"""
CURE = "lower --jobs or --batch_size"
UNKNOWN_MEMORY = f"killed by the system (signal 9), most likely for lack of memory: {CURE}"
KILL = "os.kill(os.getpid(), signal.SIGKILL)"


@pytest.fixture
def work_off(tmp_path, monkeypatch):
    """Return a function that executes a run whose main.py consists of a given line; it returns (result, reason)."""
    monkeypatch.setattr(workers, "PROJECT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    [run], _ = grid.expand({"results_dir": str(tmp_path / "results")})

    def work(line, processes=1):
        (tmp_path / "main.py").write_text(SCRIPT.format(line))
        result, reason, _ = workers.Worker(OPTIONS | {"processes": processes}).work_off(run)
        noted = [failure.reason for failure in failures.read_failures(run).values()]
        assert noted == ([reason] if result == workers.FAILED else [])
        return result, reason

    return work


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("raise RunError('no images,\\n at all')", "main.py: error: no images,  at all"),
        ("raise UsageError('--a needs --b')", "main.py: error: --a needs --b"),
        ("open('/nowhere/at all')", "main.py: error: No such file or directory (/nowhere/at all)"),
        (
            "raise ModuleNotFoundError(name='timm')",
            "main.py: error: the module timm is not installed: run pip install -r",
        ),
        ("raise ValueError('a bug\\nin two lines')", "ValueError: a bug in two lines"),
        ("print('left out: main.py: error: is being worked on by'); sys.exit(3)", "exit code 3, see the log"),
        (KILL, UNKNOWN_MEMORY),
        ("os.kill(os.getpid(), signal.SIGALRM)", "ended by signal 14 (SIGALRM)"),
    ],
)
def test_the_reason_of_a_failure(work_off, line, reason):
    result, found = work_off(line)
    assert result == workers.FAILED
    assert found.startswith(reason)
    assert "\n" not in found


@pytest.mark.parametrize(
    ("line", "result"),
    [
        ("raise Busy('some words')", workers.ELSEWHERE),
        ("raise KeyboardInterrupt", workers.STOPPED),
        ("os.kill(os.getpid(), signal.SIGTERM); time.sleep(9)", workers.STOPPED),
        ("return 0", workers.DONE),
    ],
)
def test_ends_that_are_no_failures(work_off, line, result):
    assert work_off(line) == (result, "")


def test_the_traceback_of_a_bug_stays_in_the_log(work_off, tmp_path):
    work_off("raise ValueError('a bug')")
    [log] = tmp_path.glob("results/logs/*.log")
    assert "Traceback (most recent call last)" in log.read_text()


def test_a_later_attempt_knows_nothing_of_an_earlier_one(work_off, tmp_path):
    assert work_off("raise RunError('no images')") == (workers.FAILED, "main.py: error: no images")
    assert work_off("sys.exit(1)") == (workers.FAILED, "exit code 1, see the log")
    assert work_off("return 0") == (workers.DONE, "")
    assert {path.suffix for path in (tmp_path / "results" / "logs").iterdir()} == {".log"}


def test_a_kill_for_lack_of_memory_is_confirmed_by_the_counter(work_off, monkeypatch):
    monkeypatch.setattr(workers, "count_memory_kills", iter([4, 5]).__next__)
    assert work_off(KILL) == (
        workers.FAILED,
        "killed by the system for lack of memory: lower --jobs or --batch_size",
    )


def test_the_signal_of_a_shell_is_understood():
    assert endings.Ending(137).reason(CURE) == UNKNOWN_MEMORY
    assert endings.Ending(139).reason(CURE) == "ended by signal 11 (SIGSEGV)"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has the counter")
def test_the_counter_of_memory_kills_is_read(monkeypatch, tmp_path):
    """The counter of the control group has priority over that of the machine."""
    system = {"/proc/vmstat": "oom_kill_x 1\noom_kill 7\n", "/proc/self/cgroup": "4:memory:/b\n0::/job/step\n"}
    for name, text in system.items():
        (tmp_path / name[1:]).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name[1:]).write_text(text)
    monkeypatch.setattr(endings, "Path", lambda name: tmp_path / name[1:])
    assert endings.count_memory_kills() == 7
    group = tmp_path / "sys/fs/cgroup/job/step"
    group.mkdir(parents=True)
    (group / "memory.events").write_text("low 0\noom 3\noom_kill 2\noom_group_kill 0\n")
    assert endings.count_memory_kills() == 2


def test_the_first_of_several_processes_gives_the_reason(work_off):
    line = "time.sleep(60) if os.environ['RANK'] == '1' else None; raise RunError('no images')"
    assert work_off(line, processes=2) == (workers.FAILED, "main.py: error: no images")


def test_of_several_processes_one_that_is_killed_gives_the_reason(work_off):
    """torchrun stops the first process, which then reports that it was stopped. This is not the reason."""
    line = f"{KILL} if os.environ['RANK'] == '1' else time.sleep(60)"
    assert work_off(line, processes=2) == (workers.FAILED, UNKNOWN_MEMORY)


def test_outcomes_are_written_where_the_environment_says_so(tmp_path, monkeypatch):
    path = tmp_path / "outcome.json"
    monkeypatch.delenv(outcome.OUTCOME_VARIABLE, raising=False)
    outcome.report_outcome("failed", "nobody asks")
    monkeypatch.setenv(outcome.OUTCOME_VARIABLE, str(path))
    assert outcome.read_outcome(path) is None
    outcome.report_outcome("failed", "first")
    outcome.report_outcome("usage", "not\ntext: \udcff")
    assert outcome.read_outcome(path) == outcome.Outcome("usage", "not text: \udcff")
    assert list(tmp_path.iterdir()) == [path]
    monkeypatch.setenv(outcome.OUTCOME_VARIABLE, str(tmp_path / "nowhere" / "outcome.json"))
    outcome.report_outcome("failed", "no such folder")


# Real commands


def sweep(results, *argv):
    return run_sweep.main([*SMALL, f"--results_dir={results}", *argv])


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    results = tmp_path_factory.mktemp("trained")
    assert sweep(results, "--measure=none") == 0
    return results


def test_a_wrong_flag_of_a_measurement_ends_the_command_before_anything_trains(tmp_path, capsys):
    with pytest.raises(SystemExit) as ended:
        sweep(tmp_path / "new", "--measure=class_similarity", "--class_similarity_flags=--nosuch=1")
    assert ended.value.code == 2
    assert "run_class_similarity.py: error: unrecognized arguments: --nosuch=1" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
    with pytest.raises(SystemExit):
        sweep(tmp_path / "new", "--measure=hessian", "--hessian_flags=--bn_mode=train --batch_size=9")
    assert "--batch_size does not apply to --bn_mode=train" in capsys.readouterr().err
    with pytest.raises(UsageError, match="asks for hessian-ggn twice; add --tag=NAME to one of them"):
        sweep(
            tmp_path / "new", "--measure=hessian", "--hessian_flags=--curvature=ggn", "--hessian_flags=--curvature=ggn"
        )


def test_a_run_may_be_measured_several_times(trained, capsys):
    given = ["--measure=class_similarity", "--class_similarity_flags=--samples=20"]
    assert sweep(trained, *given) == 0
    assert sweep(trained, *given, "--class_similarity_flags=--samples=20 --split=test --tag=test") == 0
    [run] = trained.glob("vgg_*")
    stamps = [(run / name).stat().st_mtime_ns for name in ("class_similarity.json", "class_similarity-test.json")]
    assert sweep(trained, *given, "--class_similarity_flags=--samples=20 --split=test --tag=test") == 0
    assert stamps == [
        (run / name).stat().st_mtime_ns for name in ("class_similarity.json", "class_similarity-test.json")
    ]
    for name in ("class_similarity.json", "class_similarity-test.json"):
        (run / name).unlink()


def test_a_measurement_that_fails_gives_its_reason(trained, capsys):
    flag = "--class_similarity_flags=--checkpoint=epoch_0099"
    assert sweep(trained, "--measure=class_similarity", "--retry_failed", "--retries=0", flag) == 1
    [noted] = trained.glob("logs/*.failed")
    assert noted.read_text().startswith("class_similarity, attempt 1: left out: ")
    assert "(class_similarity: left out: " in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, 1], ids=["to measure", "to train"])
def test_a_run_that_another_process_works_on_has_not_failed(trained, capsys, seed):
    parsed = command.parse_command([*SMALL, f"--results_dir={trained}", f"--seed={seed}"])
    [run], _ = grid.expand(parsed.grid)
    with run.directory.lock():
        assert sweep(trained, f"--seed={seed}", "--measure=class_similarity", "--retry_failed") == 1
    said = capsys.readouterr().out
    assert f"another process is working on {run.directory.path.name}" in said
    assert "0 of 1 runs are done, 1 unfinished" in said
    assert not run_parts.failure_path(run).exists()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux enforces the limit")
def test_too_little_memory_is_a_reason(tmp_path):
    """Images take 51 GB each, in a process that is limited to 32 GB."""
    size = 32 * 2**30
    argv = [*SMALL, "--image_size=65536", f"--results_dir={tmp_path}", "--measure=none", "--retries=0"]
    done = subprocess.run(
        [sys.executable, str(ROOT / "run_sweep.py"), *argv],
        capture_output=True,
        text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size, size)),
    )
    assert done.returncode == 1, done.stderr
    [noted] = tmp_path.glob("logs/*.failed")
    reason = "main.py: error: cpu has too little memory: lower --batch_size or --image_size"
    assert noted.read_text() == f"training, attempt 1: {reason}\n"

"""Runs that fail: how often they are tried again, and when a failure no longer counts."""

import re

import pytest
from sweeps_helpers import ROOT, PretendedSweeps

import run_sweep
from normstudy.storage import write_json
from normstudy.sweeps import workers


@pytest.fixture
def sweeps(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PROJECT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    return PretendedSweeps(tmp_path)


def sweep(sweeps, *argv, seeds=(0,)):
    return run_sweep.main([*sweeps.flags(*seeds), *argv])


def starts(sweeps, script="main.py"):
    """Return how often a script was started for the run with seed 0."""
    [log] = sweeps.results.glob("logs/*_seed0_*.log")
    return log.read_text().count(f"$ python {script}")


def failure(sweeps):
    [path] = sweeps.results.glob("logs/*.failed")
    return path.read_text()


def test_a_failed_run_is_started_again_once_by_default_and_then_left_alone(sweeps, capsys):
    sweeps.plan({"0": "fails"})
    assert sweep(sweeps) == 1
    assert "will be tried again: vgg" in capsys.readouterr().out
    assert failure(sweeps) == "training, attempt 2: main.py: error: no images\n"
    assert sweep(sweeps) == 1
    assert starts(sweeps) == 2


def test_retries_are_counted_over_sweeps(sweeps):
    sweeps.plan({"0": "fails"})
    assert sweep(sweeps, "--retries=0") == 1
    assert starts(sweeps) == 1
    assert sweep(sweeps, "--retries=2") == 1
    assert starts(sweeps) == 3
    assert sweep(sweeps, "--retries=2") == 1
    assert starts(sweeps) == 3
    assert sweep(sweeps, "--retries=2", "--retry_failed") == 1
    assert starts(sweeps) == 6


def test_a_retry_that_succeeds_leaves_no_trace(sweeps):
    sweeps.plan({"0": "fails"})
    assert sweep(sweeps, "--retries=0") == 1
    sweeps.plan({})
    assert sweep(sweeps) == 0
    assert not list(sweeps.results.glob("logs/*.failed"))


@pytest.mark.parametrize(
    ("plan", "argv", "reason"),
    [
        ("wrong", [], "main.py: error: --a needs --b"),
        ("hangs", ["--run_timeout=3s"], "stopped after 3 s by --run_timeout"),
    ],
)
def test_what_would_fail_again_is_not_tried_again(sweeps, capsys, plan, argv, reason):
    sweeps.plan({"0": plan})
    assert sweep(sweeps, *argv, "--retries=5") == 1
    assert failure(sweeps) == f"training, attempt 1, not repeated: {reason}\n"
    assert sweep(sweeps, *argv, "--retries=5") == 1
    assert starts(sweeps) == 1
    assert f"({reason})" in capsys.readouterr().out
    assert (sweeps.folder / "saved").exists() == (plan == "hangs"), "the run is stopped as with Ctrl-C"


def test_a_run_that_was_stopped_by_its_time_limit_is_continued_on_request(sweeps):
    sweeps.plan({"0": "hangs"})
    assert sweep(sweeps, "--run_timeout=3s") == 1
    sweeps.plan({})
    assert sweep(sweeps, "--run_timeout=3s") == 1
    assert sweep(sweeps, "--run_timeout=60s", "--retry_failed") == 0


def test_a_run_that_ignores_the_time_limit_is_killed(sweeps, monkeypatch):
    monkeypatch.setattr(workers, "SAVING_SECONDS", 0.2)
    (sweeps.folder / "main.py").write_text(
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    )
    assert sweep(sweeps, "--run_timeout=1s") == 1
    assert "stopped after 1 s by --run_timeout" in failure(sweeps)


def test_a_run_that_succeeded_by_hand_is_done(sweeps, capsys):
    sweeps.plan({"0": "fails"})
    assert sweep(sweeps) == 1
    run = sweeps.run_of(0)
    write_json(run / "summary.json", {"status": "done"})
    assert sweep(sweeps, "--dry_run") == 0
    assert "to measure  vgg" in capsys.readouterr().out
    write_json(run / "class_similarity.json", {"seconds": 1.0})
    assert sweep(sweeps) == 0
    assert "1 of 1 runs are done" in capsys.readouterr().out
    assert starts(sweeps) == 2


def test_a_failed_measurement_is_tried_again_alone_and_keeps_no_other_from_being_made(sweeps, capsys):
    sweeps.plan({"0": "unmeasured"})
    assert sweep(sweeps, "--measure=class_similarity,measures") == 1
    trained = (sweeps.run_of(0) / "summary.json").stat().st_mtime_ns
    (sweeps.folder / "run_measures.py").write_text(
        "import sys; from pathlib import Path; (Path(sys.argv[1]) / 'measures.json').write_text('{}')"
    )
    lines = failure(sweeps).splitlines()
    assert [line.partition(",")[0] for line in lines] == ["class_similarity", "measures"]
    said = capsys.readouterr().out
    assert re.search(r"\(class_similarity: run_class_similarity.py: error: too few images; measures: ", said)
    assert sweep(sweeps, "--measure=class_similarity,measures", "--retry_failed") == 1
    assert (sweeps.run_of(0) / "measures.json").exists()
    assert failure(sweeps).startswith("class_similarity, attempt 2: ")
    assert len(failure(sweeps).splitlines()) == 1
    assert (sweeps.run_of(0) / "summary.json").stat().st_mtime_ns == trained


def test_a_reason_that_an_earlier_version_noted_is_shown(sweeps, capsys):
    sweeps.plan({"0": "fails"})
    assert sweep(sweeps, "--retries=0") == 1
    [path] = sweeps.results.glob("logs/*.failed")
    path.write_text("main.py: error: no images\n")
    capsys.readouterr()
    assert sweep(sweeps, "--retries=0") == 1
    assert "(main.py: error: no images), see" in capsys.readouterr().out


def test_fail_fast_waits_for_the_retries(sweeps, capsys):
    sweeps.plan({"0": "fails"})
    assert sweep(sweeps, "--fail_fast", "--retries=2") == 1
    assert starts(sweeps) == 3
    assert "1 failed" in capsys.readouterr().out

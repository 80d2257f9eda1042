"""--status and --follow: of a sweep that runs in another process, that has ended, and that was killed."""

import re
import signal
import subprocess
import sys

import pytest
from helpers import wait_until
from sweeps_helpers import ROOT, PretendedSweeps

import run_sweep
from normstudy.cli import UsageError
from normstudy.sweeps import workers


@pytest.fixture
def sweeps(tmp_path, monkeypatch):
    monkeypatch.setattr(workers, "PROJECT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("COLUMNS", "80")
    return PretendedSweeps(tmp_path)


@pytest.fixture
def status(sweeps, capsys):
    """Return a function that returns the lines of --status, of the last sweep unless flags are given."""

    def read(*argv):
        capsys.readouterr()
        assert run_sweep.main([*(argv or [f"--results_dir={sweeps.results}"]), "--status"]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        return lines

    return read


def states(lines):
    """Return {seed: (state, its detail)} of the lines of --status."""
    found = {}
    for line in lines:
        run = re.match(r" +\d+  (\w+) +\S*_seed(\d)", line)
        if run:
            seed = int(run[2])
            found[seed] = run[1], ""
        elif line.startswith(" " * 15):
            found[seed] = found[seed][0], f"{found[seed][1]} {line.strip()}".strip()
    return found


def test_the_time_of_a_run_that_stops_at_a_loss_is_a_maximum(sweeps, status):
    sweeps.plan({"1": "waits"})
    process = sweeps.start(*sweeps.flags(0, 1), "--stop_at_loss=0.1", "--lr_schedule=constant")
    wait_until(lambda: list(sweeps.results.glob("*_seed1_*/metrics.csv")))
    assert states(status())[1] == ("running", "training, 1 of 4 epochs done, at most 50 s left")
    sweeps.go()
    assert process.wait(60) == 0


def test_a_sweep_in_another_process_is_shown_with_its_time_left(sweeps, status):
    """The epochs take 10 s and the measurement 20 s. Run 2 has one of four epochs, so it takes 50 s, and run 3 60 s."""
    sweeps.plan({"1": "fails", "2": "waits"})
    process = sweeps.start(*sweeps.flags(0, 1, 2, 3), "--retries=0")
    wait_until(lambda: list(sweeps.results.glob("*_seed2_*/metrics.csv")))
    lines = status()
    assert states(lines) == {
        0: ("done", ""),
        1: ("failed", "main.py: error: no images"),
        2: ("running", "training, 1 of 4 epochs done, about 50 s left"),
        3: ("waiting", ""),
    }
    assert lines[-2].startswith("time left: about 1 min 50 s, with 1 at once, estimated from 1 finished run")
    assert lines[-1] == "4 runs: 1 done, 1 running, 1 waiting, 1 failed"
    assert f"process {process.pid} on" in " ".join(map(str.strip, lines))
    sweeps.go()
    assert process.wait(60) == 1
    lines = status()
    assert {seed: state for seed, (state, _) in states(lines).items()} == {
        0: "done",
        1: "failed",
        2: "done",
        3: "done",
    }
    assert lines[-2:] == [
        "nothing is left to do; --retry_failed runs the failed runs again",
        "4 runs: 3 done, 0 running, 0 waiting, 1 failed",
    ]


def test_a_killed_sweep_is_not_running(sweeps, status):
    sweeps.plan({"0": "waits"})
    process = sweeps.start(*sweeps.flags(0, 1))
    wait_until(lambda: list(sweeps.results.glob("*_seed0_*/metrics.csv")))
    process.kill()
    process.wait()
    assert states(status())[0][0] == "running", "its child goes on"
    sweeps.go()
    wait_until(lambda: states(status())[0][0] == "waiting")
    lines = status()
    assert states(lines) == {0: ("waiting", "to be measured: class_similarity"), 1: ("waiting", "")}
    assert "none is running: give the sweep's command again" in " ".join(map(str.strip, lines))


def test_a_run_that_will_be_tried_again_says_why(sweeps, status):
    sweeps.plan({"0": "fails", "1": "waits"})
    process = sweeps.start(*sweeps.flags(0, 1), "--retries=1")
    wait_until(lambda: list(sweeps.results.glob("*_seed1_*/metrics.csv")))
    assert states(status())[0] == (
        "waiting",
        "will be tried again: main.py: error: no images; 1 of 4 epochs are saved",
    )
    process.send_signal(signal.SIGTERM)
    assert process.wait(60) == 99
    assert states(status())[1] == ("waiting", "1 of 4 epochs are saved")


def test_status_only_reads_and_needs_no_sweep_that_was_started(sweeps, status, tmp_path):
    sweeps.plan({"1": "diverges"})
    assert run_sweep.main(sweeps.flags(0, 1)) == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    assert states(status()) == {0: ("done", ""), 1: ("done", "diverged")}
    assert status(*sweeps.flags(0, 1, 2))[-1] == "3 runs: 2 done, 0 running, 1 waiting, 0 failed"
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    with pytest.raises(UsageError, match="no sweep was started in"):
        status(f"--results_dir={tmp_path / 'nowhere'}")
    assert status("--seed=7", f"--results_dir={tmp_path / 'nowhere'}")[-1].startswith("1 run: 0 done")


def test_the_status_of_a_sweep_that_tunes_counts_the_runs_that_wait_for_a_rate(sweeps, status):
    """The validation accuracy is the rate, so the larger rate is chosen."""
    argv = [*sweeps.flags(0, 1, 2), "--tune=init_lr:0.1,1"]
    assert status(*argv)[-1] == "4 runs: 0 done, 0 running, 4 waiting, 0 failed"
    assert run_sweep.main(argv) == 0
    assert status()[-1] == "4 runs: 4 done, 0 running, 0 waiting, 0 failed"


def test_long_names_are_shortened_in_the_middle(sweeps, status):
    argv = ["--norm_type=ScaledWeightStandardization", "--arch=resnet-56", "--dataset=ImageFolder", "--preact=True"]
    [name] = [line for line in status(*argv, f"--results_dir={sweeps.results}") if "waiting " in line][:1]
    assert re.fullmatch(r"    1  waiting resnet-56_ScaledWeightStandardization_Im\S*…\S*_seed0_[0-9a-f]{8}", name)


# --follow


def test_a_log_is_followed_until_its_run_ends(sweeps):
    sweeps.plan({"1": "waits"})
    process = sweeps.start(*sweeps.flags(0, 1))
    wait_until(lambda: list(sweeps.results.glob("*_seed1_*/metrics.csv")))
    follow = sweeps.start("--follow=2", f"--results_dir={sweeps.results}")
    assert "python main.py" in follow.stdout.readline()
    assert follow.poll() is None
    sweeps.go()
    said = follow.stdout.read()
    assert follow.wait(60) == 0
    assert "an epoch\n$ python run_class_similarity.py" in said
    assert said.splitlines()[-1] == f"-- {sweeps.run_of(1).name}: done"
    assert process.wait(60) == 0


def test_ctrl_c_ends_following_and_leaves_the_sweep_alone(sweeps):
    sweeps.plan({"0": "waits"})
    process = sweeps.start(*sweeps.flags(0))
    wait_until(lambda: list(sweeps.results.glob("*_seed0_*/metrics.csv")))
    follow = sweeps.start("--follow=vgg_BatchNorm", f"--results_dir={sweeps.results}")
    follow.stdout.readline()
    follow.send_signal(signal.SIGINT)
    said = follow.stdout.read()
    assert (follow.wait(60), said.splitlines()[-1]) == (130, "-c: interrupted; the sweep is not affected")
    assert process.poll() is None
    sweeps.go()
    assert process.wait(60) == 0


def test_a_failed_run_is_followed_to_its_reason(sweeps, capsys):
    sweeps.plan({"0": "killed"})
    assert run_sweep.main([*sweeps.flags(0), "--retries=0"]) == 1
    capsys.readouterr()
    assert run_sweep.main([f"--results_dir={sweeps.results}", "--follow=1"]) == 0
    assert re.search(r"-- vgg\S+: failed \(killed by the system .*: lower --jobs or", capsys.readouterr().out)


@pytest.mark.parametrize(
    ("wanted", "message"),
    [("3", "has runs 1 to 2"), ("vgg", "2 runs of the sweep begin"), ("vit", "no run of the sweep begins")],
)
def test_a_run_must_be_named_exactly(sweeps, wanted, message):
    with pytest.raises(UsageError, match=message):
        run_sweep.main([*sweeps.flags(0, 1), f"--follow={wanted}"])


def test_looking_at_a_sweep_needs_no_torch(sweeps):
    code = "import run_sweep, sys; run_sweep.main(sys.argv[1:]); assert 'torch' not in sys.modules"
    argv = [sys.executable, "-c", code, *sweeps.flags(0), "--status"]
    subprocess.run(argv, cwd=ROOT, check=True, capture_output=True)

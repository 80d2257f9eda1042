"""Sweeps on a real Slurm, whose jobs are stopped, queued again, cancelled and rejected."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import content, wait_until

import run_sweep
from normstudy.cli import UsageError
from normstudy.storage import files, run_directory
from normstudy.sweeps import flag_values, slurm_queue

ROOT = Path(__file__).parents[2]
SMALL = ["--dataset=Synthetic", "--image_size=8", "--test_samples=20", "--batch_size=16"]
SMALL += ["--device=cpu", "--norm_type=LayerNorm"]
LONG = ["--epochs=8", "--train_samples=500", "--measure=none", "--probe_layers=False"]


def has_slurm():
    return shutil.which("sbatch") and subprocess.run(["sinfo"], capture_output=True).returncode == 0


@pytest.fixture
def cluster(monkeypatch, tmp_path):
    if not has_slurm():
        pytest.skip("no Slurm accepts jobs here; .ci/slurm starts one")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    yield
    for path in tmp_path.glob("**/logs/slurm-*.json"):
        subprocess.run(["scancel", "--quiet", path.stem.removeprefix("slurm-")], check=True)


def sweep(results, *flags):
    return run_sweep.main([*SMALL, f"--results_dir={results}", "--cluster=slurm", "--slurm_time=10", *flags])


def wait_for(condition):
    wait_until(condition, seconds=180)


def the_run(results):
    return run_directory.RunDirectory(next(results.glob("vgg_*")))


def job_of(results):
    [array] = [path.stem.removeprefix("slurm-") for path in (results / "logs").glob("slurm-*.json")]
    return array


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
class TestOnSlurm:
    def test_jobs_train_measure_and_add_their_rows(self, tmp_path, capsys):
        """A second command follows the jobs that the first one queued."""
        flags = ["--seed=0,1", "--epochs=1", "--train_samples=50", "--measure=class_similarity", "--jobs=2"]
        assert sweep(tmp_path, *flags, "--wait=False") == 0
        assert sweep(tmp_path, *flags, "--wait=False") == 0
        said = capsys.readouterr().out
        assert "2 runs in" in said
        assert "2 queued" in said
        assert "queued 2 runs as job array" in said
        assert "queued their measurements as job array" in said
        assert said.count("job array") == 2
        assert sweep(tmp_path, *flags) == 0
        said = capsys.readouterr().out
        assert said.count("done: vgg") + said.count("2 done") * 2 == 2
        assert "2 of 2 runs are done" in said
        rows = files.read_csv(tmp_path / "results.csv")
        assert sorted(row["seed"] for row in rows) == ["0", "1"]
        assert all(row["Class Similarity"] for row in rows)

    def test_a_run_that_fails_is_said(self, tmp_path, capsys):
        flags = ["--dataset=ImageFolder", f"--data_dir={tmp_path / 'nowhere'}", "--epochs=1", "--measure=none"]
        assert sweep(tmp_path, *flags) == 1
        said = capsys.readouterr().out
        assert "failed: vgg" in said
        assert "nowhere" in said
        assert "0 of 1 runs are done, 1 failed" in said

    @pytest.mark.parametrize(
        "stop",
        [
            "scancel --signal=USR2 {job}",
            "scontrol requeue {job}",
            "sbatch --partition=urgent --exclusive --wait --output=/dev/null --wrap=true",
        ],
        ids=["signal", "requeue", "preemption"],
    )
    def test_a_job_that_is_stopped_is_queued_again_and_gives_the_same_bits(self, tmp_path, stop):
        """Slurm sends USR2 before the time limit. A job in a partition of higher priority takes the whole node."""
        if "urgent" in stop and not subprocess.run(["sinfo", "-h", "-p", "urgent"], capture_output=True).stdout:
            pytest.skip("no partition named urgent that preempts others; .ci/slurm makes one")
        assert sweep(tmp_path / "stopped", *LONG, "--wait=False") == 0
        wait_for(lambda: list((tmp_path / "stopped").glob("*/checkpoints/last.pt")))
        run = the_run(tmp_path / "stopped")
        wait_for(lambda: files.read_torch(run.last)["epoch"] >= 2)
        subprocess.run(stop.format(job=job_of(tmp_path / "stopped")).split(), check=True)
        assert sweep(tmp_path / "stopped", *LONG) == 0
        log = run.log.read_text()
        assert log.count("of 8 epochs done") == 2
        assert log.count("epochs are saved; run the same command again") == 1, (
            "the run was killed instead of being asked to save"
        )
        assert "training vgg with LayerNorm on Synthetic (cpu), 0 of" in log
        argv = [sys.executable, str(ROOT / "main.py"), *SMALL, *LONG, f"--results_dir={tmp_path / 'undisturbed'}"]
        subprocess.run([word for word in argv if "measure" not in word], check=True, capture_output=True)
        assert content(run) == content(the_run(tmp_path / "undisturbed"))

    def test_measuring_jobs_wait_for_their_training_and_leave_with_a_failed_one(self, tmp_path, capsys):
        """The images of ImageFolder do not exist. The other training is queued again once, and then measured."""
        argv = [f"--data_dir={tmp_path / 'nowhere'}", "--dataset=ImageFolder,Synthetic", "--retries=0", "--epochs=5"]
        argv += ["--train_samples=100", "--probe_layers=False", "--measure=class_similarity"]
        assert sweep(tmp_path, *argv, "--wait=False") == 0
        training, measuring = sorted(
            (path.stem.removeprefix("slurm-") for path in (tmp_path / "logs").glob("slurm-*.json")), key=int
        )
        wait_for(lambda: list(tmp_path.glob("*_Synthetic_*/checkpoints/last.pt")))
        subprocess.run(["scancel", "--signal=USR2", f"{training}_1"], check=True)
        states = ["squeue", "--noheader", "--array", f"--jobs={measuring}", "--format=%t %r"]
        queued = subprocess.run(states, capture_output=True, text=True, check=True).stdout
        assert "PD Dependency" in queued
        assert sweep(tmp_path, *argv) == 1
        said = capsys.readouterr().out
        assert "1 of 2 runs are done, 1 failed" in said
        assert "nowhere" in said
        [log] = (tmp_path / "logs").glob("*_Synthetic_*.log")
        assert log.read_text().count("$ python main.py") == 2
        assert log.read_text().count("$ python run_class_similarity.py") == 1

    def test_a_measurement_that_failed_is_a_job_alone(self, tmp_path, capsys):
        """A single run makes a job without an array, on which its measurement depends."""
        argv = ["--epochs=1", "--train_samples=50", "--measure=class_similarity", "--retries=0"]
        wrong = "--class_similarity_flags=--checkpoint=epoch_0099"
        assert sweep(tmp_path, *argv, wrong) == 1
        assert "(class_similarity: left out: " in capsys.readouterr().out
        assert sweep(tmp_path, *argv, "--retry_failed") == 0
        assert "queued the measurements of 1 trained runs" in capsys.readouterr().out
        [log] = (tmp_path / "logs").glob("*.log")
        assert log.read_text().count("$ python main.py") == 1

    def test_a_run_is_shown_and_stopped_by_its_time_limit(self, tmp_path, capsys):
        argv = ["--epochs=200", "--train_samples=100", "--measure=none", "--run_timeout=20s"]
        assert sweep(tmp_path, *argv, "--wait=False") == 0
        wait_for(lambda: list(tmp_path.glob("logs/*.log")))
        capsys.readouterr()
        assert run_sweep.main([f"--results_dir={tmp_path}", "--status"]) == 0
        said = " ".join(capsys.readouterr().out.split())  # lines break where the path of the folder is long
        assert "its jobs were queued on Slurm" in said
        assert "1 run: 0 done, 1 running, 0 waiting, 0 failed" in said
        assert sweep(tmp_path, *argv) == 1
        assert "stopped after 20 s by --run_timeout" in capsys.readouterr().out

    def test_rates_are_tuned(self, tmp_path, capsys):
        argv = ["--seed=0,1", "--tune=lr:0.001,0.01", "--epochs=1", "--train_samples=50", "--measure=none"]
        assert sweep(tmp_path, *argv, "--wait=False") == 0
        assert "run the same command again when the tuning runs have ended" in capsys.readouterr().out
        assert sweep(tmp_path, *argv) == 0
        assert "3 of 3 runs are done" in capsys.readouterr().out

    def test_a_cancelled_job_saves_and_stays_away(self, tmp_path, capsys):
        assert sweep(tmp_path, *LONG, "--wait=False") == 0
        wait_for(lambda: list(tmp_path.glob("*/checkpoints/last.pt")))
        subprocess.run(["scancel", job_of(tmp_path)], check=True)
        wait_for(lambda: not slurm_queue.queued_runs(tmp_path))
        run = the_run(tmp_path)
        assert not (run.path / ".owner").exists(), "a child process is still running"
        log = (tmp_path / "logs" / f"{run.path.name}.log").read_text()
        assert "epochs are saved; run the same command again" in log
        assert not run.summary.exists()
        capsys.readouterr()
        assert sweep(tmp_path, *LONG, "--dry_run") == 0
        assert "1 unfinished" in capsys.readouterr().out

    def test_what_slurm_refuses_is_one_line(self, tmp_path):
        argv = [sys.executable, str(ROOT / "run_sweep.py"), *SMALL, "--cluster=slurm", f"--results_dir={tmp_path}"]
        done = subprocess.run([*argv, "--slurm_partition=nosuch"], capture_output=True, text=True)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1)
        assert "invalid partition" in done.stderr


@pytest.mark.parametrize(
    ("text", "minutes"),
    [("90", 90), ("90:00", 90), ("1:30:00", 90), ("0:30", 1), ("2-0", 2880), ("1-12:30", 2190), ("1-0:0:1", 1441)],
)
def test_times_are_read_as_slurm_reads_them(text, minutes):
    assert flag_values.slurm_minutes(text) == minutes


@pytest.mark.parametrize("text", ["", "0", "1h", "1:2:3:4", "-5", "1-"])
def test_what_is_no_time_is_refused(text):
    with pytest.raises(ValueError, match=r"is not a time (as minutes|above zero)"):
        flag_values.slurm_minutes(text)


def test_flags_of_sbatch_are_handed_on():
    assert flag_values.sbatch_flags("--qos=low --exclusive --comment='two words'") == {
        "qos": "low",
        "exclusive": True,
        "comment": "two words",
    }
    with pytest.raises(UsageError, match="qos"):
        flag_values.sbatch_flags("qos=low")


def test_without_slurm_it_is_a_usage_error(tmp_path):
    argv = [sys.executable, str(ROOT / "run_sweep.py"), *SMALL, "--cluster=slurm", f"--results_dir={tmp_path}"]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"PATH": "/nowhere"})
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is not on this machine" in done.stderr

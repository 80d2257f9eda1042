"""Expansion of grids, and small sweeps of real runs that succeed, fail, are stopped and continue."""

import collections
import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import run_sweep
from config import FLAGS, parse_args
from normstudy.cli import UsageError
from normstudy.storage import files
from normstudy.sweeps import command, flags, grid, presets

ROOT = Path(__file__).parents[2]
SMALL = ["--dataset=Synthetic", "--image_size=8", "--train_samples=50", "--test_samples=20", "--batch_size=16"]
SMALL += ["--device=cpu", "--epochs=1", "--measure=class_similarity"]


def expand(*argv):
    parsed = command.parse_command(argv)
    return grid.expand(parsed.grid, parsed.options["preset"])


def rows(results):
    with open(results / "results.csv", newline="") as file:
        return list(csv.DictReader(file))


# Grids


def test_a_grid_is_the_product_of_its_values():
    runs, left_out = expand("--norm_type=LayerNorm,Plain", "--seed=0,1,2", "--batch_size=16,256")
    assert len({run.directory.path for run in runs}) == len(runs) == 12
    assert left_out == {}
    assert {(run.config.norm_type, run.config.seed, run.config.epochs) for run in runs} >= {("LayerNorm", 2, 10)}


def test_a_flag_that_a_combination_cannot_honour_does_not_multiply_it():
    runs, _ = expand("--arch=vgg,resnet-56", "--norm_type=BatchNorm,GroupNorm", "--p_grouping=8,32", "--seed=0,1,2")
    assert collections.Counter(run.config.norm_type for run in runs) == {"BatchNorm": 6, "GroupNorm": 12}


def test_what_main_would_refuse_is_left_out_and_counted():
    runs, left_out = expand("--arch=vgg,resnet-56", "--norm_type=GroupNorm", "--p_grouping=32,64", "--seed=0,1")
    assert len(runs) == 6
    [(reason, number)] = left_out.items()
    assert "64 groups do not divide" in reason
    assert number == 2


def test_where_main_would_refuse_everything_it_is_a_usage_error():
    with pytest.raises(UsageError, match="brings its own convolution"):
        expand("--norm_type=WeightNorm", "--conv_type=sWS")


def test_the_original_study_is_a_preset():
    """Its table has 742 rows: vgg's 152 twice, because skipinit does nothing there, and all but two of vit's."""
    runs, left_out = expand("--preset=original")
    assert collections.Counter(run.config.arch for run in runs) == {"vgg": 152, "resnet-56": 288, "vit": 152}
    assert sum(left_out.values()) == 16
    assert 152 + len(runs) - 2 == 742


def test_the_study_that_comes_along_is_its_preset():
    shipped = {path.parent.name for path in (ROOT / "results" / "cpu_study").glob("*/summary.json")}
    assert {run.directory.path.name for run in expand("--preset=cpu_study")[0]} == shipped
    assert len(shipped) == 57


def test_flags_beside_a_preset_replace_and_multiply():
    runs, _ = expand("--preset=quick", "--norm_type=EvoNormBO", "--seed=1,2")
    assert [(run.config.norm_type, run.config.seed) for run in runs] == [("EvoNormBO", 1), ("EvoNormBO", 2)]
    assert runs[0].config.dataset == "Synthetic"


def test_a_preset_brings_flags_of_the_sweep_which_can_be_replaced():
    parsed = command.parse_command(["--preset=converged"])
    assert parsed.options["tune"] == ("lr", (0.005, 0.01, 0.02, 0.04, 0.08, 0.16))
    runs, _ = command.runs_of(parsed)
    assert len(runs) == 8 * 6 * 5
    measured = {"class_similarity", "hessian", "hessian-element", "hessian-filter", "measures"}
    for run in runs:
        in_train_mode = {"hessian-train-filter"} if run.config.norm_type in ("BatchNorm", "EvoNormBO") else set()
        assert set(run.measurements) == measured | in_train_mode
    parsed = command.parse_command(["--preset=converged", "--tune=lr:1,2", "--measure=none", "--norm_type=RMSNorm"])
    runs, _ = command.runs_of(parsed)
    assert [run.config.lr for run in runs] == 5 * [1.0, 2.0]
    assert not any(run.measurements for run in runs)
    runs, _ = command.runs_of(command.parse_command(["--preset=converged", "--lr=0.3", "--norm_type=RMSNorm"]))
    assert [(run.config.lr, run.config.seed) for run in runs] == [(0.3, seed) for seed in range(5)]


@pytest.mark.parametrize("preset", presets.PRESETS)
def test_main_understands_the_flags_of_every_run(preset):
    runs, _ = expand(f"--preset={preset}", "--results_dir=some/where", "--device=cpu")
    assert all(parse_args(run.flags) == run.config for run in runs)


def test_every_flag_of_main_can_be_swept():
    parser = flags.build_parser()
    swept = {action.dest for action in parser._actions} - {"help"} - set(flags.own_flags(parser))
    assert swept == {option.name for option in FLAGS} - set(flags.NOT_SWEPT)


def test_planning_needs_no_torch():
    subprocess.run(
        [sys.executable, "-c", "import run_sweep, sys; assert 'torch' not in sys.modules"], cwd=ROOT, check=True
    )


@pytest.mark.parametrize(
    "flags",
    [["--norm_type=BatchNorm,Foo"], ["--jobs=0"], ["--gpus=a"], ["--measure=foo"], ["--preset=foo"], ["--seed="]],
)
def test_a_wrong_flag_is_one_line(flags, capsys):
    with pytest.raises(SystemExit) as caught:
        run_sweep.main(flags)
    assert caught.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_a_dry_run_lists_and_makes_nothing(tmp_path, capsys):
    assert run_sweep.main([*SMALL, "--seed=0,1", f"--results_dir={tmp_path / 'r'}", "--dry_run"]) == 0
    said = capsys.readouterr().out
    assert "2 new" in said
    assert said.count("       new  vgg_BatchNorm") == 2
    assert not (tmp_path / "r").exists()


# Sweeps


def sweep(results, *flags):
    return run_sweep.main([*SMALL, f"--results_dir={results}", *flags])


@pytest.fixture(scope="module")
def swept(tmp_path_factory):
    results = tmp_path_factory.mktemp("swept")
    assert sweep(results, "--norm_type=LayerNorm,RMSNorm", "--jobs=2") == 0
    return results


def test_a_sweep_trains_measures_and_tabulates_every_run(swept):
    assert sorted(row["Norm"] for row in rows(swept)) == ["LayerNorm", "RMSNorm"]
    assert all(float(row["Class Similarity"]) for row in rows(swept))
    logs = [path.read_text() for path in (swept / "logs").glob("*.log")]
    assert len(logs) == 2
    assert all("epoch 1/1" in log and "class similarity" in log for log in logs)


def test_what_is_done_is_not_done_again(swept, capsys):
    before = {path: path.stat().st_mtime_ns for path in swept.rglob("*")}
    assert sweep(swept, "--norm_type=LayerNorm,RMSNorm") == 0
    assert "2 done" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in swept.rglob("*")} == before


def test_a_dry_run_estimates_time_and_disk_from_what_is_done(swept, capsys):
    assert sweep(swept, "--norm_type=LayerNorm", "--seed=0,1", "--dry_run") == 0
    said = capsys.readouterr().out
    assert "1 remaining: about" in said
    assert "estimated from the finished runs" in said
    assert "done  vgg_LayerNorm" in said


def test_a_measurement_that_is_missing_is_made_and_nothing_else(swept, capsys):
    [path] = swept.glob("vgg_RMSNorm*/class_similarity.json")
    summary = path.with_name("summary.json").stat().st_mtime_ns
    path.unlink()
    assert sweep(swept, "--norm_type=LayerNorm,RMSNorm") == 0
    assert "1 done, 1 to measure" in capsys.readouterr().out
    assert path.exists()
    assert path.with_name("summary.json").stat().st_mtime_ns == summary


def test_failures_are_carried_past_shown_and_retried_on_request(tmp_path, capsys):
    """The images of ImageFolder do not exist; those of Synthetic are generated."""
    flags = ["--dataset=ImageFolder,Synthetic", "--measure=none", "--retries=0"]
    assert sweep(tmp_path, *flags) == 1
    said = capsys.readouterr().out
    assert "1 of 2 runs are done, 1 failed" in said
    assert "failed: vgg_BatchNorm_ImageFolder" in said
    assert "is not a folder" in said
    assert sweep(tmp_path, *flags) == 1
    assert "1 done, 1 failed" in capsys.readouterr().out
    assert sweep(tmp_path, *flags, "--retry_failed") == 1
    assert "1 done, 1 unfinished" in capsys.readouterr().out


def test_fail_fast_stops_at_the_first_failure(tmp_path, capsys):
    assert (
        sweep(tmp_path, "--dataset=ImageFolder", "--seed=0,1,2,3", "--fail_fast", "--measure=none", "--retries=0") == 1
    )
    assert "3 of 4 runs are done" not in capsys.readouterr().out
    assert len(list((tmp_path / "logs").glob("*.failed"))) == 1


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 99)])
def test_a_stopped_sweep_stops_its_children_and_goes_on(tmp_path, number, code):
    long = [flag for flag in SMALL if "epochs" not in flag] + ["--epochs=200", f"--results_dir={tmp_path}"]
    argv = [sys.executable, str(ROOT / "run_sweep.py"), *long, "--seed=0,1,2", "--jobs=2", "--measure=none"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 60
    while len(list(tmp_path.glob("*/checkpoints/last.pt"))) < 2 and time.monotonic() < deadline:
        time.sleep(0.1)
    process.send_signal(number)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.count("\n")) == (code, 1)
    begun = sorted(tmp_path.glob("vgg_*"))
    assert len(begun) == 2
    for folder in begun:
        assert not (folder / ".owner").exists(), "a child process is still running"
        assert files.read_torch(folder / "checkpoints" / "last.pt")["epoch"] >= 1
        assert "epochs are saved; run the same command again" in (tmp_path / "logs" / f"{folder.name}.log").read_text()
    assert not list((tmp_path / "logs").glob("*.failed"))
    argv = [sys.executable, str(ROOT / "run_sweep.py"), *long, "--seed=0,1,2", "--dry_run"]
    dry = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert "2 unfinished, 1 new" in dry.stdout


def test_two_sweeps_of_one_grid_share_the_work(tmp_path):
    """Two sweeps start together, as on two machines that share a disk. No run is trained twice, and none fails."""
    flags = [*SMALL, "--norm_type=LayerNorm,Plain,RMSNorm", f"--results_dir={tmp_path}"]
    argv = [sys.executable, str(ROOT / "run_sweep.py"), *flags]
    both = [subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=300) for process in both]
    assert not list((tmp_path / "logs").glob("*.failed")), said
    assert {process.returncode for process in both} <= {0, 1}
    assert all(process.returncode == 0 or "unfinished" in words for process, (words, _) in zip(both, said, strict=True))
    assert sweep(tmp_path, "--norm_type=LayerNorm,Plain,RMSNorm") == 0
    assert sorted(row["Norm"] for row in rows(tmp_path)) == ["LayerNorm", "Plain", "RMSNorm"]
    for log in (tmp_path / "logs").glob("*.log"):
        assert log.read_text().count("epoch 1/1") == 1


def test_runs_of_several_processes(tmp_path):
    assert sweep(tmp_path, "--processes=2") == 0
    [row] = rows(tmp_path)
    assert row["batch_shares"] == "2"
    assert "_shares2_" in row["run"]

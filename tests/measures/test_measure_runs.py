"""The measuring commands as a user runs them: their files, the runs they leave out, and their messages."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from measures_helpers import (
    ONE_PRODUCT,
    QUICK,
    read,
)

import run_class_similarity
import run_hessian
from normstudy.plots import class_similarity, hessian

ROOT = Path(__file__).parents[2]


def test_the_same_command_gives_the_same_numbers(run):
    assert run_hessian.main([str(run.path), *QUICK]) == 0
    first = read(run.path / "hessian.json")
    assert run_hessian.main([str(run.path), *QUICK, "--overwrite=True"]) == 0
    second = read(run.path / "hessian.json")
    assert {k: v for k, v in first.items() if k != "seconds"} == {k: v for k, v in second.items() if k != "seconds"}


def test_all_checkpoints_give_curvature_over_training(run):
    assert run_hessian.main([str(run.path), *ONE_PRODUCT, "--checkpoint=all"]) == 0
    assert read(run.path / "hessian_epoch_0005.json")["epoch"] == 5
    assert read(run.path / "hessian.json")["epoch"] == 6
    assert (run.path / "hessian_epoch_0005.png").exists()
    assert (run.path / "hessian_over_training.png").read_bytes()[:4] == b"\x89PNG"
    assert run_class_similarity.main([str(run.path), "--checkpoint=all"]) == 0
    assert read(run.path / "class_similarity_epoch_0005.json")["epoch"] == 5
    assert (run.path / "class_similarity_over_training.png").exists()


def test_pictures_are_drawn_from_the_json_alone(run, tmp_path):
    run_hessian.main([str(run.path), *QUICK])
    run_class_similarity.main([str(run.path)])
    for name, draw in (("hessian", hessian.draw_hessian), ("class_similarity", class_similarity.draw_class_similarity)):
        shutil.copy(run.path / f"{name}.json", tmp_path)
        draw(tmp_path / f"{name}.json")
        assert (tmp_path / f"{name}.png").read_bytes() == (run.path / f"{name}.png").read_bytes()


def test_the_table_of_runs_takes_the_measures(run, results):
    run_hessian.main([str(run.path), *QUICK])
    run_class_similarity.main([str(run.path)])
    with open(results / "results.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["run"] == run.path.name)
    hessian, similarity = read(run.path / "hessian.json"), read(run.path / "class_similarity.json")
    assert float(row["Trace"]) == hessian["trace"]
    assert float(row["Max Eigen"]) == hessian["max_eigen"]
    assert float(row["trace_standard_error"]) == hessian["trace_standard_error"]
    assert float(row["Class Similarity"]) == similarity["class_similarity"]
    assert row["hessian_samples"] == "30"


def test_the_table_takes_no_other_matrix_for_the_hessian(run, results):
    run_hessian.main([str(run.path), *QUICK, "--curvature=ggn"])
    with open(results / "results.csv", newline="") as file:
        row = next(row for row in csv.DictReader(file) if row["run"] == run.path.name)
    assert row["Trace"] == ""


@pytest.mark.parametrize("command", [run_hessian, run_class_similarity])
def test_what_cannot_be_measured_gets_one_line_and_the_rest_is_measured(command, run, results, capsys):
    flags = QUICK if command is run_hessian else ["--samples=30"]
    assert command.main([f"--results_dir={results}", *flags]) == 1
    name = "hessian" if command is run_hessian else "class_similarity"
    assert (run.path / f"{name}.json").exists()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 3
    for word in ("unfinished", "diverged", "damaged"):
        assert sum(word in line for line in lines) == 1, lines
    assert [path.parent.name for path in results.glob(f"*/{name}.json")] == [run.path.name]


def test_what_is_measured_is_not_measured_again(run, results, capsys):
    for broken in ("unfinished", "diverged", "damaged"):
        shutil.rmtree(results / broken)
    assert run_class_similarity.main([f"--results_dir={results}"]) == 0
    stamp = (run.path / "class_similarity.json").stat().st_mtime_ns
    assert run_class_similarity.main([f"--results_dir={results}"]) == 0
    assert run_class_similarity.main([str(run.path)]) == 0
    assert (run.path / "class_similarity.json").stat().st_mtime_ns == stamp
    assert "1 of 1 runs" in capsys.readouterr().out


def test_other_settings_are_not_passed_off_as_these(run, capsys):
    assert run_class_similarity.main([str(run.path)]) == 0
    before = (run.path / "class_similarity.json").read_bytes()
    assert run_class_similarity.main([str(run.path), "--samples=20"]) == 1
    assert "samples=10000, here 20" in capsys.readouterr().err
    assert (run.path / "class_similarity.json").read_bytes() == before


def test_batch_statistics_belong_to_their_batch_size(run, capsys):
    flags = [str(run.path), *ONE_PRODUCT, "--bn_mode=train"]
    assert run_hessian.main([*flags, "--batch_size=30"]) == 0
    assert run_hessian.main([*flags, "--batch_size=10"]) == 1
    assert "batch_size=30, here 10" in capsys.readouterr().err


def test_a_run_that_another_process_works_on_is_left_out(run, capsys):
    with run.lock():
        assert run_class_similarity.main([str(run.path)]) == 1
    assert f"worked on by process {os.getpid()}" in capsys.readouterr().err


def command(script, *flags):
    return subprocess.run([sys.executable, script, *flags], cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("script", ["run_hessian.py", "run_class_similarity.py"])
def test_help_teaches(script):
    done = command(script, "--help")
    assert done.returncode == 0
    assert "--checkpoint" in done.stdout
    assert "examples:" in done.stdout


@pytest.mark.parametrize("script", ["run_hessian.py", "run_class_similarity.py"])
@pytest.mark.parametrize(
    "flag", ["--samples=0", "--checkpoint=first", "--device=gpu", "--sample=3", "--results_dir=nowhere", "--dtype=half"]
)
def test_a_wrong_flag_is_one_line_and_exit_code_2(script, flag):
    done = command(script, flag)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1, done.stderr
    assert "Traceback" not in done.stderr


def test_a_folder_without_runs_is_said(tmp_path):
    done = command("run_hessian.py", f"--results_dir={tmp_path}")
    assert done.returncode == 2
    assert "there are no runs" in done.stderr


def test_left_out_runs_show_in_the_exit_code(run):
    done = command("run_class_similarity.py", str(run.path), str(run.path / "nowhere"))
    assert done.returncode == 1
    assert done.stderr.splitlines() == [f"left out: {run.path / 'nowhere'} does not exist; give the folder of a run"]
    assert (run.path / "class_similarity.json").exists()


@pytest.mark.skipif(sys.platform == "win32", reason="no SIGINT")
def test_ctrl_c_keeps_what_is_finished(run):
    assert command("run_hessian.py", str(run.path), "--checkpoint=5", *ONE_PRODUCT).returncode == 0
    slow = [str(run.path), *ONE_PRODUCT, "--trace_probes=100000"]
    process = subprocess.Popen(
        [sys.executable, "run_hessian.py", *slow], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    process.stdout.readline()
    time.sleep(1)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(error.splitlines()) == 1
    assert "run the same command again to measure the rest" in error
    assert read(run.path / "hessian_epoch_0005.json")["products"] == 1
    assert not (run.path / "hessian.json").exists()

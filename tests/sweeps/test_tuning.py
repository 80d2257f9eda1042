"""Sweeps that tune the learning rate: the choice, with a main.py that trains nothing, and with real runs."""

import json
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from helpers import SMALL
from PIL import Image

import main
import run_sweep
from normstudy.cli import UsageError
from normstudy.storage import files
from normstudy.sweeps import command, estimates, grid, tuning, workers

ROOT = Path(__file__).parents[2]
TUNED = ["--norm_type=LayerNorm", "--seed=5,3", "--tune=init_lr:0.1,1,10"]
# In place of main.py: the validation accuracy is that of accuracies.json, or "diverged", or the run fails.
MAIN = """
import json, sys
from pathlib import Path
from config import parse_args
from normstudy.cli import RunError, run_command
from normstudy.storage import directory_of
from normstudy.storage.files import write_json

def main():
    settings = parse_args(sys.argv[1:])
    run = directory_of(settings)
    if run.summary.exists():
        return
    accuracies = json.loads(Path(__file__).with_name("accuracies.json").read_text())
    found = accuracies[settings.norm_type][f"{settings.init_lr:g}"]
    if found == "failed":
        raise RunError("no images")
    write_json(run.config, {name: value for name, value in vars(settings).items() if name != "given"})
    accuracy = 0.9 if found == "diverged" else found
    status = "diverged" if found == "diverged" else "done"
    write_json(run.summary, {"status": status, "validation_accuracy": accuracy, "test_accuracy": 1 - accuracy})

run_command(main)
"""
MEASURE = """
import sys
from pathlib import Path
from normstudy.storage.files import write_json
write_json(Path(sys.argv[1]) / "class_similarity.json", {})
"""


@pytest.fixture
def sweep(tmp_path, monkeypatch):
    """Return a function that sweeps with given validation accuracies {norm: {rate: accuracy}}, and its exit code."""
    monkeypatch.setattr(workers, "PROJECT", tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    (tmp_path / "main.py").write_text(MAIN)
    (tmp_path / "run_class_similarity.py").write_text(MEASURE)

    def run(accuracies, *argv):
        (tmp_path / "accuracies.json").write_text(json.dumps(accuracies))
        return run_sweep.main([*TUNED, f"--results_dir={tmp_path / 'results'}", "--measure=class_similarity", *argv])

    return run


@pytest.fixture
def results(tmp_path):
    return tmp_path / "results"


def table(results):
    return files.read_csv(results / "tuning.csv")


def runs_in(results):
    """Return {(norm, rate, seed): whether it is measured} of the runs that have ended."""
    found = {}
    for path in results.glob("*/summary.json"):
        settings = files.read_json(path.with_name("config.json"))
        key = settings["norm_type"], settings["init_lr"], settings["seed"]
        found[key] = path.with_name("class_similarity.json").exists()
    return found


def chosen(results):
    return {row["norm_type"]: float(row["rate"]) for row in table(results) if row["chosen"] == "True"}


# The choice


def test_the_first_seed_is_trained_at_all_rates_and_the_others_at_the_best(sweep, results, capsys):
    accuracies = {"LayerNorm": {"0.1": 0.2, "1": 0.4, "10": 0.3}, "Plain": {"0.1": 0.2, "1": 0.1, "10": "diverged"}}
    assert sweep(accuracies, "--norm_type=LayerNorm,Plain", "--jobs=2") == 0
    assert runs_in(results) == {
        ("LayerNorm", 0.1, 5): False,
        ("LayerNorm", 1, 5): True,
        ("LayerNorm", 10, 5): False,
        ("LayerNorm", 1, 3): True,
        ("Plain", 0.1, 5): True,
        ("Plain", 1, 5): False,
        ("Plain", 10, 5): False,
        ("Plain", 0.1, 3): True,
    }
    said = capsys.readouterr().out
    assert "6 new; 2 runs to follow at the chosen rates" in said
    assert "8 of 8 runs are done" in said


def test_the_table_says_what_was_chosen_and_why(sweep, results):
    sweep({"LayerNorm": {"0.1": 0.2, "1": 0.4, "10": "diverged"}})
    assert [{**row, "run": ""} for row in table(results)] == [
        {"arch": "vgg", "norm_type": "LayerNorm", "axis": "init_lr", "run": "", "edge": "False", "reached_loss": "True"}
        | row
        for row in (
            {"rate": "0.1", "validation_accuracy": "0.2", "status": "done", "chosen": "False"},
            {"rate": "1.0", "validation_accuracy": "0.4", "status": "done", "chosen": "True"},
            {"rate": "10.0", "validation_accuracy": "", "status": "diverged", "chosen": "False"},
        )
    ]
    assert all((results / row["run"] / "summary.json").exists() for row in table(results))


def test_a_rate_at_which_the_loss_was_not_reached_is_chosen_only_if_none_did():
    def rate(*reached):
        trials = [tuning.Trial(place, "done", 0.1 * place, did) for place, did in enumerate(reached, 1)]
        return tuning.Tuning(None, trials).rate  # type: ignore[arg-type]

    assert rate(True, True, False) == 2
    assert rate(False, False, False) == 3


def test_the_table_names_the_axes_that_vary(sweep, results, capsys):
    norms = {norm: {"0.1": 0.2, "1": 0.4, "10": 0.3} for norm in ("LayerNorm", "GroupNorm")}
    sweep(norms, "--norm_type=LayerNorm,GroupNorm", "--p_grouping=8,32", "--momentum=0.8")
    assert [(row["norm_type"], row["p_grouping"]) for row in table(results)[::3]] == [
        ("LayerNorm", ""),
        ("GroupNorm", "8.0"),
        ("GroupNorm", "32.0"),
    ]
    assert list(table(results)[0]) == ["arch", "norm_type", "p_grouping", *tuning.RESULT_COLUMNS]


@pytest.mark.parametrize(
    ("accuracies", "rate", "remark"),
    [
        ((0.3, 0.4, 0.2), 1, None),
        ((0.4, 0.3, 0.2), 0.1, "init_lr=0.1 is best, at the edge of the grid; try smaller rates"),
        ((0.2, 0.3, 0.4), 10, "init_lr=10 is best, at the edge of the grid; try larger rates"),
        ((0.3, 0.4, 0.4), 1, None),
        ((0.4, 0.4, 0.4), 0.1, "init_lr=0.1 is best, at the edge of the grid; try smaller rates"),
        ((0.3, 0.4, "diverged"), 1, None),
        (("diverged", "diverged", 0.1), 10, "init_lr=10 is best, at the edge of the grid; try larger rates"),
        ((0.0, "diverged", "diverged"), 0.1, "init_lr=0.1 is best, at the edge of the grid; try smaller rates"),
    ],
)
def test_the_best_rate_and_whether_the_grid_is_wide_enough(sweep, results, capsys, accuracies, rate, remark):
    """Diverged runs have a validation accuracy of 0.9 here, and are never chosen. Of equal rates, the smaller is."""
    assert sweep({"LayerNorm": dict(zip(("0.1", "1", "10"), accuracies, strict=True))}) == 0
    assert chosen(results) == {"LayerNorm": rate}
    said = capsys.readouterr().out
    assert ("edge" in said) == (remark is not None)
    assert remark is None or f"\nvgg LayerNorm: {remark}\n" in said
    assert [row["edge"] == "True" for row in table(results) if row["chosen"] == "True"] == [remark is not None]


def test_if_all_rates_diverge_no_other_seed_is_trained(sweep, results, capsys):
    accuracies = {"LayerNorm": dict.fromkeys(("0.1", "1", "10"), "diverged")}
    assert sweep(accuracies) == 0
    assert {seed for _, _, seed in runs_in(results)} == {5}
    said = capsys.readouterr().out
    assert "vgg LayerNorm: all tuning runs diverged, so no other seeds are trained" in said
    assert "3 of 3 runs are done" in said
    assert chosen(results) == {}


def test_no_choice_depends_on_which_runs_fail(sweep, results, capsys):
    accuracies = {"LayerNorm": {"0.1": 0.2, "1": "failed", "10": 0.3}}
    assert sweep(accuracies) == 1
    said = capsys.readouterr().out
    assert "vgg LayerNorm: only 2 of 3 tuning runs have ended, so no rate is chosen" in said
    assert "2 of 4 runs are done, 1 failed, 1 unfinished" in said
    assert [row["status"] for row in table(results)] == ["done", "failed", "done"]
    accuracies["LayerNorm"]["1"] = 0.4
    assert sweep(accuracies) == 1
    assert chosen(results) == {}
    assert sweep(accuracies, "--retry_failed") == 0
    assert chosen(results) == {"LayerNorm": 1}
    assert "4 of 4 runs are done" in capsys.readouterr().out


def test_fail_fast_stops_before_the_chosen_runs(sweep, results):
    good, bad = {"0.1": 0.2, "1": 0.4, "10": 0.3}, dict.fromkeys(("0.1", "1", "10"), "failed")
    assert sweep({"LayerNorm": good, "Plain": bad}, "--norm_type=LayerNorm,Plain", "--fail_fast") == 1
    assert {seed for _, _, seed in runs_in(results)} == {5}
    assert not any(runs_in(results).values())


def test_a_second_command_does_nothing_twice_and_keeps_the_choice(sweep, results, capsys):
    accuracies = {"LayerNorm": {"0.1": 0.2, "1": 0.4, "10": 0.3}}
    sweep(accuracies)
    before = {path: path.stat().st_mtime_ns for path in results.glob("*/*.json")}
    kept = (results / "tuning.csv").read_text()
    (results / "tuning.csv").unlink()
    assert sweep({}) == 0
    assert {path: path.stat().st_mtime_ns for path in results.glob("*/*.json")} == before
    assert (results / "tuning.csv").read_text() == kept
    assert "init_lr over 0.1, 1, 10 in" in capsys.readouterr().out


def test_the_table_keeps_the_rows_of_other_combinations(sweep, results):
    sweep({"LayerNorm": {"0.1": 0.2, "1": 0.4, "10": 0.3}})
    sweep({"Plain": {"0.1": 0.2, "1": 0.1, "10": 0.1}}, "--norm_type=Plain")
    assert chosen(results) == {"LayerNorm": 1, "Plain": 0.1}
    sweep({"LayerNorm": {"0.1": 0.2, "3": 0.5}}, "--tune=init_lr:0.1,3")
    assert chosen(results) == {"LayerNorm": 3, "Plain": 0.1}
    assert sorted(row["rate"] for row in table(results) if row["norm_type"] == "LayerNorm") == ["0.1", "3.0"]
    shutil.rmtree(results / next(row["run"] for row in table(results) if row["norm_type"] == "Plain"))
    sweep({"LayerNorm": {"0.1": 0.2, "3": 0.5}}, "--tune=init_lr:0.1,3")
    assert len(table(results)) == 4


def test_a_measurement_that_fails_does_not_undo_the_choice(sweep, results, tmp_path, capsys):
    accuracies = {"LayerNorm": {"0.1": 0.2, "1": 0.4, "10": 0.3}}
    (tmp_path / "run_class_similarity.py").write_text("raise SystemExit(1)")
    assert sweep(accuracies) == 1
    assert "2 of 4 runs are done, 2 failed" in capsys.readouterr().out
    (tmp_path / "run_class_similarity.py").write_text(MEASURE)
    assert sweep({}, "--retry_failed") == 0
    assert chosen(results) == {"LayerNorm": 1}
    assert sum(runs_in(results).values()) == 2


def test_a_dry_run_lists_the_tuning_runs_and_counts_those_that_follow(sweep, results, capsys):
    accuracies = {"LayerNorm": {"0.1": 0.2, "1": 0.4, "10": 0.3}}
    assert sweep(accuracies, "--dry_run", "--seed=5,3,1") == 0
    said = capsys.readouterr().out
    assert said.count("new  vgg_LayerNorm") == said.count("_seed5_") == 3
    assert "3 new; 2 runs to follow at the chosen rates" in said
    assert not results.exists()
    sweep(accuracies)
    capsys.readouterr()
    kept = (results / "tuning.csv").read_text()
    assert sweep(accuracies, "--dry_run", "--seed=5,3,1") == 0
    said = capsys.readouterr().out
    assert (said.count("done  vgg_LayerNorm"), said.count("new  vgg_LayerNorm")) == (4, 1)
    assert "follow" not in said
    assert (results / "tuning.csv").read_text() == kept


def test_tuning_runs_count_only_for_the_time_of_training(tmp_path):
    """Two tuning runs of 90 images and 60 epochs take 540 s each; a measured run takes 20 s to measure."""
    [combination] = combinations(f"--results_dir={tmp_path}", "--seed=0,1", "--train_samples=100")
    measured = replace(combination.runs[0.1][1], measurements={"hessian": ()})
    for run in (*combination.tuning_runs(), measured):
        files.write_json(run.directory.summary, {"status": "done", "seconds": 540.0})
        files.write_json(run.directory.config, {"data": {"train_samples": 90}})
    done = [*combination.tuning_runs(), measured]
    assert estimates.estimate_cost([measured], combination.tuning_runs()) is None
    files.write_json(measured.directory.measurement("hessian"), {"seconds": 20.0})
    cost = estimates.estimate_cost(done, done)
    assert cost is not None
    assert cost[:2] == (pytest.approx(3 * 540), 20)


# The test set


def test_test_accuracies_change_no_choice(sweep, results):
    """The test accuracy is 1 − the validation accuracy: the opposite choice. Then it is made equal, and left out."""
    accuracies = {"LayerNorm": {"0.1": 0.2, "1": 0.4, "10": 0.3}}
    sweep(accuracies)
    kept = (results / "tuning.csv").read_text()
    assert chosen(results) == {"LayerNorm": 1}
    for test_accuracy in (0.5, None):
        for path in results.glob("*/summary.json"):
            files.write_json(path, files.read_json(path) | {"test_accuracy": test_accuracy})
        assert sweep({}) == 0
        assert (results / "tuning.csv").read_text() == kept


def bright_and_dark_images(folder, test_names):
    """Write images of two classes that differ in brightness; those of the test set have other names of classes."""
    generator = np.random.default_rng(0)
    for split, names in (("train", ("bright", "dark")), ("test", test_names)):
        for lowest, name in zip((128, 0), names, strict=True):
            (folder / split / name).mkdir(parents=True)
            for index in range(20):
                pixels = generator.integers(lowest, lowest + 128, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")


@pytest.mark.usefixtures("narrow")
def test_test_labels_change_no_choice(tmp_path):
    """Real runs. With the test labels swapped, the better rate has the lower test accuracy."""
    found = []
    for names in (("bright", "dark"), ("dark", "bright")):
        folder = tmp_path / names[0]
        bright_and_dark_images(folder, names)
        argv = ["--norm_type=FilterResponseNorm", "--val_fraction=0.4", "--epochs=6", "--probe_layers=False"]
        argv += [*SMALL, f"--data_dir={folder}", f"--results_dir={folder / 'results'}"]
        [combination] = combinations(*argv, rates=(1e-6, 3.0))
        for run in combination.tuning_runs():
            main.main(run.flags)
        read = tuning.read_tuning(combination)
        found.append((read.trials, read.rate))
        slow, fast = (files.read_json(run.directory.summary)["test_accuracy"] for run in combination.tuning_runs())
        assert (slow < fast) == (names == ("bright", "dark"))
    assert found[0] == found[1]
    assert found[0][1] == 3


# The grid


def combinations(*argv, axis="init_lr", rates=(0.1, 1.0)):
    parsed = command.parse_command(argv)
    preset = parsed.options["preset"]
    return tuning.combinations_of(
        grid.expand(tuning.grid_with_rates(parsed.grid, preset, axis, rates), preset)[0], axis
    )


def test_a_tenth_is_held_out_for_validation_unless_the_fraction_is_given():
    for argv, fraction in (([], 0.1), (["--val_fraction=0.3"], 0.3)):
        [combination] = combinations(*argv)
        assert {run.config.val_fraction for runs in combination.runs.values() for run in runs} == {fraction}


@pytest.mark.parametrize("axis", ["init_lr", "lr"])
def test_each_axis_of_rates_can_be_tuned(axis):
    [combination] = combinations("--seed=1,0", axis=axis, rates=(0.1, 0.3, 1.0))
    assert {rate: [run.config.seed for run in runs] for rate, runs in combination.runs.items()} == {
        rate: [1, 0] for rate in (0.1, 0.3, 1.0)
    }
    assert all(getattr(run.config, axis) == rate for rate, runs in combination.runs.items() for run in runs)


def test_the_seeds_of_a_preset_are_those_of_each_combination():
    """The preset has the combinations of several norms in two of its grids, with other seeds."""
    found = combinations("--preset=cpu_study")
    assert len({str(combination) for combination in found}) == len(found)
    seeds = {tuple(run.config.seed for run in combination.runs[0.1]) for combination in found}
    assert seeds == {(0,), (0, 1), (0, 1, 2)}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--init_lr=0.1,1"], r"--tune=init_lr:... cannot be combined with --init_lr"),
        (["--init_lr=1"], r"--tune=init_lr:... cannot be combined with --init_lr"),
        (["--lr=1"], "--lr cannot be combined with --init_lr"),
        (["--val_fraction=0"], "needs a --val_fraction above 0"),
        (["--val_fraction=0.1,0"], "needs a --val_fraction above 0"),
    ],
)
def test_flags_that_do_not_fit_are_refused(argv, message, tmp_path):
    with pytest.raises(UsageError, match=message):
        run_sweep.main([*TUNED, f"--results_dir={tmp_path}", *argv])


@pytest.mark.parametrize(
    "text", ["init_lr", "init_lr:", "init_lr:1", "init_lr:1,1.0", "momentum:0,0.9", "lr:0,1", ":1,2"]
)
def test_what_is_no_axis_with_rates_is_refused(text, capsys):
    with pytest.raises(SystemExit) as ended:
        run_sweep.main([f"--tune={text}"])
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


# Real runs


@pytest.mark.slow
def test_a_tuned_sweep_is_interrupted_and_continued(tmp_path, capsys):
    argv = ["--dataset=Synthetic", "--image_size=8", "--train_samples=50", "--test_samples=20", "--batch_size=16"]
    argv += ["--device=cpu", "--epochs=4", "--probe_layers=False", "--measure=none", f"--results_dir={tmp_path}"]
    argv += ["--seed=0,1", "--norm_type=RMSNorm", "--tune=lr:0.001,0.01"]
    process = subprocess.Popen(
        [sys.executable, str(ROOT / "run_sweep.py"), *argv], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    deadline = time.monotonic() + 120
    while not list(tmp_path.glob("*/checkpoints/last.pt")) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert (process.returncode, stderr.count("\n")) == (130, 1)
    assert table(tmp_path)[1]["status"] == "new"
    assert chosen(tmp_path) == {}
    assert run_sweep.main([*argv, "--jobs=2"]) == 0
    said = capsys.readouterr().out
    assert "3 of 3 runs are done" in said
    accuracies = {float(row["rate"]): float(row["validation_accuracy"]) for row in table(tmp_path)}
    best = max(accuracies, key=lambda rate: (accuracies[rate], -rate))
    assert chosen(tmp_path) == {"RMSNorm": best}
    rows = files.read_csv(tmp_path / "results.csv")
    assert {(float(row["lr"]), row["seed"]) for row in rows} == {(0.001, "0"), (0.01, "0"), (best, "1")}

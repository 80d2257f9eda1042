"""The choice of runs and checkpoints, and the messages about names that do not exist."""

import pytest
from measures_helpers import QUICK, read

import run_class_similarity
import run_hessian


def test_one_checkpoint_by_name(run):
    assert run_class_similarity.main([str(run.path), "--checkpoint=epoch_0005"]) == 0
    assert read(run.path / "class_similarity_epoch_0005.json")["epoch"] == 5
    assert not (run.path / "class_similarity.json").exists()


def test_a_checkpoint_that_is_not_there_is_named(run, capsys):
    assert run_hessian.main([str(run.path), *QUICK, "--checkpoint=3"]) == 1
    assert "no checkpoint epoch_0003; it has epoch_0000, epoch_0005, epoch_0006" in capsys.readouterr().err


def test_a_run_without_its_settings_is_not_passed_over(run, results, capsys):
    run.config.unlink()
    assert run_class_similarity.main([f"--results_dir={results}"]) == 1
    assert f"{run.config} is missing" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (lambda run: [str(run.checkpoint(6))], "give the run's folder, and --checkpoint for a checkpoint other than"),
        (lambda run: [str(run.path.parent)], "--results_dir="),
        (lambda run: [str(run.path), "--samples=5"], "raise --samples"),
    ],
    ids=["file", "folder above", "too few images"],
)
def test_what_is_not_quite_right_gets_a_hint(run, flags, words, capsys):
    assert run_class_similarity.main(flags(run)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert words in line

"""The choice of runs and checkpoints, and the messages about names that do not exist."""

import pytest
from measures_helpers import QUICK, read

import run_class_similarity
import run_hessian
from normstudy import curvature
from normstudy.cli import RunError
from normstudy.measures import run_selection
from normstudy.storage import RunDirectory


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
        (lambda run: [str(run.checkpoint(6))], "give this folder, and --checkpoint for one checkpoint"),
        (lambda run: [str(run.path.parent)], "--results_dir="),
        (lambda run: [str(run.path), "--samples=5"], "use --samples=10 or more"),
    ],
    ids=["file", "folder above", "too few images"],
)
def test_what_is_not_quite_right_gets_a_hint(run, flags, words, capsys):
    assert run_class_similarity.main(flags(run)) == 1
    [line] = capsys.readouterr().err.splitlines()
    assert words in line


@pytest.mark.parametrize("name", ["model_best.pth.tar", "a folder"])
def test_a_network_of_another_program_is_said_with_the_function_that_measures_it(tmp_path, name):
    path = tmp_path / name
    path.mkdir() if name == "a folder" else path.write_bytes(b"weights")
    with pytest.raises(RunError, match=r"not the folder of a run.*use normstudy\.curvature\.hessian_matvec in Python"):
        run_selection.finished_config(RunDirectory(path))
    assert callable(curvature.hessian_matvec)


@pytest.mark.parametrize("path", [".", "./", "../run", "checkpoints/.."])
def test_a_run_has_a_name_however_its_path_is_written(run, path, monkeypatch, capsys):
    monkeypatch.chdir(run.path)
    path = path.replace("../run", f"../{run.path.name}/")
    assert run_class_similarity.main([path, "--samples=20", "--tag=here"]) == 0
    assert capsys.readouterr().out.startswith(f"{run.path.name} epoch 6: class similarity")
    assert read(run.path / "class_similarity-here.json")["run"] == run.path.name


def test_a_picture_that_cannot_be_drawn_costs_no_measurement(run, capsys):
    (run.path / "class_similarity.png").mkdir()
    assert run_class_similarity.main([str(run.path), "--samples=20"]) == 0
    said = capsys.readouterr()
    [line] = said.err.splitlines()
    assert "class_similarity.png could not be drawn (" in line
    assert said.out.splitlines()[1] == f"wrote {run.path / 'class_similarity.json'}"
    assert "20" in (run.path.parent / "results.csv").read_text(encoding="utf-8")

"""Damaged, swapped or lost files of a run are detected, named, rebuilt where possible, and never trusted."""

import ast
import contextlib
import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import NARROW, Payload, content
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image

import config
import main
import run_class_similarity
from normstudy.cli import RunError
from normstudy.plots import style
from normstudy.storage import files, results_table, run_directory
from normstudy.training import loop

pytestmark = pytest.mark.usefixtures("narrow")

RECORDED = (
    "config.json",
    "metrics.csv",
    "checkpoints/last.pt",
    "checkpoints/epoch_0005.pt",
    "probes/epoch_0005.pt",
)
OF_THE_END = ("summary.json", "checkpoints/epoch_0006.pt", "probes/epoch_0006.pt")


@pytest.fixture(scope="module")
def recorded(small, tmp_path_factory):
    """A finished run, the same run stopped in its last epoch, and a finished run of another norm."""
    folders = {name: tmp_path_factory.mktemp(name) for name in ("finished", "unfinished", "other")}
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(config.VGG_LAYERS, "cfg_10", NARROW)
        for name, norm in (("finished", "LayerNorm"), ("other", "RMSNorm")):
            main.main([*small, "--epochs=6", f"--norm_type={norm}", f"--results_dir={folders[name]}"])
        original = loop.Training.run_epoch

        def stop_in_the_sixth(self, epoch):
            if epoch == 6:
                raise KeyboardInterrupt
            return original(self, epoch)

        patch.setattr(loop.Training, "run_epoch", stop_in_the_sixth)
        with pytest.raises(KeyboardInterrupt):
            main.main([*small, "--epochs=6", "--norm_type=LayerNorm", f"--results_dir={folders['unfinished']}"])
    return {name: run_directory.RunDirectory(next(folder.glob("vgg_*"))) for name, folder in folders.items()}


@pytest.fixture
def again(small):
    """A function that runs the same command again on a copy of a recorded run."""

    def train(run, *flags):
        settings = [*small, "--epochs=6", "--norm_type=LayerNorm", f"--results_dir={run.path.parent}"]
        return run_directory.RunDirectory(main.main([*settings, *flags]))

    return train


def copy(run, folder):
    shutil.rmtree(folder, ignore_errors=True)
    return run_directory.RunDirectory(shutil.copytree(run.path, folder / run.path.name))


def damage(path, kind, where=0.5, bit=0):
    """Change a file as faulty disks, broken copies and people do. `where` is the position in it, from 0 to 1."""
    whole = path.read_bytes()
    place = min(int(where * len(whole)), len(whole) - 1)
    if kind == "missing":
        path.unlink()
    elif kind == "cut":
        path.write_bytes(whole[:place])
    elif kind == "flipped":
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
    elif kind == "foreign":
        path.write_bytes(b"something else entirely\n")
    else:
        path.write_bytes(b"")


KINDS = ("missing", "cut", "flipped", "foreign", "empty")
PLACES = {"where": st.floats(0, 1), "bit": st.integers(0, 7), "kind": st.sampled_from(KINDS)}
QUICK = settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])


@QUICK
@given(name=st.sampled_from(RECORDED), **PLACES)
def test_a_stopped_run_goes_on_from_what_is_whole_or_names_what_is_not(
    recorded, again, tmp_path, name, kind, where, bit
):
    run = copy(recorded["unfinished"], tmp_path / "r")
    shutil.copy(recorded["finished"].curves, run.curves)  # drawing is slow, and another test covers it
    shutil.copy(recorded["finished"].probes_picture, run.probes_picture)
    damage(run.path / name, kind, where, bit)
    try:
        again(run)
    except RunError as error:
        assert name in str(error)  # noqa: PT017
        assert run.summary.exists(), "the run could have ended"
        assert name in ("checkpoints/epoch_0005.pt", "probes/epoch_0005.pt")
    expected, found = content(recorded["finished"]), content(run)
    if name in ("checkpoints/epoch_0005.pt", "probes/epoch_0005.pt"):  # from earlier epochs: they may be missing
        expected.pop(name), found.pop(name, None)
    if name.startswith("probes/"):  # probes.json is made from the remaining probe dicts
        expected.pop("probes.json"), found.pop("probes.json", None)
    assert found == expected


@QUICK
@given(name=st.sampled_from(RECORDED + OF_THE_END), **PLACES)
def test_a_finished_run_is_made_whole_again_or_names_the_rest(recorded, again, tmp_path, name, kind, where, bit):
    run = copy(recorded["finished"], tmp_path / "r")
    before = content(run)
    damage(run.path / name, kind, where, bit)
    damaged = (run.path / name).read_bytes() if kind != "missing" else None
    try:
        again(run)
    except RunError as error:
        assert name in str(error)  # noqa: PT017
        assert name.endswith(".pt")
        assert (run.path / name).read_bytes() == damaged, "a damaged file is not thrown away"
    after = content(run)
    if name.endswith(".pt"):
        before.pop(name, None), after.pop(name, None)
    assert after == before
    with open(run.path.parent / "results.csv", newline="") as file:
        assert [row["run"] for row in csv.DictReader(file)] == [run.path.name]


@settings(QUICK, max_examples=25)
@given(**PLACES)
def test_a_damaged_measurement_is_in_no_table(recorded, tmp_path_factory, capsys, kind, where, bit):
    measured = tmp_path_factory.getbasetemp() / "measured"
    if not measured.exists():
        run = copy(recorded["finished"], measured)
        assert run_class_similarity.main([str(run.path)]) == 0
    run = run_directory.RunDirectory(next(measured.glob("vgg_*")))
    [expected], _ = table_of(run)
    copied = copy(run, tmp_path_factory.getbasetemp() / "copied")
    damage(copied.measurement("class_similarity"), kind, where, bit)
    [row], complaints = table_of(copied)
    if row != expected:
        empty = {key: value for key, value in row.items() if value != expected[key]}
        assert all(value in (None, "") for value in empty.values()), "a number that was never measured"
        assert kind == "missing" or "class_similarity.json" in complaints
    assert run_class_similarity.main([str(copied.path), "--overwrite=True"]) == 0
    assert table_of(copied)[0] == [expected]


def table_of(run):
    """Return (rows of results.csv, complaints)."""
    row, complaints = results_table.table_row(run)
    return [row], "\n".join(complaints)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["curves.png", "probes.png"])
def test_a_damaged_picture_is_drawn_again(recorded, again, tmp_path, name, kind):
    run = copy(recorded["finished"], tmp_path / "r")
    damage(run.path / name, kind)
    again(run)
    assert style.is_whole_picture(run.path / name)
    assert (run.path / name).stat().st_size > 10_000


@pytest.mark.parametrize("kind", KINDS)
def test_a_damaged_summary_of_probes_is_made_again(recorded, again, tmp_path, kind):
    run = copy(recorded["finished"], tmp_path / "r")
    expected = files.read_json(run.probes_summary)
    damage(run.probes_summary, kind)
    again(run)
    assert files.read_json(run.probes_summary) == expected


def test_where_all_states_are_damaged_nothing_is_trained_from_zero(recorded, again, tmp_path):
    run = copy(recorded["unfinished"], tmp_path / "r")
    for path in (run.last, run.previous):
        damage(path, "cut")
    before = {path: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match=r"last\.pt is damaged.*previous\.pt is damaged.*--overwrite=True") as caught:
        again(run)
    assert "\n" not in str(caught.value)
    assert {path: path.read_bytes() for path in before} == before


def test_where_all_states_are_lost_nothing_is_trained_from_zero(recorded, again, tmp_path):
    run = copy(recorded["unfinished"], tmp_path / "r")
    run.last.unlink(), run.previous.unlink()
    with pytest.raises(RunError, match=r"last\.pt is missing.*put it back"):
        again(run)


@pytest.mark.parametrize("name", ["checkpoints/last.pt", "config.json", "checkpoints/epoch_0006.pt", "summary.json"])
def test_files_of_another_run_are_not_taken_for_this_ones(recorded, again, tmp_path, name):
    """The files of LayerNorm and RMSNorm have the same shapes, and every checksum is right."""
    run = copy(recorded["finished"], tmp_path / "r")
    before = content(run)
    shutil.copy(recorded["other"].path / name, run.path / name)
    if name.endswith("6.pt"):
        with pytest.raises(RunError, match=r"epoch_0006\.pt damaged or changed"):
            again(run)
        assert run_class_similarity.main([str(run.path)]) == 1
        return
    again(run)
    if name == "config.json":
        del before["config.json"]
    assert before.items() <= content(run).items()


def test_a_state_of_another_run_is_passed_over_for_the_one_before(recorded, again, tmp_path, capsys):
    run = copy(recorded["unfinished"], tmp_path / "r")
    shutil.copy(recorded["other"].last, run.last)
    again(run)
    assert "other settings" in capsys.readouterr().err
    assert content(run) == content(recorded["finished"])


def test_c_dir_with_a_damaged_config_says_how_to_go_on(recorded, tmp_path):
    run = copy(recorded["unfinished"], tmp_path / "r")
    damage(run.config, "flipped")
    with pytest.raises(RunError, match="give the flags that it was started with"):
        main.main([f"--c_dir={run.path}"])


@pytest.mark.parametrize(
    ("name", "value"),
    [("epochs", "6"), ("epochs", -1), ("seed", None), ("momentum", True), ("arch", ["vgg"]), ("lr_warmup", 1.5)],
)
def test_settings_that_no_flag_can_give_are_refused(recorded, tmp_path, name, value):
    run = copy(recorded["unfinished"], tmp_path / "r")
    files.write_json(run.config, files.read_json(run.config) | {name: value})
    with pytest.raises(RunError, match=name):
        main.main([f"--c_dir={run.path}"])


# Wrong numbers


def change_state(run, **changes):
    state = files.read_torch(run.last)
    files.write_torch(run.last, state | changes)


def test_another_version_of_pytorch_is_not_mixed_in(recorded, again, tmp_path, capsys):
    run = copy(recorded["unfinished"], tmp_path / "r")
    history = files.read_torch(run.last)["history"]
    history[0]["versions"]["torch"] = "2.6.0"
    change_state(run, history=history)
    with pytest.raises(RunError, match=r"trained with PyTorch 2\.6\.0.*--mix_versions=True"):
        again(run)
    again(run, "--mix_versions=True")
    assert [entry["step"] for entry in files.read_json(run.summary)["history"]] == [0, 20]
    [row], _ = table_of(run)
    assert row["torch"] == f"2.6.0 + {torch.__version__}"


def test_rows_of_other_images_under_the_same_name_are_pointed_out(recorded, tmp_path, capsys):
    runs_ = [copy(recorded[name], tmp_path / name) for name in ("finished", "other")]
    shutil.copytree(runs_[1].path, tmp_path / "finished" / runs_[1].path.name)
    results_table.collect_table(tmp_path / "finished")
    assert capsys.readouterr().err == ""
    other = run_directory.RunDirectory(tmp_path / "finished" / runs_[1].path.name)
    stored = files.read_json(other.config)
    stored["data"]["fingerprint"] = "0" * 16
    files.write_json(other.config, stored)
    results_table.collect_table(tmp_path / "finished")
    assert "2 different sets of images" in capsys.readouterr().err


def test_a_measurement_of_another_checkpoint_is_in_no_table(recorded, tmp_path, capsys):
    run, other = (copy(recorded[name], tmp_path / name) for name in ("finished", "other"))
    assert run_class_similarity.main([str(other.path)]) == 0
    shutil.copy(other.measurement("class_similarity"), run.measurement("class_similarity"))
    [row], complaints = table_of(run)
    assert row["Class Similarity"] == ""
    assert "another checkpoint" in complaints
    assert run_class_similarity.main([str(run.path)]) == 1
    assert "another checkpoint" in capsys.readouterr().err


def test_a_damaged_measurement_is_made_again(recorded, tmp_path, capsys):
    run = copy(recorded["finished"], tmp_path)
    assert run_class_similarity.main([f"--results_dir={tmp_path}"]) == 0
    expected = table_of(run)
    damage(run.measurement("class_similarity"), "cut")
    assert run_class_similarity.main([f"--results_dir={tmp_path}"]) == 0
    assert "the checkpoint is measured again" in capsys.readouterr().err
    assert table_of(run) == expected


# Untrusted files


@pytest.mark.parametrize("name", ["last.pt", "previous.pt", "epoch_0005.pt"])
def test_code_in_a_runs_files_does_not_run(recorded, again, tmp_path, name):
    run = copy(recorded["unfinished"], tmp_path / "r")
    folder = tmp_path / "made by the payload"
    for path in {run.last, run.path / "checkpoints" / name, run.probes(5)}:
        torch.save({"epoch": Payload(folder), "weight": Payload(folder)}, path)
    with contextlib.suppress(RunError):  # if another state is intact, the run continues from it
        again(run)
    run_class_similarity.main([str(run.path), "--checkpoint=all"])
    assert not folder.exists()


def test_nothing_loads_pickles_or_runs_text():
    """Every call of torch.load has weights_only=True, and nothing else in the project can run code from a file."""
    loads = 0
    project = Path(main.__file__).parent
    for path in [*project.glob("*.py"), *project.glob("normstudy/**/*.py")]:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        for node in ast.walk(tree):
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = {alias.name for alias in node.names} | {getattr(node, "module", None)}
                assert not names & {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}, path
            if isinstance(node, ast.Call):
                called = ast.unparse(node.func)
                assert called not in ("eval", "exec", "compile", "__import__", "os.system"), path
                assert not any(keyword.arg == "shell" for keyword in node.keywords), path
                if called in ("torch.load", "np.load", "numpy.load"):
                    assert "weights_only=True" in ast.unparse(node), path
                    loads += 1
    assert loads >= 2


def test_names_from_disk_are_names_and_nothing_else(tmp_path):
    """Class names and a run's name may look like formulas, markup or paths."""
    names = [r"$\frac{", "<script>alert(1)", "..  ", "a\tb\nc", "=1+1", "%s {0}", "x" * 200, os.fsdecode(b"bad \xff")]
    generator = np.random.default_rng(0)
    for split in ("train", "test"):
        for name in names:
            (tmp_path / "images" / split / name).mkdir(parents=True)
            for index in range(3):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(tmp_path / "images" / split / name / f"{index}.png")
    flags = ["--dataset=ImageFolder", "--batch_size=8", "--device=cpu", "--epochs=1"]
    path = main.main([*flags, f"--data_dir={tmp_path / 'images'}", f"--results_dir={tmp_path / 'results'}"])
    renamed = path.rename(path.with_name(r"$\frac{ <b> %s {0} Ä"))
    for picture in renamed.glob("*.png"):
        picture.unlink()
    main.main([f"--c_dir={renamed}"])
    assert run_class_similarity.main([str(renamed)]) == 0
    assert {picture.name for picture in renamed.glob("*.png")} == {"curves.png", "probes.png", "class_similarity.png"}
    assert {entry.name for entry in tmp_path.iterdir()} == {"images", "results"}

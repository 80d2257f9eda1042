"""normstudy.load_table and normstudy.load_run: a table with types, and everything that a run left."""

import shutil
from pathlib import Path

import pandas as pd
import pytest
import torch

import normstudy
import run_class_similarity
from normstudy.cli import RunError
from normstudy.storage import WEIGHT_KEYS

ROOT = Path(__file__).parent.parent
STUDY = ROOT / "results" / "cpu_study"


@pytest.fixture
def run(narrow, train, tmp_path):
    run = train(tmp_path)
    assert run_class_similarity.main([str(run.path), "--checkpoint=all", "--samples=20"]) == 0
    return run


def test_the_table_has_types(run, tmp_path):
    for table in (normstudy.load_table(tmp_path), normstudy.load_table(str(tmp_path))):
        assert len(table) == 1
        assert pd.api.types.is_float_dtype(table["Test Accuracy"])
        assert pd.api.types.is_bool_dtype(table["Success"])
        assert pd.api.types.is_integer_dtype(table["Batch Size"])
    (tmp_path / "results.csv").unlink()
    assert normstudy.load_table(tmp_path).equals(table)
    with pytest.raises(RunError, match="not a folder"):
        normstudy.load_table(tmp_path / "nowhere")


def test_a_run_gives_everything_that_it_left(run):
    loaded = normstudy.load_run(run.path)
    assert (loaded.config.norm_type, loaded.summary["status"]) == ("BatchNorm", "done")
    assert loaded.metrics["epoch"].tolist() == [1, 2, 3, 4, 5, 6]
    assert loaded.probes is not None
    assert all(len(loaded.probes[key]) == 6 * 4 for key in ("stable_rank", *WEIGHT_KEYS, "learning_rate"))
    assert loaded.measurements.keys() == {f"class_similarity{end}" for end in ("", "_epoch_0000", "_epoch_0005")}
    assert len(loaded.dataset().train) == 50
    for epoch, name in ((None, "epoch_0006.pt"), (0, "epoch_0000.pt"), (5, "epoch_0005.pt")):
        model, stored = loaded.model(epoch), torch.load(run.path / "checkpoints" / name, weights_only=True)
        assert not model.training
        assert all(torch.equal(value, stored[key]) for key, value in model.state_dict().items())
    with pytest.raises(RunError, match="lacks a checkpoint of epoch 3"):
        loaded.model(3)


def test_measurements_of_other_matrices_are_read_too(run):
    (run.path / "hessian-filter.json").write_text("{}")
    (run.path / "hessian-filter_epoch_0005.json").write_text("{}")
    assert {"hessian-filter", "hessian-filter_epoch_0005"} <= normstudy.load_run(run.path).measurements.keys()


def test_images_that_have_moved_are_found(run, tmp_path):
    loaded = normstudy.load_run(run.path)
    shutil.copytree(loaded.config.data_dir, tmp_path / "moved")
    assert loaded.dataset(tmp_path / "moved").describe() == loaded.dataset().describe()


def test_runs_of_earlier_versions_load():
    table = normstudy.load_table(STUDY)
    assert len(table) == 57
    for name in table["run"][:5]:
        loaded = normstudy.load_run(STUDY / name)
        assert loaded.summary["status"] in ("done", "diverged")
        assert loaded.measurements.keys() <= {"hessian", "class_similarity"}


def test_what_is_not_there_is_said(run):
    with pytest.raises(RunError, match=r"config\.json is missing"):
        normstudy.load_run(run.path / "nowhere")
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        normstudy.nothing  # noqa: B018
    run.metrics.unlink()
    with pytest.raises(RunError, match="no epoch"):
        _ = normstudy.load_run(run.path).metrics

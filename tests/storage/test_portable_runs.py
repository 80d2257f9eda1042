"""Run folders that outlive a new flag, another machine, and the settings of probes."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from helpers import complaint

import main
from config import parse_args
from models import build_from_config
from normstudy.cli import UsageError
from normstudy.storage import files, run_directory, run_settings
from normstudy.training import loop
from normstudy.training.evaluation import Evaluation

SHIPPED = sorted((Path(__file__).parents[2] / "results" / "cpu_study").glob("*/config.json"))


@pytest.fixture
def train(narrow, train):
    return train


def folders(results_dir):
    return [path for path in results_dir.iterdir() if path.name.startswith("vgg_")]


def test_every_shipped_run_keeps_its_name_and_is_read():
    assert len(SHIPPED) == 57
    for path in SHIPPED:
        run = run_directory.RunDirectory(path.parent)
        assert run_directory.run_name(run_settings.stored_config(run)) == path.parent.name
        assert run_settings.read_summary(run)["status"] in ("done", "diverged")


def test_a_setting_that_is_newer_than_a_run_has_the_value_it_had_then(train, tmp_path):
    run = train(tmp_path)
    settings = json.loads(run.config.read_text())
    del settings["batch_shares"], settings["mix_versions"], settings["checksum"], settings["schema_version"]
    run.config.write_text(json.dumps(settings))
    assert run_directory.run_name(run_settings.stored_config(run)) == run.path.name
    assert train(tmp_path).path == run.path


def test_a_newer_setting_enters_the_name_only_with_another_value():
    settings = parse_args([])
    assert "batch_shares" not in settings.identity()
    assert dataclasses.replace(settings, batch_shares=2).identity() == settings.identity() | {"batch_shares": 2}


@pytest.mark.parametrize("flag", ["--probe_layers=False", "--probe_every=3"])
def test_probes_do_not_make_another_run(train, tmp_path, capsys, flag):
    run = train(tmp_path)
    before = files.sha256_of(run.summary)
    assert train(tmp_path, flag).path == run.path
    assert folders(tmp_path) == [run.path]
    assert files.sha256_of(run.summary) == before
    assert "already finished" in capsys.readouterr().out


def test_probes_of_a_run_that_finished_without_them_need_overwrite(train, tmp_path):
    run = train(tmp_path, "--probe_layers=False")
    assert "--overwrite=True" in complaint(lambda: train(tmp_path))
    assert not run.probe_dumps()
    assert train(tmp_path, "--overwrite=True").probe_dumps()


def test_an_unfinished_run_continues_with_its_own_probes(train, tmp_path, monkeypatch, capsys):
    whole = train(tmp_path / "whole", "--probe_every=2")
    with monkeypatch.context() as patched:
        patched.setattr(loop.Training, "write_metrics", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", "--probe_every=2")
    run = train(tmp_path / "parts")
    assert "continues with the --probe_every=2 that it was started with" in capsys.readouterr().err
    expected, found = (torch.load(each.probes(6), weights_only=True)["iteration"] for each in (whole, run))
    assert torch.equal(expected, found)


def test_a_run_is_found_under_the_name_that_an_earlier_version_gave_it(train, tmp_path, capsys):
    run = train(tmp_path, "--probe_layers=False")
    settings = run_settings.stored_config(run)
    earlier = run_directory.RunDirectory(
        tmp_path / run_directory.run_name(settings, run_directory.earlier_hash(settings))
    )
    assert earlier.path != run.path
    run.path.rename(earlier.path)
    summary = files.read_json(earlier.summary) | {"identity": run_directory.earlier_hash(settings)}
    files.write_json(earlier.summary, summary)
    assert train(tmp_path, "--probe_layers=False").path == earlier.path
    assert folders(tmp_path) == [earlier.path]
    assert "already finished" in capsys.readouterr().out
    assert "finished without probes" in complaint(lambda: train(tmp_path))
    assert folders(tmp_path) == [earlier.path]


def test_a_flag_given_with_c_dir_counts_even_if_it_equals_the_default(train, tmp_path):
    run = train(tmp_path, "--keep=last")
    for flags, wanted in ([], ("cpu", "last")), (["--device=auto", "--keep=all"], ("auto", "all")):
        config, _ = run_settings.open_run(parse_args([f"--c_dir={run.path}", *flags]))
        assert (config.device, config.keep) == wanted


def test_a_flag_given_with_c_dir_that_does_not_apply_to_its_run_is_refused(train, tmp_path):
    run = train(tmp_path, "--norm_type=LayerNorm", "--epochs=1")
    for flag in ("--sync_bn", "--download"):
        with pytest.raises(UsageError, match=f"{flag} applies only to"):
            run_settings.open_run(parse_args([f"--c_dir={run.path}", flag]))


def test_every_tensor_is_stored_on_the_cpu(tmp_path):
    """A tensor on the meta device cannot be copied, so the error shows that a copy is made wherever it is."""
    path = tmp_path / "file.pt"
    content = {"a": [1, {"b": (0.5, "text")}]}
    files.write_torch(path, content)
    assert torch.load(path, weights_only=True) == content
    elsewhere = torch.ones(2, device="meta")
    for nested in (elsewhere, {"a": elsewhere}, {"a": [1, {"b": (elsewhere,)}]}):
        with pytest.raises(NotImplementedError):
            files.write_torch(path, nested)


@pytest.mark.cuda
def test_a_run_on_a_gpu_leaves_no_gpu_tensors(train, tmp_path):
    run = train(tmp_path, "--device=cuda")
    for path in (*run.checkpoints(), run.last, *run.probe_dumps()):
        assert b"cuda" not in path.read_bytes()


def test_the_first_checkpoint_is_the_network_at_the_start(train, tmp_path):
    run = train(tmp_path)
    assert [path.name for path in run.checkpoints()] == ["epoch_0000.pt", "epoch_0005.pt", "epoch_0006.pt"]
    config = run_settings.stored_config(run)
    torch.manual_seed(config.seed)
    expected = build_from_config(config, 2).state_dict()
    found = torch.load(run.checkpoint(0), weights_only=True)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in found)
    assert "checkpoints/epoch_0000.pt" in files.read_json(run.summary)["files"]


def test_every_json_file_names_its_schema(train, tmp_path):
    run = train(tmp_path)
    found = list(run.path.glob("*.json"))
    assert {path.name for path in found} == {"config.json", "summary.json", "probes.json"}
    assert all(files.read_json(path)["schema_version"] == 1 for path in found)


def test_a_test_loss_that_is_not_finite_is_stored_as_null_and_training_continues(train, tmp_path, monkeypatch, capsys):
    calls = []

    evaluate = Evaluation.__call__

    def infinite_first(*arguments):
        calls.append(arguments)
        loss, accuracy = evaluate(*arguments)
        return (float("inf") if len(calls) in (1, 6) else loss), accuracy

    monkeypatch.setattr(Evaluation, "__call__", infinite_first)
    run = train(tmp_path)
    lines = run.metrics.read_text().splitlines()
    column = lines[0].split(",").index("test_loss")
    assert [line.split(",")[column] == "" for line in lines[1:]] == [True, False, False, False, False, True]
    summary = files.read_json(run.summary)
    assert (summary["status"], summary["test_loss"]) == ("done", None)
    assert summary["test_accuracy"] is not None
    assert "test loss not finite acc" in capsys.readouterr().out
    assert main.main([f"--c_dir={run.path}"]) == run.path

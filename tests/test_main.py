"""Small complete runs of main.py: their files, repetition, continuation and errors."""

import csv
import json
import os
import platform
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

import config
import main
from config import parse_args
from models import build_from_config
from normstudy.cli import RunError, UsageError
from normstudy.datasets import batches, loading
from normstudy.storage import PROBE_KEYS, files, probe_files, results_columns, run_directory, run_settings
from normstudy.training import epoch_losses, loop

ROOT = Path(__file__).parent.parent
SMALL = [
    "--dataset=Synthetic",
    "--image_size=8",
    "--train_samples=50",
    "--test_samples=20",
    "--batch_size=16",
    "--device=cpu",
]
TIMES = ("seconds", "images_per_second")


def train(results_dir, *flags):
    return run_directory.RunDirectory(main.main([*SMALL, "--epochs=2", f"--results_dir={results_dir}", *flags]))


def metrics(run):
    """Return the rows of metrics.csv without the columns that depend on the clock."""
    with open(run.metrics, newline="") as file:
        return [{key: value for key, value in row.items() if key not in TIMES} for row in csv.DictReader(file)]


def summary(run):
    return json.loads(run.summary.read_text())


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    return train(tmp_path_factory.mktemp("finished"), "--val_fraction=0.2")


def test_a_run_leaves_every_file(finished):
    left = {str(path.relative_to(finished.path)) for path in finished.path.rglob("*") if path.is_file()}
    assert left - {".lock"} == {
        "config.json",
        "metrics.csv",
        "summary.json",
        "curves.png",
        "probes.png",
        "probes.json",
        "checkpoints/last.pt",
        "checkpoints/epoch_0000.pt",
        "checkpoints/epoch_0002.pt",
        "probes/epoch_0002.pt",
    }


def test_the_directory_is_named_after_the_run(finished):
    assert finished.path.name.startswith("vgg_BatchNorm_Synthetic_cfg_10_")
    assert finished.path.name.endswith(f"_seed0_{run_directory.identity_hash(run_settings.stored_config(finished))}")


def test_config_json_holds_every_setting_and_the_versions(finished):
    stored = json.loads(finished.config.read_text())
    assert {name: stored[name] for name in ("norm_type", "epochs", "momentum")} == {
        "norm_type": "BatchNorm",
        "epochs": 2,
        "momentum": 0.9,
    }
    assert stored["versions"]["torch"] == torch.__version__
    assert stored["data"]["train_samples"] == 40


def test_metrics_have_one_row_an_epoch(finished):
    rows = metrics(finished)
    assert [row["epoch"] for row in rows] == ["1", "2"]
    assert all(float(value) >= 0 for row in rows for value in row.values())


def test_checkpoints_and_probes_load_as_plain_tensors(finished):
    for path in finished.path.rglob("*.pt"):
        torch.load(path, weights_only=True)


def test_probe_dicts_hold_every_iteration(finished):
    dump = torch.load(finished.probes(2), weights_only=True)
    assert dump["iteration"].tolist() == [0, 1, 2, 3, 4, 5]
    assert all(dump[key].shape == (6, 10) and dump[key].dtype == torch.float32 for key in PROBE_KEYS)


def test_the_summary_is_what_the_checkpoint_gives(finished):
    """Accuracies and losses are recomputed from the files, over all samples at once."""
    settings = run_settings.stored_config(finished)
    dataset = loading.load(settings)
    model = build_from_config(settings, len(dataset.classes))
    model.load_state_dict(torch.load(finished.checkpoint(2), weights_only=True))
    model.eval()
    found = summary(finished)
    for name in ("train", "validation", "test"):
        split = getattr(dataset, name)
        with torch.no_grad():
            logits = model(batches.to_network_input(split.images, image_size=settings.image_size))
        assert found[f"{name}_accuracy"] == (logits.argmax(1) == split.labels).double().mean().item()
        assert found[f"{name}_loss"] == pytest.approx(F.cross_entropy(logits, split.labels).item(), rel=1e-4)
    assert found["generalization_ratio"] == found["test_accuracy"] / found["train_accuracy"]


def test_the_same_command_gives_the_same_bits_and_another_seed_does_not(tmp_path):
    first, second = train(tmp_path / "a"), train(tmp_path / "b")
    assert first.path.name == second.path.name
    assert metrics(first) == metrics(second)
    other = metrics(train(tmp_path / "a", "--seed=1"))
    assert all(row["train_loss"] != was["train_loss"] for row, was in zip(other, metrics(first), strict=True))


@pytest.mark.parametrize("flags", [["--probe_layers=False"], ["--probe_every=2"]])
def test_probes_do_not_change_the_losses(tmp_path, flags):
    assert metrics(train(tmp_path / "with")) == metrics(train(tmp_path / "without", *flags))


def test_probe_every_thins_the_iterations(tmp_path):
    dump = torch.load(train(tmp_path, "--probe_every=4").probes(2), weights_only=True)
    assert dump["iteration"].tolist() == [0, 4]


def probes_summary(run):
    summary = probe_files.read_probes_summary(run)
    assert summary is not None
    return summary


def test_probes_json_keeps_ends_and_means_of_whole_batches(tmp_path, monkeypatch):
    """With 50 samples in batches of 16, the fourth batch of an epoch has only 2."""
    finished = train(tmp_path)
    dump = torch.load(finished.probes(2), weights_only=True)
    kept = probes_summary(finished)
    whole = [0, 1, 2, 4, 5, 6]
    assert kept["sites"] == dump["sites"]
    assert dump["iteration"].tolist() == list(range(8))
    assert kept["iteration"] == whole
    for key in PROBE_KEYS:
        values = dump[key].double()[whole]
        for name, expected in (("first", values[0]), ("last", values[-1]), ("mean", values.mean(1))):
            torch.testing.assert_close(torch.tensor(kept[key][name]).double(), expected, rtol=1e-5, atol=1e-9)
    monkeypatch.setattr(probe_files, "SUMMARIZED_ITERATIONS", 3)  # fewer than the iterations of the run
    probe_files.summarize_probes(finished)
    thinned = probes_summary(finished)
    assert thinned["iteration"] == [0, 2, 6]
    assert [thinned[key]["mean"] for key in PROBE_KEYS] == [
        [kept[key]["mean"][i] for i in (0, 2, 5)] for key in PROBE_KEYS
    ]
    finished.probes_summary.unlink()
    assert probes_summary(finished)["iteration"] == thinned["iteration"]


@pytest.mark.parametrize("size", [10, 64], ids=["which divides the images", "larger than the images"])
def test_no_probes_are_left_out_where_all_batches_are_alike(tmp_path, size):
    finished = train(tmp_path, f"--batch_size={size}", "--init_lr=0.1")
    dump = torch.load(finished.probes(2), weights_only=True)
    assert len(dump["iteration"]) == 2 * -(-50 // size)
    assert probes_summary(finished)["iteration"] == dump["iteration"].tolist()


def test_without_probes_there_are_no_dumps(tmp_path):
    run = train(tmp_path, "--probe_layers=False", "--epochs=1")
    assert not run.probe_dumps()
    assert not run.probes_summary.exists()
    assert probe_files.read_probes_summary(run) is None
    assert not run.probes_picture.exists()


def interrupt_at(monkeypatch, stop_epoch):
    """Interrupt training at the start of an epoch, as Ctrl-C does; return a function that ends this."""
    original = loop.Training.run_epoch

    def run_epoch(self, epoch):
        if epoch == stop_epoch:
            raise KeyboardInterrupt
        return original(self, epoch)

    monkeypatch.setattr(loop.Training, "run_epoch", run_epoch)
    return lambda: monkeypatch.setattr(loop.Training, "run_epoch", original)


@pytest.mark.parametrize("by_directory", [False, True])
def test_a_continued_run_has_the_bits_of_an_uninterrupted_one(tmp_path, monkeypatch, by_directory):
    """The run is stopped before epoch 7 of 7, after a dump and with probes of epoch 6 that are not dumped yet."""
    flags = ["--epochs=7", "--lr_warmup=True"]
    whole = train(tmp_path / "whole", *flags)
    mend = interrupt_at(monkeypatch, 7)
    with pytest.raises(KeyboardInterrupt, match="6 of 7 epochs are saved; run the same command"):
        train(tmp_path / "parts", *flags)
    mend()
    parts = run_directory.RunDirectory(tmp_path / "parts" / whole.path.name)
    assert not parts.summary.exists()
    if by_directory:
        main.main([f"--c_dir={parts.path}"])
    else:
        train(tmp_path / "parts", *flags)
    assert metrics(parts) == metrics(whole)
    assert [path.name for path in whole.checkpoints()] == ["epoch_0000.pt", "epoch_0005.pt", "epoch_0007.pt"]
    for name in (
        "checkpoints/epoch_0000.pt",
        "checkpoints/epoch_0005.pt",
        "checkpoints/epoch_0007.pt",
        "probes/epoch_0005.pt",
        "probes/epoch_0007.pt",
    ):
        mine, other = (torch.load(run.path / name, weights_only=True) for run in (whole, parts))
        assert mine.keys() == other.keys()
        for key, value in mine.items():
            assert torch.equal(value, other[key]) if torch.is_tensor(value) else value == other[key]


def test_a_finished_run_is_reported_not_repeated(finished, capsys):
    before = {path: path.stat().st_mtime_ns for path in finished.path.rglob("*") if path.name != ".lock"}
    again = train(finished.path.parent, "--val_fraction=0.2")
    assert again.path == finished.path
    assert "done in" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_overwrite_starts_over(tmp_path):
    run = train(tmp_path, "--epochs=1")
    expected = metrics(run)
    (run.path / "leftover.txt").write_text("old")
    train(tmp_path, "--epochs=1", "--overwrite=True")
    assert metrics(run) == expected
    assert not (run.path / "leftover.txt").exists()


def test_keep_last_leaves_the_first_and_the_last_checkpoint(tmp_path):
    run = train(tmp_path, "--epochs=6", "--keep=last", "--train_samples=16")
    assert [path.name for path in run.checkpoints()] == ["epoch_0000.pt", "epoch_0006.pt"]


def test_divergence_is_a_result(tmp_path, capsys):
    flags = ["--norm_type=Plain", "--init_lr=1e6", "--epochs=3"]
    run = train(tmp_path, *flags)
    found = summary(run)
    assert found["status"] == "diverged"
    assert found["test_accuracy"] is None
    dump = torch.load(run.probe_dumps()[-1], weights_only=True)
    assert dump["iteration"][-1] == found["diverged_at_step"]
    assert run.curves.exists()
    capsys.readouterr()
    train(tmp_path, *flags)
    assert "diverged at step" in capsys.readouterr().out


def test_divergence_does_not_depend_on_when_it_is_looked_for(tmp_path, monkeypatch):
    flags = ["--norm_type=Plain", "--init_lr=1e6"]
    late = train(tmp_path / "late", *flags)
    monkeypatch.setattr(epoch_losses, "LOOK_SECONDS", 0.0)
    early = train(tmp_path / "early", *flags)
    dumps = [torch.load(run.probe_dumps()[-1], weights_only=True) for run in (late, early)]
    assert summary(late)["diverged_at_step"] == summary(early)["diverged_at_step"]
    assert torch.equal(dumps[0]["iteration"], dumps[1]["iteration"])


@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
def test_every_norm_trains(tmp_path, norm_type):
    run = train(tmp_path, f"--norm_type={norm_type}", "--epochs=1", "--train_samples=32")
    assert summary(run)["status"] == "done"


@pytest.mark.parametrize(
    "flags",
    [
        ["--arch=vit", "--image_size=32", "--patch_size=8"],
        ["--arch=resnet-56", "--skipinit=True", "--preact=True", "--norm_type=GroupNorm", "--p_grouping=0.5"],
        ["--arch=resnet-56", "--norm_type=WeightNorm", "--init_lr=0.01"],
        ["--precision=bf16"],
        ["--conv_type=WeightCentered", "--image_size=16"],
        ["--momentum=0", "--weight_decay=0"],
        ["--batch_size=7"],
    ],
)
def test_combinations_train(tmp_path, flags):
    run = train(tmp_path, *flags, "--epochs=1", "--train_samples=15")
    assert summary(run)["status"] in ("done", "diverged")
    assert run.probes_picture.exists()


@pytest.mark.slow
def test_training_learns(tmp_path):
    """The accuracy on unseen images is well above the chance level of one tenth."""
    run = train(
        tmp_path, "--train_samples=1000", "--test_samples=500", "--batch_size=32", "--epochs=4", "--probe_layers=False"
    )
    losses = [float(row["train_loss"]) for row in metrics(run)]
    assert losses == sorted(losses, reverse=True)
    assert summary(run)["test_accuracy"] > 0.25


def test_results_csv_has_a_row_a_run(tmp_path):
    done = train(tmp_path, "--epochs=1")
    diverged = train(tmp_path, "--norm_type=Plain", "--init_lr=1e6")
    with open(tmp_path / "results.csv", newline="") as file:
        rows = {row["run"]: row for row in csv.DictReader(file)}
    assert rows.keys() == {done.path.name, diverged.path.name}
    row = rows[done.path.name]
    assert tuple(row)[:16] == tuple(results_columns.ORIGINAL_COLUMNS)
    assert float(row["Test Accuracy"]) == pytest.approx(100 * summary(done)["test_accuracy"])
    assert (row["Success"], rows[diverged.path.name]["Success"]) == ("True", "False")
    assert rows[diverged.path.name]["Test Accuracy"] == ""


def test_an_image_folder_trains(tmp_path):
    generator = np.random.default_rng(0)
    for split, count in (("train", 12), ("test", 4)):
        for name in ("cat", "dög"):
            folder = tmp_path / "with space" / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    flags = ["--dataset=ImageFolder", f"--data_dir={tmp_path / 'with space'}", f"--results_dir={tmp_path / 'r'}"]
    path = main.main([*flags, "--epochs=1", "--batch_size=8", "--device=cpu"])
    assert json.loads((path / "config.json").read_text())["data"]["classes"] == ["cat", "dög"]
    assert summary(run_directory.RunDirectory(path))["status"] == "done"


# Errors


def said(*argv, cwd=ROOT):
    """Return (exit code, stderr) of main.py, run as a user runs it."""
    answer = subprocess.run([sys.executable, str(ROOT / "main.py"), *argv], cwd=cwd, capture_output=True, text=True)
    return answer.returncode, answer.stderr


def test_missing_data_is_one_line_that_names_both_ways_on(tmp_path):
    code, line = said(f"--data_dir={tmp_path}", f"--results_dir={tmp_path / 'r'}")
    assert (code, line.count("\n")) == (1, 1)
    if "torchvision does not work" not in line:
        assert "--download=True" in line
        assert "--data_dir" in line


def test_a_wrong_flag_is_one_line_and_exit_2():
    code, line = said("--norm_type=foo")
    assert (code, line.count("\n")) == (2, 1)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_device_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="--device=cuda:3"):
        train(tmp_path, "--device=cuda:3")


def test_a_subset_larger_than_the_data_is_a_usage_error(tmp_path):
    with pytest.raises(UsageError, match="--train_samples"):
        train(tmp_path, "--train_samples=6000")


@pytest.mark.parametrize("damage", [b"", b"not a checkpoint", "half"])
def test_a_damaged_state_is_named_and_not_overwritten(tmp_path, monkeypatch, damage):
    mend = interrupt_at(monkeypatch, 2)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path)
    mend()
    run = run_directory.RunDirectory(next(path.parent for path in tmp_path.glob("*/config.json")))
    content = run.last.read_bytes()[: run.last.stat().st_size // 2] if damage == "half" else damage
    run.last.write_bytes(content)
    with pytest.raises(RunError, match=r"last\.pt.*--overwrite=True"):
        train(tmp_path)
    assert run.last.read_bytes() == content


def test_a_state_of_other_settings_is_refused(tmp_path, monkeypatch):
    mend = interrupt_at(monkeypatch, 2)
    for seed in (0, 1):
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path, f"--seed={seed}")
    mend()
    first, second = (next(tmp_path.glob(f"*_seed{seed}_*/checkpoints/last.pt")) for seed in (0, 1))
    first.write_bytes(second.read_bytes())
    with pytest.raises(RunError, match="other settings"):
        train(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "{}", '{"arch": "vgg"}'])
def test_a_damaged_config_is_named(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    with pytest.raises(RunError, match=r"config\.json"):
        main.main([f"--c_dir={tmp_path}"])


def test_c_dir_must_exist(tmp_path):
    with pytest.raises(RunError, match="not a folder"):
        main.main([f"--c_dir={tmp_path / 'nowhere'}"])


def test_a_run_of_other_images_is_refused(tmp_path):
    run = train(tmp_path, "--epochs=1")
    stored = files.read_json(run.config)
    stored["data"]["fingerprint"] = "0" * 16
    files.write_json(run.config, stored)
    run.summary.unlink()
    with pytest.raises(RunError, match="other images"):
        train(tmp_path, "--epochs=1")


def test_two_processes_do_not_share_a_run(tmp_path):
    settings = parse_args([*SMALL, "--epochs=2", f"--results_dir={tmp_path}"])
    run = run_directory.RunDirectory(tmp_path / run_directory.run_name(settings))
    with run.lock():
        code, line = said(*SMALL, "--epochs=2", f"--results_dir={tmp_path}")
    assert (code, line.count("\n")) == (1, 1)
    assert f"process {os.getpid()} on {platform.node()} since" in line


def test_ctrl_c_exits_130_and_the_same_command_continues(tmp_path):
    argv = [sys.executable, "-u", str(ROOT / "main.py"), *SMALL, "--epochs=40", f"--results_dir={tmp_path}"]
    process = subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("epoch  3/40"):
            break  # the state after epoch 2 is on disk
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130
    assert stderr.count("\n") == 1
    assert "epochs are saved; run the same command" in stderr
    run = run_directory.RunDirectory(next(path.parent for path in tmp_path.glob("*/config.json")))
    assert torch.load(run.last, weights_only=True)["epoch"] >= 2


def test_output_is_quiet_where_there_is_no_terminal(tmp_path):
    argv = [sys.executable, str(ROOT / "main.py"), *SMALL, "--epochs=2", f"--results_dir={tmp_path}"]
    answer = subprocess.run(argv, capture_output=True, text=True)
    assert answer.stderr == ""
    assert [line.split("/")[0] for line in answer.stdout.splitlines()[1:3]] == ["epoch 1", "epoch 2"]
    assert "\r" not in answer.stdout

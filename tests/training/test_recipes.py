"""Recipes beyond the original's: schedules, optimizers, augmentation, smoothing, clipping, stopping, and continuing."""

import csv
import math
import signal

import numpy as np
import pytest
import torch
from torch.nn import functional as F

import main
from config import learning_rate, parse_args
from models import build_from_config
from normstudy.cli import RunError, UsageError
from normstudy.cli.signals import SafePoints
from normstudy.datasets import Split, training_batch, training_order
from normstudy.kernels import training_arithmetic
from normstudy.storage import files, run_directory, run_settings
from normstudy.training import training_step
from normstudy.training.optimizer import Optimizer

RECIPES = {
    "adamw": [
        *("--optimizer=adamw", "--lr=0.003", "--lr_schedule=cosine", "--lr_warmup", "--augment=crop"),
        *("--label_smoothing=0.1", "--clip_grad=1", "--weight_decay_on=weights", "--weight_decay=0.05"),
    ],
    "nesterov": ["--nesterov", "--lr_schedule=cosine", "--augment=crop", "--label_smoothing=0.1", "--clip_grad=0.5"],
    "constant": ["--lr=0.05", "--lr_schedule=constant", "--augment=none", "--weight_decay_on=weights"],
    "deterministic": ["--deterministic"],
}


@pytest.fixture
def train(narrow, train):
    return train


def rows(run):
    with open(run.metrics, newline="") as file:
        return list(csv.DictReader(file))


def test_cosine_falls_from_the_peak_to_zero_after_the_warmup():
    settings = parse_args(["--lr=0.5", "--lr_schedule=cosine", "--lr_warmup", "--epochs=20"])
    rates = [learning_rate(settings, step, 7) for step in range(141)]
    assert rates[:36] == [0.5 * step / 35 for step in range(36)]
    expected = [0.25 * (1 + math.cos(math.pi * index / 105)) for index in range(106)]
    assert rates[35:] == pytest.approx(expected, abs=1e-12)
    assert learning_rate(settings, 1000, 7) == 0


def test_constant_stays_at_the_peak_and_lr_replaces_the_linear_rule():
    settings = parse_args(["--lr=0.5", "--lr_schedule=constant", "--batch_size=64", "--epochs=2"])
    assert {learning_rate(settings, step, 10) for step in range(20)} == {0.5}
    usual = parse_args(["--lr_schedule=constant", "--batch_size=64"])
    assert learning_rate(usual, 0, 10) == 0.1 * 64 / 256


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--optimizer=adamw", "--momentum=0.5"], "--momentum applies only to --optimizer=sgd"),
        (["--optimizer=adamw", "--nesterov"], "--nesterov applies only to --optimizer=sgd"),
        (["--nesterov", "--momentum=0"], "--nesterov needs"),
        (["--lr=0.1", "--init_lr=2"], "--init_lr"),
        (["--stop_at_loss=0.1"], "--lr_schedule=constant"),
        (["--label_smoothing=1"], "--label_smoothing"),
        (["--clip_grad=0"], "--clip_grad"),
    ],
)
def test_flags_that_do_not_fit_are_refused(flags, words, capsys):
    with pytest.raises(SystemExit):
        parse_args(flags)
    assert words in capsys.readouterr().err


def test_crops_are_those_of_padded_images():
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (40, 3, 6, 7), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(40))
    order, views = training_order(split, 3, 5, "crop")
    flips = training_order(split, 3, 5)[1]
    assert torch.equal(order, training_order(split, 3, 5)[0])
    assert torch.equal(views[:, 0] > 0, flips)
    assert views[:, 1:].min() == 0
    assert views[:, 1:].max() == 8
    batch, labels = training_batch(split, order, views)
    padded = np.pad(images.numpy(), ((0, 0), (0, 0), (4, 4), (4, 4)))
    for image, label, (flip, top, left) in zip(batch, labels, views.tolist(), strict=True):
        expected = padded[int(label), :, top : top + 6, left : left + 7]
        expected = expected[:, :, ::-1] if flip else expected
        np.testing.assert_allclose(image.numpy(), expected / 127.5 - 1, atol=1e-6)


def test_without_augmentation_images_are_as_they_are():
    split = Split(torch.randint(0, 256, (9, 3, 4, 4), dtype=torch.uint8), torch.arange(9))
    order, flips = training_order(split, 0, 1, "none")
    assert not flips.any()
    assert training_batch(split, order, flips)[1].tolist() == order.tolist()


def test_the_loss_of_a_step_is_smoothed(narrow):
    settings = parse_args(["--dataset=Synthetic", "--label_smoothing=0.3"])
    torch.manual_seed(0)
    model = build_from_config(settings, 5)
    split = Split(torch.randint(0, 256, (8, 3, 8, 8), dtype=torch.uint8), torch.arange(8) % 5)
    images, labels = training_batch(split, torch.arange(8), torch.zeros(8, dtype=torch.bool))
    log_p = F.log_softmax(model(images).double(), 1)
    expected = -(0.7 * log_p[torch.arange(8), labels] + 0.3 * log_p.mean(1)).mean()
    step = training_step.Step(settings, model, Optimizer(settings, model), split)
    loss, _ = step(torch.arange(8), torch.zeros(8, dtype=torch.bool), 0.0, 0)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("recipe", RECIPES)
def test_a_run_stopped_within_an_epoch_continues_to_the_bit(train, tmp_path, monkeypatch, recipe):
    flags = [*RECIPES[recipe], "--epochs=3"]
    whole = train(tmp_path / "whole", *flags)
    calls = []

    def stops(self):
        calls.append(1)
        return signal.SIGINT if len(calls) == 7 else 0  # within the second epoch of four steps

    with monkeypatch.context() as patched:
        patched.setattr(SafePoints, "signal", stops)
        with pytest.raises(KeyboardInterrupt, match=r"1\.\d+ of 3 epochs are saved"):
            train(tmp_path / "parts", *flags)
    parts = train(tmp_path / "parts", *flags)
    for path in (*whole.checkpoints(), *whole.probe_dumps()):
        expected = torch.load(path, weights_only=True)
        found = torch.load(parts.path / whole.name_of(path), weights_only=True)
        assert expected.keys() == found.keys()
        assert all(torch.equal(expected[key], found[key]) for key in expected if torch.is_tensor(expected[key]))
    assert [row["train_loss"] for row in rows(whole)] == [row["train_loss"] for row in rows(parts)]
    dump = torch.load(whole.probes(3), weights_only=True)
    settings = run_settings.stored_config(whole)
    expected = [learning_rate(settings, step, 4) for step in dump["iteration"].tolist()]
    assert dump["learning_rate"].tolist() == expected


def test_training_stops_after_the_epoch_that_reaches_the_loss(train, tmp_path):
    flags = ["--lr=0.05", "--lr_schedule=constant", "--epochs=40", "--eval_every=50"]
    free = train(tmp_path / "free", *flags)
    losses = [float(row["train_loss"]) for row in rows(free)]
    assert "reached_loss" not in files.read_json(free.summary)
    run = train(tmp_path / "stopped", *flags, f"--stop_at_loss={losses[0] * 0.9}")
    summary = files.read_json(run.summary)
    assert summary["reached_loss"] is True
    epochs = summary["epochs_done"]
    assert 1 < epochs < 40
    assert summary["train_loss"] <= losses[0] * 0.9
    assert run.checkpoints()[-1] == run.checkpoint(epochs)
    assert summary["test_accuracy"] is not None
    assert [row["train_loss"] for row in rows(run)] == [row["train_loss"] for row in rows(free)][:epochs]
    assert main.main([f"--c_dir={run.path}"]) == run.path
    never = train(tmp_path / "never", *flags[:2], "--epochs=2", "--stop_at_loss=1e-9")
    assert files.read_json(never.summary)["reached_loss"] is False


def test_intervals_of_dumps_and_evaluations(train, tmp_path):
    run = train(tmp_path, "--epochs=5", "--dump_every=2", "--eval_every=3")
    assert [path.stem for path in run.checkpoints()] == ["epoch_0000", "epoch_0002", "epoch_0004", "epoch_0005"]
    assert [path.stem for path in run.probe_dumps()] == ["epoch_0002", "epoch_0004", "epoch_0005"]
    assert [row["test_loss"] != "" for row in rows(run)] == [False, False, True, False, True]


def test_weights_alone_are_decayed(train, tmp_path):
    flags = ["--epochs=1", "--lr=1e-12", "--weight_decay=1e9", "--weight_decay_on=weights", "--dump_every=1"]
    run = train(tmp_path, *flags, "--momentum=0")
    start, end = (torch.load(path, weights_only=True) for path in run.checkpoints())
    for name in start:
        if name.endswith(("conv.weight", "classifier.weight")):
            assert end[name].norm() < 0.999 * start[name].norm()
        elif not name.split(".")[-1].startswith("running"):
            torch.testing.assert_close(end[name], start[name], rtol=1e-5, atol=1e-9)


def test_each_new_setting_makes_another_run_and_a_column(train, tmp_path):
    run = train(tmp_path, "--epochs=1", "--optimizer=adamw", "--lr=0.001", "--clip_grad=2")
    other = train(tmp_path, "--epochs=1")
    assert run.path != other.path
    with open(tmp_path / "results.csv", newline="") as file:
        table = {row["run"]: row for row in csv.DictReader(file)}
    row = table[run.path.name]
    assert (row["optimizer"], row["lr"], row["clip_grad"], row["nesterov"]) == ("adamw", "0.001", "2.0", "False")
    assert (table[other.path.name]["optimizer"], table[other.path.name]["lr"]) == ("sgd", "")


def test_tf32_needs_cuda():
    with (
        pytest.raises(UsageError, match="--precision=tf32 needs CUDA"),
        training_arithmetic(torch.device("cpu"), "tf32", False),
    ):
        pass


def test_arithmetic_is_restored_after_training(train, tmp_path):
    def state():
        cudnn = torch.backends.cudnn
        flags = cudnn.allow_tf32, cudnn.benchmark, cudnn.deterministic
        return flags, torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()

    before = state()
    train(tmp_path, "--epochs=1", "--deterministic")
    assert state() == before


def test_tensorboard_gets_the_scalars_of_every_epoch(train, tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = train(tmp_path, "--epochs=2", "--tensorboard")
    events = event_accumulator.EventAccumulator(str(run.path / "tensorboard")).Reload()
    found = [(event.step, event.value) for event in events.Scalars("test_accuracy")]
    assert found == [(int(row["epoch"]), pytest.approx(float(row["test_accuracy"]))) for row in rows(run)]


def test_tensorboard_that_is_missing_is_said_before_training(train, tmp_path, monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RunError, match="pip install tensorboard"):
        train(tmp_path, "--tensorboard")
    assert not list(tmp_path.glob("vgg_*/metrics.csv"))


def test_runs_of_the_first_version_keep_their_folder(train, tmp_path):
    run = train(tmp_path, "--epochs=1")
    settings = run_settings.stored_config(run)
    names = {"optimizer", "nesterov", "lr", "lr_schedule", "augment", "label_smoothing", "clip_grad"}
    names |= {"weight_decay_on", "stop_at_loss", "deterministic", "dump_every", "eval_every", "tensorboard"}
    stored = {key: value for key, value in files.read_json(run.config).items() if key not in names}
    files.write_json(run.config, stored)
    assert run_settings.stored_config(run) == settings
    assert run_directory.run_name(settings) == run.path.name

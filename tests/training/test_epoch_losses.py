"""Losses of an epoch: their means, the first bad step, and when they are read."""

import math

import pytest
import torch

from normstudy.training import epoch_losses


def test_losses_are_means_over_samples():
    losses = epoch_losses.EpochLosses(3, torch.device("cpu"))
    for loss, correct, samples in ((1.0, 2, 4), (2.0, 1, 4), (4.0, 2, 2)):
        losses.record(torch.tensor(loss), torch.tensor(correct), samples)
    mean, accuracy, diverged = losses.result(4)
    assert mean == pytest.approx((4 + 8 + 8) / 10)
    assert accuracy == pytest.approx(0.5)
    assert diverged is None


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_first_loss_that_is_not_finite_is_found(monkeypatch, bad):
    monkeypatch.setattr(epoch_losses, "LOOK_SECONDS", 0.0)
    losses = epoch_losses.EpochLosses(5, torch.device("cpu"))
    for index, value in enumerate((1.0, 2.0, bad, 1.0, bad)):
        losses.record(torch.tensor(value), torch.tensor(1), 2)
        seen = losses.look()
        assert seen is not None
        _, accuracy, diverged = seen
        assert diverged == (None if index < 2 else 2)
        assert accuracy == pytest.approx(0.5)
    assert losses.result(2)[2] == 2


def test_losses_are_looked_at_once_in_a_while(monkeypatch):
    clock = iter([0.0, 0.5, 1.0, 1.0, 1.5, 2.0, 2.0]).__next__
    monkeypatch.setattr("normstudy.training.epoch_losses.time.perf_counter", clock)
    losses = epoch_losses.EpochLosses(5, torch.device("cpu"))
    losses.record(torch.tensor(1.0), torch.tensor(1), 2)
    assert [losses.look() is not None for _ in range(4)] == [False, True, False, True]

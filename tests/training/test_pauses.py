"""How often the processes of one run agree on signals, saved states and divergence."""

from types import SimpleNamespace
from typing import Any

import pytest

from normstudy.training.loop import CALLS_BETWEEN_EXCHANGES, Training


class Losses:
    def state_dict(self):
        return {"losses": []}


class CountingWorld:
    def __init__(self, size):
        self.size, self.exchanges = size, 0

    def max_over_processes(self, *numbers):
        self.exchanges += 1
        return numbers


def paused(size, calls, has_diverged=False, signal=0):
    """Return (number of exchanges, index of the call that ended the epoch, signals that were checked)."""
    checked: list[int] = []
    points = SimpleNamespace(signal=lambda: signal, check=checked.append)
    world, losses = CountingWorld(size), Losses()
    training: Any = SimpleNamespace(
        pauses=0, world=world, points=points, saved_at=0.0, config=SimpleNamespace(checkpoint_minutes=1e9), save=dict
    )
    ended = [index for index in range(calls) if Training.pause(training, losses, 0.0, has_diverged)]  # type: ignore[arg-type]
    return world.exchanges, ended[:1], checked


@pytest.mark.parametrize(("size", "exchanges"), [(1, 35), (2, 35 // CALLS_BETWEEN_EXCHANGES)])
def test_several_processes_agree_at_every_tenth_call_and_one_at_each(size, exchanges):
    assert paused(size, 35) == (exchanges, [], [0] * exchanges)


@pytest.mark.parametrize(("size", "first"), [(1, 0), (2, CALLS_BETWEEN_EXCHANGES - 1)])
def test_divergence_and_signals_wait_for_the_next_exchange(size, first):
    assert paused(size, 35, has_diverged=True)[1] == [first]
    assert paused(size, first, signal=2)[2] == []
    assert paused(size, first + 1, signal=2)[2] == [2]

"""Signals wait for a safe point."""

import signal

import pytest

from normstudy.cli import stops_at_safe_points


def interrupted(presses, checks):
    """Return how many of the checks were reached before `presses` times Ctrl-C ended the work."""
    passed = 0
    try:
        with stops_at_safe_points() as points:
            for _ in range(presses):
                signal.raise_signal(signal.SIGINT)
            for _ in range(checks):
                passed += 1
                points.check()
    except KeyboardInterrupt:
        return passed
    pytest.fail("the interrupt was lost")


@pytest.mark.parametrize(("presses", "checks", "passed"), [(1, 3, 1), (1, 0, 0), (2, 3, 0)])
def test_an_interrupt_waits_for_a_safe_point_and_a_second_does_not(presses, checks, passed):
    before = signal.getsignal(signal.SIGINT)
    assert interrupted(presses, checks) == passed
    assert signal.getsignal(signal.SIGINT) is before

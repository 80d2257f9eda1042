"""Signals that wait for a moment at which stopping loses nothing."""

import contextlib
import signal

PREEMPTIONS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]


class Preempted(KeyboardInterrupt):
    """SIGTERM, SIGUSR1 or SIGUSR2: a scheduler wants the machine back (exit code REQUEUE)."""


def raise_stop(number, frame):
    raise Preempted if number in PREEMPTIONS else KeyboardInterrupt


class SafePoints:
    """Signals that have come and wait for a moment at which stopping loses nothing."""

    def __init__(self):
        self.signals = []

    def signal(self):
        """The number of the first signal that has come, or 0."""
        return self.signals[0] if self.signals else 0

    def check(self, number=None):
        """Raises KeyboardInterrupt, or Preempted, where a signal has come: the given one, which 0 says is none, or that
        of this process."""
        number = self.signal() if number is None else number
        if number:
            raise_stop(number, None)

    def note(self, number, frame):
        """The handler. A second Ctrl-C does not wait; schedulers, which may repeat themselves, do."""
        if self.signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signals.append(number)


@contextlib.contextmanager
def stops_at_safe_points():
    """Gives the SafePoints of a block, within which signals wait; the last one is its end.

    What strikes while PyTorch calls back into Python can be swallowed there, or end the process.
    """
    points = SafePoints()
    previous = {}
    try:
        for number in (signal.SIGINT, *PREEMPTIONS):
            previous[number] = signal.signal(number, points.note)
    except ValueError:  # not in the main thread, where no signal arrives
        yield points
        return
    try:
        yield points
        points.check()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

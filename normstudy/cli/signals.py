"""Signals that stop a command, and safe points: the moments at which stopping loses nothing."""

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NoReturn

PREEMPTIONS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name))
STOP_SIGNALS = (signal.SIGINT, *PREEMPTIONS)
SignalHandler = Callable[[int, FrameType | None], object] | signal.Handlers


class Preempted(KeyboardInterrupt):
    """SIGTERM, SIGUSR1 or SIGUSR2, by which a scheduler asks for the machine back (exit code REQUEUE)."""


def raise_stop(number: int, frame: FrameType | None) -> NoReturn:
    """Raise Preempted for a preemption and KeyboardInterrupt for Ctrl-C, as a signal handler."""
    raise Preempted if number in PREEMPTIONS else KeyboardInterrupt


def set_stop_handlers(handler: SignalHandler) -> dict[int, Any]:
    """Install `handler` for STOP_SIGNALS; return {signal: previous handler}.

    Outside the main thread, which receives no signals, nothing changes and the dict is empty.
    """
    if threading.current_thread() is not threading.main_thread():
        return {}
    return {number: signal.signal(number, handler) for number in STOP_SIGNALS}


@contextlib.contextmanager
def stop_handlers(handler: SignalHandler) -> Iterator[None]:
    """A context in which `handler` handles STOP_SIGNALS; see set_stop_handlers."""
    previous = set_stop_handlers(handler)
    try:
        yield
    finally:
        for number, previous_handler in previous.items():
            signal.signal(number, previous_handler)


class SafePoints:
    """Signals that have arrived and wait for the next safe point."""

    def __init__(self) -> None:
        self.signals: list[int] = []

    def signal(self) -> int:
        """Return the number of the first signal that has arrived, or 0."""
        return self.signals[0] if self.signals else 0

    def check(self, number: int | None = None) -> None:
        """Raise KeyboardInterrupt or Preempted if a signal has arrived.

        `number` replaces the signal of this process, so that several processes can stop together; 0 means no signal.
        """
        number = self.signal() if number is None else number
        if number:
            raise_stop(number, None)

    def note(self, number: int, frame: FrameType | None) -> None:
        """Handle a signal: record it for the next safe point. A second Ctrl-C does not wait for it.

        A repeated signal of a scheduler does wait, because schedulers may send a signal several times.
        """
        if self.signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signals.append(number)


@contextlib.contextmanager
def stops_at_safe_points() -> Iterator[SafePoints]:
    """A context in which signals wait for the next safe point, of which its end is the last.

    A KeyboardInterrupt that is raised while PyTorch calls back into Python can be swallowed or crash the process.
    """
    points = SafePoints()
    with stop_handlers(points.note):
        yield points
    points.check()

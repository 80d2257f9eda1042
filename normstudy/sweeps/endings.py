"""How a child process of a sweep ended, and why it failed, from its own report or the signal that ended it."""

import contextlib
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from normstudy.cli import Outcome


@dataclass(frozen=True)
class Ending:
    """How a child process ended.

    code: its exit code, as subprocess gives it. outcome: its own report, or None. had_memory_kill: whether the system
    killed any process for lack of memory while the child ran. has_timed_out: whether --run_timeout stopped it.
    """

    code: int
    outcome: Outcome | None = None
    had_memory_kill: bool = False
    has_timed_out: bool = False

    @property
    def is_stopped(self) -> bool:
        """Whether the child ended because a signal asked for it."""
        return self.code in (99, 130, -signal.SIGTERM)

    @property
    def is_busy(self) -> bool:
        """Whether another process is working on the run."""
        return self.outcome is not None and self.outcome.kind == "busy"

    @property
    def is_certain(self) -> bool:
        """Whether another attempt would fail in the same way: the flags are wrong, or the time is too short."""
        return self.has_timed_out or (self.outcome is not None and self.outcome.kind == "usage")

    def reason(self, cure: str) -> str:
        """Return why the child failed, in one line. cure: what to do if the memory was too small."""
        # If one process dies, torchrun stops the others, so a report of kind "stopped" does not give the reason.
        if self.outcome is not None and self.outcome.kind != "stopped":
            return self.outcome.reason
        number = -self.code if self.code < 0 else self.code - 128  # shells report signal n as exit code 128 + n
        if number == signal.SIGKILL:
            certainty = "" if self.had_memory_kill else " (signal 9), most likely"
            return f"killed by the system{certainty} for lack of memory: {cure}"
        with contextlib.suppress(ValueError):
            return f"ended by signal {number} ({signal.Signals(number).name})"
        return f"exit code {self.code}, see the log"


def count_memory_kills() -> int:
    """Return how many processes of this control group, or else of this machine, Linux has killed for lack of memory.

    The result is 0 if the system does not report it.
    """
    with contextlib.suppress(OSError):
        group = re.search(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
        events = Path("/sys/fs/cgroup") / (group[1] if group else "") / "memory.events"
        for path in (events, Path("/proc/vmstat")):
            kills = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE) if path.exists() else None
            if kills:
                return int(kills[1])
    return 0

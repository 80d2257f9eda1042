"""How a child of a sweep ended, and why it failed: by its own account, or by the signal that ended it."""

import contextlib
import re
import signal
from dataclasses import dataclass
from pathlib import Path

from normstudy.cli import Outcome


@dataclass(frozen=True)
class Ending:
    """How a child ended.

    code: its exit code, as subprocess gives it. outcome: its own account, or None. had_memory_kill: whether the system
    killed some process for lack of memory meanwhile.
    """

    code: int
    outcome: Outcome | None = None
    had_memory_kill: bool = False

    @property
    def is_stopped(self) -> bool:
        """Whether the child ended because a signal asked for it."""
        return self.code in (99, 130, -signal.SIGTERM)

    @property
    def is_busy(self) -> bool:
        """Whether another process works on the run."""
        return self.outcome is not None and self.outcome.kind == "busy"

    @property
    def reason(self) -> str:
        """Why the child failed, in one line."""
        # torchrun stops the other processes where one of them dies: that one alone knows why.
        if self.outcome is not None and self.outcome.kind != "stopped":
            return self.outcome.reason
        number = -self.code if self.code < 0 else self.code - 128  # which is how shells report a signal
        if number == signal.SIGKILL:
            certainty = "" if self.had_memory_kill else " (signal 9), most likely"
            return f"killed by the system{certainty} for lack of memory: lower --jobs or --batch_size"
        with contextlib.suppress(ValueError):
            return f"ended by signal {number} ({signal.Signals(number).name})"
        return f"exit code {self.code}, see the log"


def count_memory_kills() -> int:
    """How many processes of this control group, or else of this machine, Linux has killed for lack of memory.

    0 where the system does not tell.
    """
    with contextlib.suppress(OSError):
        group = re.search(r"^0::/(.*)$", Path("/proc/self/cgroup").read_text(), re.MULTILINE)
        events = Path("/sys/fs/cgroup") / (group[1] if group else "") / "memory.events"
        for path in (events, Path("/proc/vmstat")):
            kills = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE) if path.exists() else None
            if kills:
                return int(kills[1])
    return 0

"""The note that says which process works on a run, and whether that process still exists."""

import contextlib
import os
import platform
import re
import time
from pathlib import Path
from typing import NamedTuple

CLOCK_ERROR = 60.0  # seconds by which the clocks of a file server and of this machine may differ


class Owner(NamedTuple):
    """The process that works on a run, its machine, and the time of its note in seconds since 1970."""

    process: int
    machine: str
    since: float


def write_owner(path: Path) -> None:
    """Note this process as the owner. Errors are ignored, because the note is only information."""
    with contextlib.suppress(OSError):
        since = f"process {os.getpid()} on {platform.node()} since {time.strftime('%c')}\n"
        path.write_text(since, encoding="utf-8", errors="replace")


def read_owner(path: Path) -> Owner | None:
    """Return the owner in a note, or None if the note is missing or damaged."""
    with contextlib.suppress(OSError, ValueError):
        found = re.match(r"process (\d+) on (.*) since ", path.read_text(encoding="utf-8"))
        if found:
            return Owner(int(found[1]), found[2], path.stat().st_mtime)
    return None


def is_alive(owner: Owner) -> bool | None:
    """Return whether the owner's process still exists, or None if this machine cannot tell.

    A process that began after the note was written only has the same number.
    """
    if owner.machine != platform.node() or os.name != "posix":
        return None
    try:
        os.kill(owner.process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # it exists, and belongs to somebody else
    except OverflowError:
        return False
    state, began = _linux_process(owner.process)
    return state not in ("Z", "X") and (began is None or began <= owner.since + CLOCK_ERROR)


def _linux_process(process: int) -> tuple[str | None, float | None]:
    """Return the state of a process, such as R, S or Z, and the time of its start; None where it is unknown."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        # The name of the program, in parentheses, may contain anything; the state is the first field after it.
        fields = Path(f"/proc/{process}/stat").read_text(errors="replace").rpartition(")")[2].split()
        [boot] = re.findall(r"^btime (\d+)$", Path("/proc/stat").read_text(), re.MULTILINE)
        return fields[0], int(boot) + int(fields[19]) / os.sysconf("SC_CLK_TCK")
    return None, None

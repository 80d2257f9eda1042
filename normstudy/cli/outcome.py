"""How a command ended, in a file for the process that started it.

The exit code says whether a command failed; the file says why, so that nobody has to search its log.
"""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

OUTCOME_VARIABLE = "NORMSTUDY_OUTCOME"  # the environment variable that holds the path of the file


@dataclass(frozen=True)
class Outcome:
    """The kind of an end, "usage", "failed", "busy" or "stopped", and the reason in one line."""

    kind: str
    reason: str


def report_outcome(kind: str, reason: str) -> None:
    """Write how this command ends to the file that the environment names; the last report replaces earlier ones.

    Without such a name nothing is written, and of torchrun's processes only the first writes. A file that cannot be
    written is no error: the exit code tells as well that something failed.
    """
    path = os.environ.get(OUTCOME_VARIABLE)
    if path is None or os.environ.get("RANK", "0") != "0":
        return
    outcome = Outcome(kind, " ".join(reason.splitlines()))
    temporary = Path(f"{path}.tmp")
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        os.replace(temporary, path)


def read_outcome(path: Path) -> Outcome | None:
    """The Outcome that a command reported to a file, or None if it reported none."""
    try:
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None

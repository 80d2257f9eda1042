"""A file that tells the process that started a command how the command ended.

The exit code says whether the command failed. The file says why, so that the log need not be searched.
"""

import contextlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path

from normstudy.cli.launcher import is_first_process

OUTCOME_VARIABLE = "NORMSTUDY_OUTCOME"  # the environment variable that holds the path of the file


@dataclass(frozen=True)
class Outcome:
    """How a command ended: its kind, "usage", "failed", "busy" or "stopped", and the reason in one line."""

    kind: str
    reason: str


def report_outcome(kind: str, reason: str) -> None:
    """Write how this command ends to the file that OUTCOME_VARIABLE names; a later report replaces earlier ones.

    Nothing is written if the variable is not set. Of torchrun's processes, only the first one writes. If the file
    cannot be written, no error is raised, because the exit code also tells of the failure.
    """
    path = os.environ.get(OUTCOME_VARIABLE)
    if path is None or not is_first_process():
        return
    outcome = Outcome(kind, " ".join(reason.splitlines()))
    temporary = Path(f"{path}.tmp")
    with contextlib.suppress(OSError):
        temporary.write_text(json.dumps(asdict(outcome)), encoding="utf-8")
        os.replace(temporary, path)


def read_outcome(path: Path) -> Outcome | None:
    """Return the Outcome that a command reported to a file, or None if it reported none."""
    try:
        return Outcome(**json.loads(path.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None

"""The note about the sweep that was started last in a results folder, logs/sweep.json."""

import dataclasses
import os
import platform
import time
from pathlib import Path
from typing import NamedTuple

from normstudy.cli import RunError, UsageError
from normstudy.storage import Owner, is_alive, read_json, write_json
from normstudy.sweeps.command import SweepCommand, parse_command


class LastSweep(NamedTuple):
    """The command line of a sweep, and the process that executes it or did so."""

    argv: tuple[str, ...]
    owner: Owner

    @property
    def is_running(self) -> bool | None:
        """Whether the process still exists; None if this machine cannot tell."""
        return is_alive(self.owner)


def note_path(results_dir: Path) -> Path:
    return results_dir / "logs" / "sweep.json"


def note_sweep(command: SweepCommand) -> None:
    """Note a sweep that starts."""
    path = note_path(command.results_dir)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_json(
        path,
        {
            "argv": list(command.argv),
            "process": os.getpid(),
            "machine": platform.node(),
            "started": time.strftime("%Y-%m-%d %H:%M:%S"),
        },
    )


def read_last_sweep(results_dir: Path) -> LastSweep | None:
    """Return the sweep that was started last in a folder, or None if there is no readable note."""
    path = note_path(results_dir)
    try:
        content = read_json(path)
        owner = Owner(int(content["process"]), str(content["machine"]), path.stat().st_mtime)
        return LastSweep(tuple(map(str, content["argv"])), owner)
    except (RunError, OSError, KeyError, TypeError, ValueError):
        return None


def sweep_to_look_at(command: SweepCommand) -> SweepCommand:
    """Return the command line whose sweep --status or --follow shows: the given one, or else the folder's last one.

    Raises UsageError if the folder has no sweep.
    """
    if not command.describes_no_sweep:
        return command
    last = read_last_sweep(command.results_dir)
    if last is None:
        raise UsageError(
            f"no sweep was started in {command.results_dir}: give --results_dir, or the flags of the sweep"
        )
    # The note may have been written in another working directory, so the folder is that of this command line.
    parsed = parse_command([*last.argv, f"--results_dir={command.results_dir}"])
    return dataclasses.replace(parsed, argv=last.argv)

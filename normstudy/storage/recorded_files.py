"""The checkpoints and metrics.csv of a run, and checks that its files are unchanged."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from config import Config
from normstudy.cli import RunError
from normstudy.storage.files import sha256_of, write_csv, write_torch
from normstudy.storage.run_directory import METRICS_COLUMNS, RunDirectory
from normstudy.storage.run_settings import read_summary
from normstudy.storage.training_state import read_states

if TYPE_CHECKING:
    import torch


def save_checkpoint(
    run: RunDirectory, config: Config, model: torch.nn.Module, epoch: int, files: dict[str, str]
) -> None:
    """Write the model's checkpoint of an epoch; with keep=last, then delete those between the first and this one.

    Updates `files`, the {name: SHA-256} of the run's files.
    """
    path = run.checkpoint(epoch)
    files[run.name_of(path)] = write_torch(path, model.state_dict())
    if config.keep == "last":
        for older in run.checkpoints():
            if older not in (path, run.checkpoint(0)):
                older.unlink()
                files.pop(run.name_of(older), None)


def changed_files(run: RunDirectory, summary: Mapping[str, Any]) -> list[str]:
    """Return the names of a finished run's files that differ from what the run wrote.

    Missing files are left out, because they may have been deleted to save space.
    """
    files = summary.get("files", {}).items()
    return [name for name, digest in files if (run.path / name).exists() and sha256_of(run.path / name) != digest]


def recorded_digest(run: RunDirectory, path: Path) -> str | None:
    """Return the SHA-256 that a finished run noted of one of its files, or None."""
    return read_summary(run).get("files", {}).get(run.name_of(path))


def are_metrics_whole(run: RunDirectory) -> bool:
    """Return whether a finished run's metrics.csv exists and is unchanged."""
    return run.metrics.exists() and recorded_digest(run, run.metrics) in (None, sha256_of(run.metrics))


def restore_metrics(run: RunDirectory) -> None:
    """Rewrite metrics.csv from the rows in a saved state. Raises RunError if no saved state is intact."""
    states, complaints = read_states(run)
    if not states:
        raise RunError("; ".join(complaints) or f"{run.last} is missing")
    path, state = states[0]
    print(f"{run.metrics} is missing or damaged; rewriting it from {path.name}", file=sys.stderr)
    write_csv(run.metrics, METRICS_COLUMNS, state["rows"])

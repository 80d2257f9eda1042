"""Checkpoints and metrics.csv of a run, and whether its files are still what the run wrote."""

import sys

from normstudy.cli import RunError
from normstudy.storage.files import sha256_of, write_csv, write_torch
from normstudy.storage.run_directory import METRICS_COLUMNS
from normstudy.storage.run_settings import read_summary
from normstudy.storage.training_state import read_states

# What was recorded


def save_checkpoint(run, config, model, epoch, files):
    """Writes the model of `epoch` alone; with keep=last the older ones go, once the new one is there.

    `files` gets the name and SHA-256 of what is there then.
    """
    path = run.checkpoint(epoch)
    files[run.name_of(path)] = write_torch(path, model.state_dict())
    if config.keep == "last":
        for older in run.checkpoints():
            if older != path:
                older.unlink()
                files.pop(run.name_of(older), None)


def changed_files(run, summary):
    """The names of a finished run's files that are not what the run wrote; they may be deleted to save space."""
    files = summary.get("files", {}).items()
    return [name for name, digest in files if (run.path / name).exists() and sha256_of(run.path / name) != digest]


def are_metrics_whole(run):
    """Whether a finished run's metrics.csv is what the run wrote."""
    name = run.name_of(run.metrics)
    digest = read_summary(run).get("files", {}).get(name)
    return run.metrics.exists() and digest in (None, sha256_of(run.metrics))


def restore_metrics(run):
    """Writes metrics.csv again from last.pt, which holds its rows. Raises RunError where that is not whole."""
    states, complaints = read_states(run)
    if not states:
        raise RunError("; ".join(complaints) or f"{run.last} is missing")
    print(f"{run.metrics} is missing or damaged: written again from {states[0][0].name}", file=sys.stderr)
    write_csv(run.metrics, METRICS_COLUMNS, states[0][1]["rows"])

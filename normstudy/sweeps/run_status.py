"""The status of a sweep's runs, and the time that the remaining ones will take."""

import collections
import contextlib
import os
import statistics
from collections.abc import Container, Sequence
from pathlib import Path

from normstudy.cli import RunError
from normstudy.storage import read_json
from normstudy.sweeps.grid import SweepRun


def log_path(run: SweepRun) -> Path:
    """Return the path of the log of a run, which receives the output of all its commands."""
    return run.directory.log


def failure_path(run: SweepRun) -> Path:
    """Return the path of the file that says why a run failed. It exists only if the run failed."""
    return run.directory.failure


def missing_measurements(run: SweepRun) -> list[str]:
    """Return the names of the measurements that an ended run lacks. A diverged run needs none."""
    missing = [name for name in run.measurements if not run.directory.measurement(name).exists()]
    try:
        return missing if missing and read_json(run.directory.summary).get("status") == "done" else []
    except RunError:
        return missing


def is_done(run: SweepRun) -> bool:
    """Return whether a run has ended and is measured."""
    return run.directory.summary.exists() and not missing_measurements(run)


def runs_by_status(runs: Sequence[SweepRun], queued: Container[str] = ()) -> dict[str, list[SweepRun]]:
    """Return {"done", "to measure", "failed", "queued", "unfinished", "new": runs}.

    queued: the names of the runs in a cluster's queue.
    """
    kinds = ("done", "to measure", "failed", "queued", "unfinished", "new")
    found: dict[str, list[SweepRun]] = {kind: [] for kind in kinds}
    folders = {run.directory.path.parent for run in runs}
    entries = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in folders}
    logs = {folder: set(os.listdir(folder / "logs")) if (folder / "logs").is_dir() else set() for folder in folders}
    for run in runs:
        folder, name = run.directory.path.parent, run.directory.path.name
        has_ended = name in entries[folder] and run.directory.summary.exists()
        if failure_path(run).name in logs[folder]:
            kind = "failed"
        elif has_ended and not missing_measurements(run):
            kind = "done"
        elif name in queued:
            kind = "queued"
        elif has_ended:
            kind = "to measure"
        else:
            kind = "unfinished" if name in entries[folder] else "new"
        found[kind].append(run)
    return found


def estimate_cost(runs: Sequence[SweepRun], done: Sequence[SweepRun]) -> tuple[float, float, float] | None:
    """Estimate (seconds of training, seconds of measuring, bytes) of `runs`; None if a network has no run in `done`.

    Estimates are medians over finished runs of the same network: training seconds per image and epoch, the seconds in
    the measurements' files, and the size of all files. Runs without measurements count only for training.
    """
    training, measuring, sizes = (collections.defaultdict[str, list[float]](list) for _ in range(3))
    for run in done[:: max(1, len(done) // 200)]:
        with contextlib.suppress(RunError, KeyError):  # damaged files are reported by the code that needs them
            arch, summary = run.config.arch, read_json(run.directory.summary)
            images = read_json(run.directory.config)["data"]["train_samples"]
            found = [run.directory.measurement(name) for name in run.measurements]
            seconds = sum(read_json(path)["seconds"] for path in found if path.exists())
            if summary["status"] == "done":
                training[arch].append(summary["seconds"] / images / run.config.epochs)
                if run.measurements:
                    measuring[arch].append(seconds)
                paths = [path for path in run.directory.path.rglob("*") if path.is_file()]
                sizes[arch].append(sum(path.stat().st_size for path in paths))
    if not all(run.config.arch in (measuring if run.measurements else training) for run in runs):
        return None
    rates, rest, size = (
        {arch: statistics.median(each) for arch, each in by.items()} for by in (training, measuring, sizes)
    )
    archs = [run.config.arch for run in runs]
    measured = [run.config.arch for run in runs if run.measurements]
    seconds = sum(rates[run.config.arch] * (run.config.train_samples or 50_000) * run.config.epochs for run in runs)
    return seconds, sum(rest[arch] for arch in measured), sum(size[arch] for arch in archs)

"""Which runs of a sweep are done, and how long the others will take."""

import collections
import contextlib
import os
import statistics
from collections.abc import Container, Iterable, Sequence
from pathlib import Path

from normstudy.cli import RunError
from normstudy.storage import MEASUREMENTS, read_json
from normstudy.sweeps.grid import SweepRun


def log_path(run: SweepRun) -> Path:
    """The file that takes the output of everything that works off the run."""
    return run.directory.path.parent / "logs" / f"{run.directory.path.name}.log"


def failure_path(run: SweepRun) -> Path:
    """The file that says why a run failed, if it did."""
    return log_path(run).with_suffix(".failed")


def missing_measurements(run: SweepRun, measurements: Iterable[str]) -> list[str]:
    """The measurements that a run that has ended lacks; one that diverged needs none."""
    missing = [name for name in measurements if not run.directory.measurement(name).exists()]
    try:
        return missing if missing and read_json(run.directory.summary).get("status") == "done" else []
    except RunError:
        return missing


def is_done(run: SweepRun, measurements: Iterable[str]) -> bool:
    """Whether a run has ended and is measured."""
    return run.directory.summary.exists() and not missing_measurements(run, measurements)


def runs_by_standing(
    runs: Sequence[SweepRun], measurements: Sequence[str], queued: Container[str] = ()
) -> dict[str, list[SweepRun]]:
    """{"done", "to measure", "failed", "queued", "begun", "new": runs}; `queued`: names of runs that a cluster has."""
    found: dict[str, list[SweepRun]] = {name: [] for name in ("done", "to measure", "failed", "queued", "begun", "new")}
    folders = {run.directory.path.parent for run in runs}
    entries = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in folders}
    logs = {folder: set(os.listdir(folder / "logs")) if (folder / "logs").is_dir() else set() for folder in folders}
    for run in runs:
        folder, name = run.directory.path.parent, run.directory.path.name
        has_ended = name in entries[folder] and run.directory.summary.exists()
        if failure_path(run).name in logs[folder]:
            kind = "failed"
        elif has_ended and not missing_measurements(run, measurements):
            kind = "done"
        elif name in queued:
            kind = "queued"
        elif has_ended:
            kind = "to measure"
        else:
            kind = "begun" if name in entries[folder] else "new"
        found[kind].append(run)
    return found


def estimate_cost(
    runs: Sequence[SweepRun], done: Sequence[SweepRun], measurements: Sequence[str] = MEASUREMENTS
) -> tuple[float, float, float] | None:
    """(seconds of training, seconds of measuring, bytes) that `runs` take; None if a network has no run in `done`.

    Each is judged by the finished runs of its network: training by images and epochs, the rest by their files.
    """
    training, measuring, sizes = (collections.defaultdict[str, list[float]](list) for _ in range(3))
    for run in done[:: max(1, len(done) // 200)]:
        with contextlib.suppress(RunError, KeyError):  # what is damaged is said by what needs it
            arch, summary = run.config.arch, read_json(run.directory.summary)
            images = read_json(run.directory.config)["data"]["train_samples"]
            found = [run.directory.measurement(name) for name in measurements]
            seconds = sum(read_json(path)["seconds"] for path in found if path.exists())
            if summary["status"] == "done":
                training[arch].append(summary["seconds"] / images / run.config.epochs)
                measuring[arch].append(seconds)
                paths = [path for path in run.directory.path.rglob("*") if path.is_file()]
                sizes[arch].append(sum(path.stat().st_size for path in paths))
    if not all(run.config.arch in training for run in runs):
        return None
    rates, rest, size = (
        {arch: statistics.median(each) for arch, each in by.items()} for by in (training, measuring, sizes)
    )
    archs = [run.config.arch for run in runs]
    seconds = sum(rates[run.config.arch] * (run.config.train_samples or 50_000) * run.config.epochs for run in runs)
    return seconds, sum(rest[arch] for arch in archs), sum(size[arch] for arch in archs)

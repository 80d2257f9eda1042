"""The status of a sweep's runs, from their files: what is done, what is ahead, and what has failed."""

import os
from collections.abc import Container, Sequence

from normstudy.sweeps.failures import read_failures
from normstudy.sweeps.grid import SweepRun
from normstudy.sweeps.run_parts import TRAINING, failure_path, is_trained, missing_parts

Statuses = dict[str, list[SweepRun]]  # {"done", "to measure", "failed", "queued", "unfinished", "new": runs}
REMAINING = ("to measure", "unfinished", "new")  # statuses of runs that the sweep starts


def parts_ahead(run: SweepRun, retries: int) -> list[str]:
    """Return the parts of a run that are to be executed: the missing ones, without those that failed finally.

    retries: how often a failed part is tried again. After a final failure of the training, no part is ahead.
    """
    failures = read_failures(run)
    final = {part for part, failure in failures.items() if failure.is_final(retries)}
    return [] if TRAINING in final else [part for part in missing_parts(run) if part not in final]


def runs_by_status(runs: Sequence[SweepRun], retries: int, queued: Container[str] = ()) -> Statuses:
    """Return {"done", "to measure", "failed", "queued", "unfinished", "new": runs}.

    queued: the names of the runs in a cluster's queue. Nearly all is read from the listings of two folders, because a
    sweep may have many hundred runs.
    """
    found: Statuses = {kind: [] for kind in ("done", "to measure", "failed", "queued", "unfinished", "new")}
    folders = {run.directory.path.parent for run in runs}
    entries = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in folders}
    logs = {folder: set(os.listdir(folder / "logs")) if (folder / "logs").is_dir() else set() for folder in folders}
    for run in runs:
        folder, name = run.directory.path.parent, run.directory.path.name
        has_begun = name in entries[folder]
        has_ended = has_begun and is_trained(run)
        has_failures = failure_path(run).name in logs[folder]
        if has_ended and not missing_parts(run):
            kind = "done"
        elif name in queued:
            kind = "queued"
        elif has_failures and not parts_ahead(run, retries):
            kind = "failed"
        elif has_ended:
            kind = "to measure"
        else:
            kind = "unfinished" if has_begun else "new"
        found[kind].append(run)
    return found


def remaining(by_status: Statuses) -> list[SweepRun]:
    """Return the runs that are still to be trained or measured."""
    return [run for kind in REMAINING for run in by_status[kind]]


def with_failed_runs(by_status: Statuses) -> Statuses:
    """Return the statuses with failed runs counted as unfinished, for --retry_failed."""
    return by_status | {"unfinished": by_status["unfinished"] + by_status["failed"], "failed": []}


def counts(by_status: Statuses) -> str:
    """Return the number of runs of each status as text: 2 done, 3 new."""
    return ", ".join(f"{len(found)} {name}" for name, found in by_status.items() if found)

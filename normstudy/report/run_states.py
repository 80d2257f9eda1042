"""The state of every run of a folder: ended, in training, stopped, or failed and why, from its files alone."""

import csv
import functools
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from normstudy.cli import RunError
from normstudy.storage import Owner, RunDirectory, is_alive, read_csv, read_json, read_owner

T = TypeVar("T")
Signature = tuple[int, int, int]  # inode, time and size of a file
Epoch = dict[str, float]  # a row of metrics.csv; missing values are NaN

SHOWN = ("epoch", "train_loss", "validation_accuracy", "test_accuracy", "seconds")
LAST_EPOCHS = 5  # number of epochs whose mean duration predicts the remaining time
SILENT_SAVES = 3  # number of due saves of the state after which a process on another machine counts as silent
SILENT_SECONDS = 3600.0  # … but not before this time


def signature(path: Path) -> Signature | None:
    """Return a value that changes when the file changes, or None if there is no such file."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


class FileCache:
    """The content of small files. A file is read again only if it has changed."""

    def __init__(self) -> None:
        self.known: dict[Path, tuple[Signature, Any]] = {}
        self.run = functools.cache(RunDirectory)  # its many paths take longer than a look at its files

    def read(self, path: Path, read: Callable[[Path], T], otherwise: T) -> T:
        """Return read(path), or `otherwise` if the file is missing or damaged."""
        now = signature(path)
        if now is None:
            self.known.pop(path, None)
            return otherwise
        if path not in self.known or self.known[path][0] != now:
            try:
                content = read(path)
            except (RunError, OSError, ValueError, csv.Error):
                content = otherwise
            self.known[path] = now, content
        found: T = self.known[path][1]
        return found

    def json(self, path: Path) -> dict[str, Any]:
        """Return the content of a JSON file; empty if it is missing or damaged."""
        return self.read(path, read_json, dict[str, Any]())

    def epochs(self, run: RunDirectory) -> list[Epoch]:
        """Return the rows of a run's metrics.csv; none if it is missing or damaged."""
        return self.read(run.metrics, read_epochs, list[Epoch]())


class TrainingRun(NamedTuple):
    """A run that a process is training. settings: of config.json, or empty before it exists.

    since: the time at which the process began. heard: the time at which the last epoch ended, or `since`.
    """

    directory: RunDirectory
    settings: Mapping[str, Any]
    epochs: list[Epoch]
    since: float
    heard: float

    @property
    def last_epoch(self) -> int:
        """The number of complete epochs."""
        return int(self.epochs[-1]["epoch"]) if self.epochs else 0

    @property
    def total_epochs(self) -> int | None:
        """The number of epochs that the run is to have, or None if it is unknown."""
        total = self.settings.get("epochs")
        return total if isinstance(total, int) else None

    @property
    def may_stop_early(self) -> bool:
        """Whether the run stops when it reaches a training loss, so that the remaining time is at most the estimate."""
        return self.settings.get("stop_at_loss") is not None

    @property
    def epochs_of_total(self) -> str:
        """How far the run is, as text: 3 of 60."""
        return f"{self.last_epoch} of {'?' if self.total_epochs is None else self.total_epochs}"

    def latest(self, name: str) -> float:
        """Return the newest value of a column of metrics.csv, or NaN."""
        return next((row[name] for row in reversed(self.epochs) if row[name] == row[name]), float("nan"))

    def seconds_left(self, now: float) -> float | None:
        """Estimate the remaining seconds of training, with epochs as long as the last ones; None if that is unknown."""
        durations = [row["seconds"] for row in self.epochs[-LAST_EPOCHS:]]
        if not durations or self.total_epochs is None:
            return None
        each = sum(durations) / len(durations)
        return max(0.0, each - (now - self.heard)) + each * (self.total_epochs - self.last_epoch - 1)


class Failure(NamedTuple):
    """A run that failed or stopped without an ending: the kind, the reason, and for a diverged run its epoch."""

    run: RunDirectory
    kind: str
    reason: str
    epoch: int | None = None


@dataclass(frozen=True)
class RunStates:
    """The runs of a folder at one time. Diverged runs are both in `ended` and in `failures`.

    ended: {run name: signature of its summary.json}. measured: ended runs that a process is measuring. unfinished:
    runs that no process works on, and that did not fail.
    """

    time: float
    ended: dict[str, Signature] = field(default_factory=dict)
    training: list[TrainingRun] = field(default_factory=list)
    measured: list[RunDirectory] = field(default_factory=list)
    unfinished: list[RunDirectory] = field(default_factory=list)
    failures: list[Failure] = field(default_factory=list)

    @property
    def has_unended(self) -> bool:
        """Whether anything may still change: a run is in training, measured or unfinished, or failed before its end."""
        has_failed_before = any(failure.run.path.name not in self.ended for failure in self.failures)
        return bool(self.training or self.measured or self.unfinished or has_failed_before)

    def progress(self) -> tuple[object, ...]:
        """Return a value that changes whenever a run advances or its state changes."""
        training = [(run.directory.path.name, run.last_epoch) for run in self.training]
        others = [[run.path.name for run in runs] for runs in (self.measured, self.unfinished)]
        return training, others, [(failure.run.path.name, failure.reason) for failure in self.failures]


DIVERGED, FAILED, KILLED, SILENT = "diverged", "failed", "stopped without an ending", "gave no sign of life"
DIVERGED_REASON = "the training loss or a gradient was not finite"
KILLED_REASON = "the process is gone and left no reason, as after a kill or a power cut; the same command continues it"


def read_states(folder: Path, files: FileCache) -> RunStates:
    """Return the state of every run in a folder. Only files that changed since the last call are read."""
    states = RunStates(time.time())
    failed = _names(folder / "logs", ".failed")
    for name in sorted({*_subfolders(folder), *failed}):
        run = files.run(folder / name)
        summary = signature(run.summary)
        if summary is not None:
            states.ended[name] = summary
            _add_ended(states, run, files, name in failed)
        else:
            _add_unended(states, run, files, name in failed)
    states.training.sort(key=lambda run: (-run.since, run.directory.path.name))
    return states


def _subfolders(folder: Path) -> list[str]:
    """Return the names of the folders in a folder."""
    try:
        with os.scandir(folder) as entries:
            return [entry.name for entry in entries if entry.is_dir()]
    except OSError:
        return []


def _names(folder: Path, suffix: str) -> set[str]:
    """Return the names of the files in a folder that end with the suffix, without it."""
    try:
        return {name.removesuffix(suffix) for name in os.listdir(folder) if name.endswith(suffix)}
    except OSError:
        return set()


def _add_ended(states: RunStates, run: RunDirectory, files: FileCache, has_failed: bool) -> None:
    """Add an ended run to the measured runs and to the failures, if it is one of them."""
    owner = read_owner(run.owner)
    if owner is not None and is_alive(owner) is not False:
        states.measured.append(run)
    elif has_failed and _modified(run.failure) >= _modified(run.summary):  # a measurement failed, not an earlier try
        states.failures.append(Failure(run, FAILED, _reason(run, files)))
    summary = files.json(run.summary)
    if summary.get("status") == "diverged":
        states.failures.append(Failure(run, DIVERGED, DIVERGED_REASON, int(summary.get("epochs_done") or 0) + 1))


def _add_unended(states: RunStates, run: RunDirectory, files: FileCache, has_failed: bool) -> None:
    """Add a run without summary.json to the list for its state; a folder that is not of a run is left out."""
    owner = read_owner(run.owner)
    alive = None if owner is None else is_alive(owner)
    is_older = owner is not None and has_failed and owner.since <= _modified(run.failure)
    if has_failed and (owner is None or (alive is False and is_older)):
        states.failures.append(Failure(run, FAILED, _reason(run, files)))
    elif owner is None:
        if run.config.exists():
            states.unfinished.append(run)
    elif alive is False:
        states.failures.append(Failure(run, KILLED, KILLED_REASON))
    else:
        settings = files.json(run.config)
        if alive is None and _is_silent(run, owner, settings, states.time):
            reason = f"nothing has been written for a long time by the process on {owner.machine}"
            states.failures.append(Failure(run, SILENT, reason))
        else:
            epochs = files.epochs(run)
            heard = max(owner.since, _modified(run.metrics) if epochs else 0.0)
            states.training.append(TrainingRun(run, settings, epochs, owner.since, heard))


def _is_silent(run: RunDirectory, owner: Owner, settings: Mapping[str, Any], now: float) -> bool:
    """Return whether a process on another machine has missed several saves of its state."""
    heard = max(owner.since, *(_modified(path) for path in (run.metrics, run.last)))
    minutes = settings.get("checkpoint_minutes")
    limit = SILENT_SAVES * 60 * minutes if isinstance(minutes, int | float) else 0.0
    return now - heard > max(limit, SILENT_SECONDS)


def read_epochs(path: Path) -> list[Epoch]:
    """Return the rows of a metrics.csv. Raises OSError, or ValueError or csv.Error for a damaged file."""
    epochs = [{name: float(row.get(name) or "nan") for name in SHOWN} for row in read_csv(path)]
    if any(not row["epoch"].is_integer() for row in epochs):
        raise ValueError(f"{path} has a row without an epoch")
    return epochs


def _reason(run: RunDirectory, files: FileCache) -> str:
    """Return the reason in a run's .failed file, in which the run's own name is shortened so that reasons are equal."""
    text = files.read(run.failure, lambda path: path.read_text(encoding="utf-8", errors="replace"), "")
    return " ".join(text.replace(run.path.name, "…").split()) or "no reason was noted"


def _modified(path: Path) -> float:
    """Return when a file was last written, in seconds since 1970; 0 if it does not exist."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0

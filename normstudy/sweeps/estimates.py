"""Estimates of the time and the disk space that runs take, from the finished runs of a sweep."""

import collections
import contextlib
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from normstudy.cli import RunError
from normstudy.storage import read_csv, read_json
from normstudy.sweeps.grid import SweepRun

MOST_READ = 200  # maximum number of finished runs whose files are read
LAST_EPOCHS = 5  # number of epochs whose mean duration is that of the next ones
USUAL_IMAGES = 50_000  # training images of CIFAR


@dataclass(frozen=True)
class Estimates:
    """Medians over finished runs by network: seconds per training image and epoch, seconds of measuring, and bytes.

    images: {(data set, --train_samples): the number of training images}. num_runs: the number of runs behind them.
    """

    training: Mapping[str, float]
    measuring: Mapping[str, float]
    size: Mapping[str, float]
    images: Mapping[tuple[str, int | None], int]
    num_runs: int

    def epoch_seconds(self, run: SweepRun) -> float | None:
        """Return the seconds of one epoch of a run, or None if they are unknown."""
        config = run.config
        images = self.images.get((config.dataset, config.train_samples), config.train_samples or USUAL_IMAGES)
        return images * self.training[config.arch] if config.arch in self.training else None

    def training_seconds(self, run: SweepRun) -> float | None:
        """Return the seconds of training of a run, or None if they are unknown."""
        each = self.epoch_seconds(run)
        return None if each is None else each * run.config.epochs

    def measuring_seconds(self, run: SweepRun) -> float | None:
        """Return the seconds of all measurements of a run, or None if they are unknown."""
        return self.measuring.get(run.config.arch) if run.measurements else 0.0


def estimate(done: Sequence[SweepRun], running: Sequence[SweepRun] = ()) -> Estimates:
    """Read what finished runs took, and the epochs of running ones. Runs without measurements tell only of training."""
    training, measuring, sizes = (collections.defaultdict[str, list[float]](list) for _ in range(3))
    images: dict[tuple[str, int | None], int] = {}
    num_runs = 0
    for run in (*done[:: max(1, len(done) // MOST_READ)], *running):
        arch, is_done = run.config.arch, run.directory.summary.exists()
        with contextlib.suppress(RunError, KeyError):  # damaged files are reported by the code that needs them
            num_images = read_json(run.directory.config)["data"]["train_samples"]
            images[run.config.dataset, run.config.train_samples] = num_images
            if not is_done:
                seconds = epoch_durations(run)[-LAST_EPOCHS:]
                if seconds:
                    training[arch].append(statistics.mean(seconds) / num_images)
                continue
            summary = read_json(run.directory.summary)
            found = [run.directory.measurement(name) for name in run.measurements]
            seconds_of_measurements = sum(read_json(path)["seconds"] for path in found if path.exists())
            if summary["status"] == "done":
                num_runs += 1
                training[arch].append(summary["seconds"] / num_images / run.config.epochs)
                if run.measurements and all(path.exists() for path in found):
                    measuring[arch].append(seconds_of_measurements)
                paths = [path for path in run.directory.path.rglob("*") if path.is_file()]
                sizes[arch].append(sum(path.stat().st_size for path in paths))
    rates, rest, size = (
        {arch: statistics.median(each) for arch, each in by.items()} for by in (training, measuring, sizes)
    )
    return Estimates(rates, rest, size, images, num_runs)


def epoch_durations(run: SweepRun) -> list[float]:
    """Return the seconds of each epoch in a run's metrics.csv; none if the file is missing or damaged."""
    with contextlib.suppress(RunError, OSError, KeyError, ValueError):
        return [float(row["seconds"]) for row in read_csv(run.directory.metrics)]
    return []


def estimate_cost(runs: Sequence[SweepRun], done: Sequence[SweepRun]) -> tuple[float, float, float] | None:
    """Estimate (seconds of training, seconds of measuring, bytes) of `runs`; None if a network has no run in `done`."""
    estimates = estimate(done)
    training = [estimates.training_seconds(run) for run in runs]
    measuring = [estimates.measuring_seconds(run) for run in runs]
    sizes = [estimates.size.get(run.config.arch) for run in runs]
    known = [[value for value in values if value is not None] for values in (training, measuring, sizes)]
    if any(len(values) < len(runs) for values in known):
        return None
    seconds, seconds_of_measurements, size = map(sum, known)
    return seconds, seconds_of_measurements, size

"""The parts of a run that a sweep executes, its training and its measurements, and the files about them in logs/."""

from pathlib import Path

from normstudy.cli import RunError
from normstudy.storage import read_json
from normstudy.sweeps.grid import SweepRun

TRAINING = "training"  # the part that main.py does; the other parts have the names of their measurements


def log_path(run: SweepRun) -> Path:
    """Return the path of the log of a run, which receives the output of all its commands."""
    return run.directory.log


def failure_path(run: SweepRun) -> Path:
    """Return the path of the file that says which parts of a run failed, and why; see failures.py."""
    return run.directory.failure


def worker_path(run: SweepRun) -> Path:
    """Return the path of the note about the sweep that executes a run, which exists as long as it does."""
    return log_path(run).with_suffix(".worker")


def is_trained(run: SweepRun) -> bool:
    """Return whether a run has ended, done or diverged."""
    return run.directory.summary.exists()


def missing_measurements(run: SweepRun) -> list[str]:
    """Return the names of the measurements that an ended run lacks. A diverged run needs none."""
    missing = [name for name in run.measurements if not run.directory.measurement(name).exists()]
    try:
        return missing if missing and read_json(run.directory.summary).get("status") == "done" else []
    except RunError:
        return missing


def missing_parts(run: SweepRun) -> list[str]:
    """Return the names of the parts that are still to be done, in their order; all, if the run is not trained."""
    return missing_measurements(run) if is_trained(run) else [TRAINING, *run.measurements]

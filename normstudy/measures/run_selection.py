"""The choice of runs and checkpoints that a measuring command measures."""

import argparse
import sys
from pathlib import Path
from typing import Any

from config import Config
from normstudy.cli import RunError, UsageError
from normstudy.storage import RunDirectory, read_json, read_summary, stored_config

FROM_ELSEWHERE = (
    "for a network that another program trained, use normstudy.curvature.hessian_matvec in Python (docs/python.md)"
)


def find_runs(args: argparse.Namespace, measurement: str) -> list[RunDirectory]:
    """Return the runs to measure: those named, or every run in --results_dir that lacks this measurement.

    With --overwrite or a --checkpoint other than the last, every run in --results_dir is returned.
    Raises UsageError if --results_dir is not a folder or has no runs.
    """
    if args.runs:
        return [RunDirectory(path) for path in args.runs]
    results_dir = Path(args.results_dir)
    if not results_dir.is_dir():
        raise UsageError(f"--results_dir={results_dir} is not a folder")
    folders = sorted({path.parent for name in ("config.json", "checkpoints") for path in results_dir.glob(f"*/{name}")})
    found = [RunDirectory(folder) for folder in folders]
    if not found:
        raise UsageError(f"there are no runs in {results_dir}; train one with main.py, or set --results_dir")
    if args.overwrite or args.checkpoint != "last":
        return found
    lacking = [run for run in found if read_measurement(run.measurement(measurement)) is None]
    if len(lacking) < len(found):
        print(
            f"{len(found) - len(lacking)} of {len(found)} runs already have {measurement}.json, with these or other "
            "settings; --overwrite=True measures them again"
        )
    return lacking


def finished_config(run: RunDirectory) -> Config:
    """Return the Config of a finished run. Raises RunError if the run is missing, unfinished or diverged."""
    if not run.path.exists():
        raise RunError(f"{run.path} does not exist; give the folder of a run")
    if not run.path.is_dir():
        owner = run.path.resolve().parent.parent
        if (owner / "config.json").exists():
            raise RunError(
                f"{run.path} belongs to the run {owner}: give this folder, and --checkpoint for one checkpoint"
            )
        raise RunError(f"{run.path} is a file and not the folder of a run; {FROM_ELSEWHERE}")
    if not run.config.exists() and next(run.path.glob("*/config.json"), None) is not None:
        raise RunError(
            f"{run.path} contains runs and is not one itself; use --results_dir={run.path} to measure all of them"
        )
    if not run.config.exists() and not run.summary.exists():
        raise RunError(f"{run.path} is not the folder of a run: it has no config.json; {FROM_ELSEWHERE}")
    config = stored_config(run)
    if not run.summary.exists():
        raise RunError(f"{run.path} is unfinished; continue it with python main.py --c_dir={run.path}")
    if read_summary(run)["status"] == "diverged":
        raise RunError(f"{run.path} diverged, so it has no network to measure")
    return config


def find_checkpoints(run: RunDirectory, name: str) -> list[Path]:
    """Return the paths of the checkpoints that --checkpoint selects, by epoch. Raises RunError if there are none."""
    paths = run.checkpoints()
    if not paths:
        raise RunError(
            f"{run.path} has no checkpoints/epoch_….pt; get them from whoever trained the run, or train it again "
            "(its settings are in config.json)"
        )
    if name == "last":
        return paths[-1:]
    if name == "all":
        return paths
    chosen = [path for path in paths if path.stem == name]
    if not chosen:
        raise RunError(f"{run.path} has no checkpoint {name}; it has {', '.join(path.stem for path in paths)}")
    return chosen


def read_measurement(target: Path) -> dict[str, Any] | None:
    """Return the content of a measurement, or None if it is missing or damaged. Damage is reported on stderr."""
    try:
        return read_json(target)
    except RunError as error:
        if target.exists():
            print(f"{error}; the checkpoint is measured again", file=sys.stderr)
        return None

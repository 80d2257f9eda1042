"""Which runs and checkpoints a measuring command takes."""

import argparse
import sys
from pathlib import Path
from typing import Any

from config import Config
from normstudy.cli import RunError, UsageError
from normstudy.storage import RunDirectory, read_json, read_summary, stored_config


def find_runs(args: argparse.Namespace, measurement: str) -> list[RunDirectory]:
    """The runs to measure: those named, or every one in results_dir that lacks this measurement."""
    if args.runs:
        return [RunDirectory(path) for path in args.runs]
    results_dir = Path(args.results_dir)
    if not results_dir.is_dir():
        raise UsageError(f"--results_dir={results_dir} is not a folder")
    folders = sorted({path.parent for name in ("config.json", "checkpoints") for path in results_dir.glob(f"*/{name}")})
    found = [RunDirectory(folder) for folder in folders]
    if not found:
        raise UsageError(f"there are no runs in {results_dir}: main.py makes them, --results_dir says where they lie")
    if args.overwrite or args.checkpoint != "last":
        return found
    lacking = [run for run in found if read_measurement(run.measurement(measurement)) is None]
    if len(lacking) < len(found):
        print(
            f"{len(found) - len(lacking)} of {len(found)} runs have their {measurement}.json (--overwrite=True redoes)"
        )
    return lacking


def finished_config(run: RunDirectory) -> Config:
    """The Config of a run that is done. Raises RunError for any other."""
    if not run.path.is_dir():
        hint = ""
        if run.path.suffix == ".pt":
            hint = (
                ": give the run's folder, and --checkpoint for another than the last; a network that is not of this "
                "program is measured from Python (docs/python.md)"
            )
        raise RunError(f"{run.path} is not a folder{hint}")
    if not run.config.exists() and next(run.path.glob("*/config.json"), None) is not None:
        raise RunError(f"{run.path} is a folder of runs: --results_dir={run.path} measures all of them")
    if not run.config.exists() and not run.summary.exists():
        raise RunError(f"{run.path} is not the folder of a run: it has no config.json")
    config = stored_config(run)
    if not run.summary.exists():
        raise RunError(f"{run.path} is unfinished: python main.py --c_dir={run.path} continues it")
    if read_summary(run)["status"] == "diverged":
        raise RunError(f"{run.path} diverged, so it has no network to measure")
    return config


def find_checkpoints(run: RunDirectory, name: str) -> list[Path]:
    """The paths of the checkpoints that --checkpoint names, by epoch. Raises RunError if there are none."""
    paths = run.checkpoints()
    if not paths:
        raise RunError(
            f"{run.path} has no checkpoints/epoch_….pt: it was handed on without them, so ask for them, or train it "
            "again (its settings stand in config.json)"
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
    """The content of a measurement, or None if it is missing or damaged; damage is reported on stderr."""
    try:
        return read_json(target)
    except RunError as error:
        if target.exists():
            print(f"{error}: to be measured again", file=sys.stderr)
        return None

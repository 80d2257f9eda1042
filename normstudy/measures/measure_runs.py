"""The loop of a measuring command: measure the checkpoints of each run, or print why a run is left out."""

import argparse
import errno
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from normstudy.cli import RunError, UsageError, describe_os_error, report_outcome, stops_at_safe_points
from normstudy.kernels import as_current, is_out_of_memory, own_settings, pick_device
from normstudy.measures.checkpoints import Checkpoint, epoch_of
from normstudy.measures.run_images import RunImages
from normstudy.measures.run_selection import find_checkpoints, find_runs, finished_config, read_measurement
from normstudy.plots import is_whole_picture, try_to_draw
from normstudy.storage import (
    RunDirectory,
    git_commit,
    measurement_name,
    package_versions,
    recorded_digest,
    update_table,
    write_json,
)

NOT_SETTINGS = ("runs", "results_dir", "data_dir", "cache_dir", "device", "overwrite", "checkpoint", "tag", "to")
EARLIER = {  # values that settings had before their flags existed
    "balance": "equal",
    "scale": "none",
    "image_blocks": 1,
    "eigenvectors": 0,
    "save_eigenvectors": False,
    "layer_eigenvalues": False,
}


@dataclass(frozen=True)
class Measurement:
    """One kind of measurement.

    `name` is its kind, with which the names of its files begin. measure(checkpoint, args) returns the content of the
    JSON file. draw(json_path) and draw_over_training(run, name) draw the pictures from the JSON files only.
    """

    name: str
    measure: Callable[[Checkpoint, argparse.Namespace], dict[str, Any]]
    draw: Callable[[Path], object]
    draw_over_training: Callable[[RunDirectory, str], object] | None = None


def settings_of(args: argparse.Namespace) -> dict[str, Any]:
    """Return the flags of a measurement that its file records, because they change or name it."""
    return {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}


@own_settings()
def measure_runs(args: argparse.Namespace, measurement: Measurement) -> int:
    """Measure the runs that the parsed flags select. Return the exit code: 1 if a run was left out, else 0."""
    device = pick_device(args.device)
    with as_current(device):
        return _measure_all(args, measurement, device)


def _measure_all(args: argparse.Namespace, measurement: Measurement, device: torch.device) -> int:
    images = RunImages(args.data_dir, args.cache_dir, device)
    runs = find_runs(args, measurement_name(measurement.name, vars(args)))
    done, left_out = 0, 0
    measured: list[RunDirectory] = []
    try:
        for run in runs:
            try:
                with stops_at_safe_points() as points:
                    for _ in _measure_run(run, args, measurement, images, points.check):
                        done += 1
                measured.append(run)
            except (RunError, UsageError, ArithmeticError, OSError, MemoryError, RuntimeError) as error:
                reason = _why_left_out(run, error, device)
                if reason is None:
                    raise
                left_out += 1
                line = f"left out: {reason}"
                print(line, file=sys.stderr, flush=True)
                report_outcome(error.kind if isinstance(error, RunError | UsageError) else RunError.kind, line)
    except KeyboardInterrupt as stop:
        raise type(stop)(f"checkpoints measured: {done}; run the same command again to measure the rest") from None
    finally:
        try:
            update_table(measured)
        except OSError as error:
            print(f"the measurements could not be added to results.csv: {describe_os_error(error)}", file=sys.stderr)
    print(f"checkpoints measured: {done}" + (f", runs left out: {left_out}" if left_out else ""))
    return 1 if left_out else 0


def _why_left_out(run: RunDirectory, error: Exception, device: torch.device) -> str | None:
    """Return why a run cannot be measured, or None for an error that no user can cause."""
    if isinstance(error, RunError | UsageError):
        return str(error)
    if isinstance(error, ArithmeticError):
        return f"{run.path}: {error}"
    if isinstance(error, OSError):
        hint = ""
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            hint = "; results are written to the run's folder, so copy it to a place where you have write permission"
        return f"{run.path}: {describe_os_error(error)}{hint}"
    if is_out_of_memory(error):
        return f"{run.path}: {device} has too little memory; lower --batch_size or --samples"
    return None


def _measure_run(
    run: RunDirectory,
    args: argparse.Namespace,
    measurement: Measurement,
    images: RunImages,
    pause: Callable[[], object],
) -> Iterator[None]:
    """Measure the checkpoints of one run, and yield after each. Raises RunError if the run cannot be measured."""
    config = finished_config(run)
    settings = settings_of(args)
    last = run.checkpoints()[-1:]
    name = measurement_name(measurement.name, vars(args))
    with run.lock():
        for path in find_checkpoints(run, args.checkpoint):
            target = run.measurement(name, None if [path] == last else epoch_of(path))
            sha256 = recorded_digest(run, path)
            if args.overwrite or not _is_measured(target, settings, sha256):
                dataset, dtype = images.load_for(run, config), getattr(torch, args.dtype)
                checkpoint = Checkpoint(run, config, path, sha256, dataset, dtype, images.device, pause, target)
                provenance = {
                    "run": run.path.name,
                    "epoch": checkpoint.epoch,
                    "checkpoint_sha256": sha256,
                    "settings": settings,
                    "device": str(images.device),
                    "versions": package_versions(),
                    "git_commit": git_commit(),
                }
                write_json(target, measurement.measure(checkpoint, args) | provenance)
                picture = target.with_suffix(".png")
                try_to_draw(partial(measurement.draw, target), picture)
                print(f"wrote {target}{f' and {picture.name}' * is_whole_picture(picture)}", flush=True)
                yield
            elif not is_whole_picture(target.with_suffix(".png")):
                try_to_draw(partial(measurement.draw, target), target.with_suffix(".png"))
        draw_over_training = measurement.draw_over_training
        if draw_over_training and args.checkpoint == "all" and len(run.measurements(name)) > 1:
            try_to_draw(partial(draw_over_training, run, name), run.path / f"{name}_over_training.png")


def _is_measured(target: Path, settings: Mapping[str, object], sha256: str | None) -> bool:
    """Return whether a measurement with these settings exists.

    Raises RunError if it has other settings, or if its checkpoint does not have this SHA-256.
    """
    content = read_measurement(target)
    if content is None:
        return False
    if None not in (sha256, content.get("checkpoint_sha256")) and content["checkpoint_sha256"] != sha256:
        raise RunError(f"{target} belongs to another checkpoint; --overwrite=True replaces it")
    stored = content.get("settings")
    if not isinstance(stored, dict):
        raise RunError(f"{target} is damaged; --overwrite=True replaces it")
    has_own_batches = settings.get("bn_mode") == "train" and settings.get("image_blocks", 1) == 1
    harmless = {"basis_device"} if has_own_batches else {"basis_device", "batch_size"}
    stored = EARLIER | stored
    different = [
        f"{name}={stored.get(name)}, here {settings[name]}"
        for name in sorted(settings.keys() - harmless)
        if stored.get(name) != settings[name]
    ]
    if different:
        raise RunError(
            f"{target} has other settings ({'; '.join(different)}); --overwrite=True replaces it; to keep both, add "
            "--tag=NAME"
        )
    print(f"{target} already exists")
    return True

"""What the measuring commands share: which runs and checkpoints, their network and images, and one line for each
run that is left out."""

import errno
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch

from normstudy.cli import RunError, UsageError, describe_os_error, stops_at_safe_points
from normstudy.kernels import is_out_of_memory, keep_freed_memory, pick_device
from normstudy.measures.checkpoints import Checkpoint, epoch_of
from normstudy.measures.run_images import RunImages
from normstudy.measures.run_selection import find_checkpoints, find_runs, finished_config, read_measurement
from normstudy.plots import is_whole_picture
from normstudy.storage import git_commit, read_summary, update_table, versions, write_json

NOT_SETTINGS = ("runs", "results_dir", "data_dir", "device", "overwrite", "checkpoint")


@dataclass(frozen=True)
class Measurement:
    """One kind of measurement: the name of its files; measure(checkpoint, args), which gives the content of the JSON
    file; draw(json_path) and draw_over_training(run), which draw its pictures from the files alone."""

    name: str
    measure: Callable
    draw: Callable
    draw_over_training: Callable


def measure_runs(args, measurement):
    """Measures what the parsed flags name, and returns the exit code: 1 where something was left out, else 0."""
    keep_freed_memory()
    device = pick_device(args.device)
    datasets = RunImages(args.data_dir, device)
    found = find_runs(args, measurement.name)
    done, left_out, measured = 0, 0, []
    try:
        for run in found:
            try:
                with stops_at_safe_points() as points:
                    for _ in _measure_run(run, args, measurement, datasets, points.check):
                        done += 1
                measured.append(run)
                continue
            except (RunError, UsageError) as error:
                reason = str(error)
            except ArithmeticError as error:
                reason = f"{run.path}: {error}"
            except OSError as error:
                reason = f"{run.path}: {describe_os_error(error)}"
                if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
                    reason += "; what is measured is written into the run's folder, so copy that to where you may write"
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error):
                    raise
                reason = f"{run.path}: {device} has too little memory, lower --batch_size"
            left_out += 1
            print(f"left out: {reason}", file=sys.stderr, flush=True)
    except KeyboardInterrupt as stop:
        raise type(stop)(f"{done} measured; the same command measures the rest") from None
    finally:
        try:
            update_table(measured)
        except OSError as error:
            print(f"results.csv lacks what was measured: {describe_os_error(error)}", file=sys.stderr)
    print(f"{done} measured" + (f", {left_out} left out" if left_out else ""))
    return 1 if left_out else 0


def _measure_run(run, args, measurement, datasets, pause):
    """Measures the checkpoints of one run, and yields after each. Raises RunError where something hinders it."""
    config = finished_config(run)
    settings = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    last = run.checkpoints()[-1:]
    with run.lock():
        for path in find_checkpoints(run, args.checkpoint):
            target = run.measurement(measurement.name, None if [path] == last else epoch_of(path))
            sha256 = read_summary(run).get("files", {}).get(run.name_of(path))
            if args.overwrite or not _is_measured(target, settings, sha256):
                dataset, dtype = datasets.of(run, config), getattr(torch, args.dtype)
                checkpoint = Checkpoint(run, config, path, sha256, dataset, dtype, datasets.device, pause)
                result = measurement.measure(checkpoint, args)
                provenance = {
                    "run": run.path.name,
                    "epoch": checkpoint.epoch,
                    "checkpoint_sha256": sha256,
                    "settings": settings,
                    "device": str(datasets.device),
                    "versions": versions(),
                    "git_commit": git_commit(),
                }
                write_json(target, result | provenance)
                measurement.draw(target)
                print(f"{target} and {target.with_suffix('.png').name} are there", flush=True)
                yield
            elif not is_whole_picture(target.with_suffix(".png")):
                try:
                    measurement.draw(target)
                except (KeyError, TypeError, ValueError, IndexError) as error:
                    raise RunError(f"{target} is damaged ({error!r}): --overwrite=True measures again") from None
        if args.checkpoint == "all" and len(run.measurements(measurement.name)) > 1:
            try:
                measurement.draw_over_training(run)
            except (KeyError, TypeError) as error:
                name = f"{measurement.name}_epoch_….json"
                raise RunError(
                    f"{run.path}: one of {name} is damaged ({error!r}): --overwrite=True remakes it"
                ) from None


def _is_measured(target, settings, sha256):
    """Whether a measurement with these settings is there. Raises RunError for one with other settings, or of another
    checkpoint than that with this SHA-256."""
    content = read_measurement(target)
    if content is None:
        return False
    if None not in (sha256, content.get("checkpoint_sha256")) and content["checkpoint_sha256"] != sha256:
        raise RunError(f"{target} is of another checkpoint: --overwrite=True measures again")
    stored = content.get("settings")
    if not isinstance(stored, dict):
        raise RunError(f"{target} is damaged: --overwrite=True measures again")
    harmless = {"basis_device"} if settings.get("bn_mode") == "train" else {"basis_device", "batch_size"}
    different = [
        f"{name}={stored.get(name)}, here {settings[name]}"
        for name in sorted(settings.keys() - harmless)
        if stored.get(name) != settings[name]
    ]
    if different:
        raise RunError(
            f"{target} was made with {'; '.join(different)}: --overwrite=True measures again in its place (a copy of "
            "the folder keeps both)"
        )
    print(f"{target} is there already")
    return True

"""What the measuring commands share: which runs and checkpoints, their network and images, and one line for each
run that is left out."""

import errno
import hashlib
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import plots
import runs
import table
from data import balanced_subset, evaluation_batches, load
from errors import RunError, UsageError, describe_os_error, stops_at_safe_points
from files import read_json, read_torch, write_json
from hardware import is_out_of_memory, keep_freed_memory, pick_device
from models import build_from_config

NOT_SETTINGS = ("runs", "results_dir", "data_dir", "device", "overwrite", "checkpoint")


class Checkpoint:
    """A finished run's network at one epoch, and the images it was trained and tested on."""

    def __init__(self, run, config, path, sha256, dataset, dtype, device, pause):
        self.run = run
        self.config = config
        self.epoch = epoch_of(path)
        self.dataset = dataset
        self.device = device
        self.pause = pause
        model = _load_model(config, path, sha256, len(dataset.classes)).eval()
        self.model = model.to(device, dtype, memory_format=torch.channels_last)

    def subset(self, split, samples, seed):
        """A class-balanced subset of a Split and the SHA-256 of its indices; all of it where it has no more.

        Raises RunError where the classes cannot give equally many.
        """
        indices = torch.arange(len(split))
        if samples < len(split):
            try:
                indices = balanced_subset(split.labels.cpu(), samples, len(self.dataset.classes), seed)
            except ValueError as error:
                raise RunError(f"--samples={samples} of {len(split)} images: {error}; lower --samples") from None
        chosen = split.take(indices.to(split.labels.device))
        return chosen, hashlib.sha256(indices.numpy().astype("<i8").tobytes()).hexdigest()

    def batches(self, split, batch_size):
        """(images, labels) of a Split in order, prepared as for this network; a signal ends the walk between two."""
        for batch in evaluation_batches(split, self.config.image_size, batch_size):
            self.pause()
            yield batch


def epoch_of(path):
    return int(path.stem.removeprefix("epoch_"))


def _load_model(config, path, sha256, num_classes):
    state = read_torch(path, sha256)
    try:
        model = build_from_config(config, num_classes)
        model.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()[:120]
        raise RunError(f"{path} does not fit the network of {path.parents[1] / 'config.json'} ({reason})") from None
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise RunError(f"{path} holds values in {name} that are not finite")
    return model


def find_runs(args, measurement):
    """The run folders to measure: those named, or every one in results_dir that lacks this measurement."""
    if args.runs:
        return [runs.RunDirectory(path) for path in args.runs]
    results_dir = Path(args.results_dir)
    if not results_dir.is_dir():
        raise UsageError(f"--results_dir={results_dir} is not a folder")
    folders = sorted({path.parent for name in ("config.json", "checkpoints") for path in results_dir.glob(f"*/{name}")})
    found = [runs.RunDirectory(folder) for folder in folders]
    if not found:
        raise UsageError(f"there are no runs in {results_dir}: main.py makes them, --results_dir says where they lie")
    if args.overwrite or args.checkpoint != "last":
        return found
    lacking = [run for run in found if _read_measurement(run.measurement(measurement)) is None]
    if len(lacking) < len(found):
        print(
            f"{len(found) - len(lacking)} of {len(found)} runs have their {measurement}.json (--overwrite=True redoes)"
        )
    return lacking


def _finished_config(run):
    """The Config of a run that is done. Raises RunError for one that is not."""
    if not run.path.is_dir():
        hint = ": give the run's folder, and --checkpoint for another than the last; a network that is not of this "
        hint = f"{hint}program is measured from Python (docs/python.md)" if run.path.suffix == ".pt" else ""
        raise RunError(f"{run.path} is not a folder{hint}")
    if not run.config.exists() and next(run.path.glob("*/config.json"), None) is not None:
        raise RunError(f"{run.path} is a folder of runs: --results_dir={run.path} measures all of them")
    if not run.config.exists() and not run.summary.exists():
        raise RunError(f"{run.path} is not the folder of a run: it has no config.json")
    config = runs.stored_config(run)
    if not run.summary.exists():
        raise RunError(f"{run.path} is unfinished: python main.py --c_dir={run.path} continues it")
    if runs.read_summary(run)["status"] == "diverged":
        raise RunError(f"{run.path} diverged, so it has no network to measure")
    return config


def _checkpoints(run, name):
    """The paths of the checkpoints that --checkpoint names, the last one last."""
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


class Datasets:
    """Loads the images of runs, and keeps the last data set for the next run that shares it."""

    def __init__(self, data_dir, device):
        self.data_dir = data_dir
        self.device = device
        self.key = self.dataset = self.fingerprint = None

    def of(self, run, config):
        """The data set of a run, on the device. Raises RunError where the images are not those it was trained on."""
        if self.data_dir is not None:
            config = replace(config, data_dir=self.data_dir)
        key = (config.dataset, config.data_dir, config.train_samples, config.test_samples, config.val_fraction)
        key += (config.seed if config.dataset == "Synthetic" else None,)
        key += (config.image_size if config.dataset == "ImageFolder" else None,)
        if key != self.key:
            try:
                dataset = load(replace(config, download=False))
            except (RunError, UsageError) as error:
                where = f"its config.json says that they lie in {config.data_dir}; --data_dir says where they lie now"
                if self.data_dir is not None:
                    where = "--data_dir has to hold the images that it was trained on"
                raise RunError(f"{run.path} lacks its images ({error}): {where}") from None
            self.fingerprint, self.dataset, self.key = dataset.fingerprint(), dataset.to(self.device), key
        stored = read_json(run.config).get("data", {})
        if stored.get("fingerprint") != self.fingerprint:
            theirs, ours = (
                f"{len(classes)} classes, {images:,} training images, fingerprint {fingerprint}"
                for classes, images, fingerprint in (
                    (stored.get("classes", ()), stored.get("train_samples", 0), stored.get("fingerprint")),
                    (self.dataset.classes, len(self.dataset.train), self.fingerprint),
                )
            )
            raise RunError(
                f"{run.path} was trained on other images ({theirs}) than those in {config.data_dir} ({ours}): "
                "give the --data_dir where they lie"
            )
        return self.dataset


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
    datasets = Datasets(args.data_dir, device)
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
            table.update(measured)
        except OSError as error:
            print(f"results.csv lacks what was measured: {describe_os_error(error)}", file=sys.stderr)
    print(f"{done} measured" + (f", {left_out} left out" if left_out else ""))
    return 1 if left_out else 0


def _measure_run(run, args, measurement, datasets, pause):
    """Measures the checkpoints of one run, and yields after each. Raises RunError where something hinders it."""
    config = _finished_config(run)
    settings = {name: value for name, value in vars(args).items() if name not in NOT_SETTINGS}
    last = run.checkpoints()[-1:]
    with run.lock():
        for path in _checkpoints(run, args.checkpoint):
            target = run.measurement(measurement.name, None if [path] == last else epoch_of(path))
            sha256 = runs.read_summary(run).get("files", {}).get(run.name_of(path))
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
                    "versions": runs.versions(),
                    "git_commit": runs.git_commit(),
                }
                write_json(target, result | provenance)
                measurement.draw(target)
                print(f"{target} and {target.with_suffix('.png').name} are there", flush=True)
                yield
            elif not plots.is_whole(target.with_suffix(".png")):
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


def _read_measurement(target):
    """The content of a measurement, or None where it is missing or damaged, which is said."""
    try:
        return read_json(target)
    except RunError as error:
        if target.exists():
            print(f"{error}: to be measured again", file=sys.stderr)
        return None


def _is_measured(target, settings, sha256):
    """Whether a measurement with these settings is there. Raises RunError for one with other settings, or of another
    checkpoint than that with this SHA-256."""
    content = _read_measurement(target)
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

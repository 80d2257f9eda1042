"""The run directory: its name, its files, who works on it, and what it was trained on.

One place names every file; every write is atomic (files.py), and everything loads with weights_only=True.
"""

import contextlib
import dataclasses
import functools
import hashlib
import importlib.metadata
import json
import os
import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import filelock

from config import GROUPED_NORMS, Config, from_settings, shares_of_batch
from errors import RunError, UsageError
from files import locked, read_json, remove_leftovers

BUSY = "is being worked on by"
METRICS_COLUMNS = (
    "epoch",
    "learning_rate",
    "train_loss",
    "train_accuracy",
    "validation_loss",
    "validation_accuracy",
    "test_loss",
    "test_accuracy",
    "seconds",
    "images_per_second",
)


class RunDirectory:
    """The files of one run. `path` need not exist yet."""

    def __init__(self, path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.csv"
        self.summary = self.path / "summary.json"
        self.last = self.path / "checkpoints" / "last.pt"
        self.previous = self.path / "checkpoints" / "previous.pt"  # the state before last.pt, while the run goes on
        self.curves = self.path / "curves.png"
        self.probes_picture = self.path / "probes.png"
        self.probes_summary = self.path / "probes.json"

    def checkpoint(self, epoch):
        return self.path / "checkpoints" / f"epoch_{epoch:04d}.pt"

    def checkpoints(self):
        return sorted(self.path.glob("checkpoints/epoch_*.pt"))

    def probes(self, epoch):
        return self.path / "probes" / f"epoch_{epoch:04d}.pt"

    def probe_dumps(self):
        return sorted(self.path.glob("probes/epoch_*.pt"))

    def measurement(self, name, epoch=None):
        """The JSON file of a measurement, "hessian" or "class_similarity", of the last checkpoint or an earlier one."""
        return self.path / (f"{name}.json" if epoch is None else f"{name}_epoch_{epoch:04d}.json")

    def measurements(self, name):
        """The JSON files of a measurement, by epoch, the last checkpoint's last."""
        last = [self.measurement(name)] if self.measurement(name).exists() else []
        return [*sorted(self.path.glob(f"{name}_epoch_*.json")), *last]

    def name_of(self, path):
        """A file's name within the run directory."""
        return path.relative_to(self.path).as_posix()

    @contextlib.contextmanager
    def lock(self):
        """A context that one process holds while it works on the run. Raises RunError where another does.

        The system frees the lock of a process that dies, so nobody waits for a dead one.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        owner = self.path / ".owner"
        try:
            with locked(self.path / ".lock", timeout=0) as has_locks:
                if has_locks:
                    remove_leftovers(self.path)
                else:
                    print(f"{self.path}: no locks on this disk, so let one process work on a run", file=sys.stderr)
                with contextlib.suppress(OSError):
                    owner.write_text(f"process {os.getpid()} on {platform.node()} since {time.strftime('%c')}\n")
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):
                        owner.unlink()
        except filelock.Timeout:
            who = "another process"
            with contextlib.suppress(OSError, ValueError):
                who = owner.read_text(encoding="utf-8").strip() or who
            raise RunError(f"{self.path} {BUSY} {who}; wait for it, or stop it") from None

    def clear(self):
        """Removes everything that the run recorded, its result and state first; the lock stays."""
        for path in (self.summary, self.last, self.previous):
            path.unlink(missing_ok=True)
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name not in (".lock", ".owner"):
                entry.unlink()


def identity_hash(config):
    """8 hex digits over the fields that change the numbers."""
    text = json.dumps(config.identity(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_name(config):
    """`<arch>_<norm>_<dataset>_…_seed0_<8 hex>`: what differs from the defaults, readable; the hash, exact."""
    parts = [config.arch, config.norm_type, config.dataset]
    if config.norm_type in GROUPED_NORMS:
        parts.append(f"p{config.p_grouping:g}")
    if config.conv_type != "Plain":
        parts.append(config.conv_type)
    if config.arch == "vgg":
        parts.append(config.cfg)
    parts += [flag for flag in ("skipinit", "preact") if getattr(config, flag)]
    if config.batch_shares > 1:
        parts.append(f"shares{config.batch_shares}")
    parts += [f"bs{config.batch_size}", f"ep{config.epochs}", f"seed{config.seed}", identity_hash(config)]
    return "_".join(parts)


def open_run(config, processes=1):
    """(Config, RunDirectory) of a parsed command line; with c_dir, the settings come from its config.json.

    Runtime flags beside c_dir replace the stored ones. Raises RunError where c_dir holds no readable config.json, and
    where so many processes would take batch statistics of other parts of a batch than the run has.
    """
    if config.c_dir is None:
        config = dataclasses.replace(config, batch_shares=shares_of_batch(config, processes))
        return config, RunDirectory(Path(config.results_dir) / run_name(config))
    run = RunDirectory(config.c_dir)
    if not run.path.is_dir():
        raise RunError(f"--c_dir={config.c_dir} is not a folder")
    runtime = {f.name for f in dataclasses.fields(Config) if f.metadata["runtime"]}
    changes = {name: getattr(config, name) for name in runtime if _differs(name, getattr(config, name))}
    changes |= {name: getattr(config, name) for name in ("overwrite", "download", "mix_versions")}
    try:
        config = dataclasses.replace(stored_config(run), **changes)
    except RunError as error:
        raise RunError(f"{error}; the flags that the run was begun with, given again, continue it too") from None
    if config.batch_shares != shares_of_batch(config, processes):
        way = f"torchrun with {config.batch_shares} processes, without --sync_bn,"
        if config.batch_shares == 1:
            way = "one process, or --sync_bn=True,"
        raise RunError(
            f"{run.path} takes batch statistics of {config.batch_shares} shares of each batch: {way} continues it"
        )
    return config, run


def stored_config(run):
    """The Config in a run directory's config.json. Raises RunError where its settings are not those of one run."""
    settings = read_json(run.config)
    missing = sorted(Config().identity().keys() - settings.keys())
    if missing:
        raise RunError(f"{run.config} lacks {', '.join(missing)}: it is from another version, or damaged")
    try:
        return from_settings(settings)
    except UsageError as error:
        raise RunError(f"{run.config} holds settings that do not fit together: {error}") from None


def read_summary(run):
    """The content of summary.json. Raises RunError where it is missing, damaged, or of another run's settings."""
    summary = read_json(run.summary)
    if summary.get("status") not in ("done", "diverged"):
        raise RunError(f"{run.summary} is damaged: its status is {summary.get('status')!r}")
    identity = identity_hash(stored_config(run))
    if summary.get("identity", identity) != identity:
        raise RunError(f"{run.summary} and {run.config} are not of the same run")
    return summary


def _differs(name, value):
    return value != getattr(Config(), name)


def describe(config, dataset, fingerprint):
    """The content of config.json: every setting, then versions, git commit, and what the data were."""
    return dataclasses.asdict(config) | {
        "versions": versions(),
        "git_commit": git_commit(),
        "data": {
            "fingerprint": fingerprint,
            "classes": list(dataset.classes),
            "image_shape": list(dataset.train.images.shape[1:]),
            "train_samples": len(dataset.train),
            "validation_samples": 0 if dataset.validation is None else len(dataset.validation),
            "test_samples": len(dataset.test),
        },
    }


def versions():
    """{package: version} of what the numbers depend on."""
    import torch

    others = {name: importlib.metadata.version(name) for name in ("torchvision", "numpy")}
    return {"python": platform.python_version(), "torch": str(torch.__version__)} | others


@functools.cache
def git_commit():
    """The commit of this program, with `+` where its files differ from it; None outside a git checkout."""
    home = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=home, capture_output=True, text=True, check=True)
        status = ["git", "status", "--porcelain", "--untracked-files=no"]
        dirty = subprocess.run(status, cwd=home, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def reads_same_folder(run, config):
    """Whether the run's images came from the folder that the config names now (or from the seed)."""
    try:
        stored = str(read_json(run.config).get("data_dir", ""))
    except RunError:
        return False
    return config.dataset == "Synthetic" or Path(stored).resolve() == Path(config.data_dir).resolve()

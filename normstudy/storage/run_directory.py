"""The run directory: its name, its files, and its lock, which the process that works on it holds."""

import contextlib
import dataclasses
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from config import GROUPED_NORMS, PROBE_FLAGS, Config
from normstudy.cli import Busy
from normstudy.storage.files import remove_leftovers
from normstudy.storage.locks import locked
from normstudy.storage.run_owner import write_owner

MEASUREMENTS = ("hessian", "class_similarity", "measures", "landscape")  # {name}.json is written by run_{name}.py
USUAL_MATRIX = {"curvature": "hessian", "bn_mode": "eval", "scale": "none"}  # other values enter a measurement's name
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
    """The paths of one run's files. The directory need not exist yet.

    The path ends with the run's name: `.` and `..` are replaced by the absolute path.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        if self.path.name in ("", ".."):
            self.path = Path(os.path.abspath(path))
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.csv"
        self.summary = self.path / "summary.json"
        self.last = self.path / "checkpoints" / "last.pt"
        self.previous = self.path / "checkpoints" / "previous.pt"  # the state before last.pt; deleted when the run ends
        self.curves = self.path / "curves.png"
        self.probes_picture = self.path / "probes.png"
        self.probes_summary = self.path / "probes.json"
        self.owner = self.path / ".owner"  # names the process that holds the lock; see run_owner
        self.log = self.path.parent / "logs" / f"{self.path.name}.log"  # a sweep's output of all commands for this run
        self.failure = self.log.with_name(f"{self.path.name}.failed")  # why the run failed in a sweep, if it did

    def checkpoint(self, epoch: int) -> Path:
        return self.path / "checkpoints" / f"epoch_{epoch:04d}.pt"

    def checkpoints(self) -> list[Path]:
        """Return the checkpoints that exist, sorted by epoch."""
        return sorted(self.path.glob("checkpoints/epoch_*.pt"))

    def probes(self, epoch: int) -> Path:
        return self.path / "probes" / f"epoch_{epoch:04d}.pt"

    def probe_dumps(self) -> list[Path]:
        """Return the files of the probe dicts that exist, sorted by epoch."""
        return sorted(self.path.glob("probes/epoch_*.pt"))

    def measurement(self, name: str, epoch: int | None = None) -> Path:
        """Return the JSON file of a measurement (see measurement_name).

        It belongs to the checkpoint of `epoch`, or to the last checkpoint if `epoch` is None.
        """
        return self.path / (f"{name}.json" if epoch is None else f"{name}_epoch_{epoch:04d}.json")

    def measurements(self, name: str) -> list[Path]:
        """Return the JSON files of a measurement that exist, sorted by epoch; the last checkpoint's comes last."""
        last = [self.measurement(name)] if self.measurement(name).exists() else []
        return [*sorted(self.path.glob(f"{name}_epoch_*.json")), *last]

    def measurement_names(self) -> list[str]:
        """Return the names of all measurements of the last checkpoint that exist, such as hessian-ggn."""
        paths = [path for kind in MEASUREMENTS for path in self.path.glob(f"{kind}*.json")]
        pattern = re.compile(rf"({'|'.join(MEASUREMENTS)})(-[\w-]+)?")
        return sorted({path.stem for path in paths if pattern.fullmatch(path.stem) and "_epoch_" not in path.stem})

    def name_of(self, path: Path) -> str:
        """Return a file's name within the run directory, such as probes/epoch_0005.pt."""
        return path.relative_to(self.path).as_posix()

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Hold the run's lock during a `with` block. Raises Busy if another process holds it; see locked."""
        import filelock

        self.path.mkdir(parents=True, exist_ok=True)
        try:
            with locked(self.path / ".lock", timeout=0) as has_locks:
                if has_locks:
                    remove_leftovers(self.path)
                else:
                    print(f"{self.path}: this disk has no locks; let only one process work on a run", file=sys.stderr)
                write_owner(self.owner)
                try:
                    yield
                finally:
                    with contextlib.suppress(OSError):
                        self.owner.unlink()
        except filelock.Timeout:
            who = "another process"
            with contextlib.suppress(OSError, ValueError):
                who = self.owner.read_text(encoding="utf-8").strip() or who
            raise Busy(f"{self.path} is being worked on by {who}; wait for it, or stop it") from None

    def clear(self) -> None:
        """Remove everything that the run recorded, beginning with its result and state, but keep the lock."""
        for path in (self.summary, self.last, self.previous):
            path.unlink(missing_ok=True)
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name not in (".lock", ".owner"):
                entry.unlink()


def measurement_name(kind: str, settings: Mapping[str, Any]) -> str:
    """Return the name of a measurement: its kind, and what its matrix, --to and --tag add, as in hessian-train-filter.

    kind: one of MEASUREMENTS.
    """
    unusual = [str(settings[name]) for name, usual in USUAL_MATRIX.items() if settings.get(name, usual) != usual]
    to = [f"to-{settings['to_identity']}"] if settings.get("to_identity") else []
    return "-".join([kind, *unusual, *to, *([settings["tag"]] if settings.get("tag") else [])])


def identity_hash(config: Config) -> str:
    """Return 8 hex digits of a hash of the settings that change the numbers."""
    return _hash(config.identity())


def earlier_hash(config: Config) -> str:
    """Return the hash of earlier versions of this program, in which probes entered with their own values."""
    return _hash(config.identity() | {name: getattr(config, name) for name in PROBE_FLAGS})


def _hash(identity: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:8]


def directory_of(config: Config) -> RunDirectory:
    """Return the directory of a run. One that an earlier version stored under another name is found under that name.

    Earlier names depended on the flags of probes: names for the given ones, and for a run without probes, are tried.
    """
    directory = RunDirectory(Path(config.results_dir) / run_name(config))
    if not directory.config.exists():
        for asked in (config, dataclasses.replace(config, probe_layers=False, probe_every=1)):
            earlier = RunDirectory(Path(config.results_dir) / run_name(config, earlier_hash(asked)))
            if earlier.config.exists():
                return earlier
    return directory


def run_name(config: Config, digest: str | None = None) -> str:
    """Return the name of a run directory, `<arch>_<norm>_<dataset>_…_seed0_<8 hex>`: the main settings and a hash.

    digest: the hash, if it is not identity_hash(config).
    """
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
    parts += [f"bs{config.batch_size}", f"ep{config.epochs}", f"seed{config.seed}", digest or identity_hash(config)]
    return "_".join(parts)

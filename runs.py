"""The run directory: its name, its files, its state, and the table of all runs.

One place names every file; every write is atomic (files.py), and everything loads with weights_only=True.
"""

import dataclasses
import hashlib
import importlib.metadata
import json
import platform
import shutil
import subprocess
from pathlib import Path

import filelock
import torch

from config import Config, resolve
from errors import RunError, UsageError
from files import read_json, read_torch, write_csv, write_json, write_torch

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
ORIGINAL_COLUMNS = (
    "Model",
    "Norm",
    "Dataset",
    "Batch Size",
    "Trace",
    "Eigen Mean",
    "Eigen Variance",
    "Max Eigen",
    "Test Accuracy",
    "Class Similarity",
    "Mom & WD",
    "Train Accuracy",
    "SkipInit",
    "Success",
    "P Grouping",
    "Gen. Ratio",
)
MEASURED_COLUMNS = (
    "trace_standard_error",
    "eigen_mean_standard_error",
    "eigen_variance_standard_error",
    "max_eigen_residual",
    "min_eigen",
    "min_eigen_residual",
    "hessian_samples",
    "class_similarity_pooled",
    "class_similarity_centred",
    "within_over_between",
    "class_similarity_samples",
)
OWN_COLUMNS = (
    "seed",
    "epochs",
    "conv_type",
    "cfg",
    "preact",
    "image_size",
    "patch_size",
    "init_lr",
    "lr_warmup",
    "momentum",
    "weight_decay",
    "precision",
    "train_samples",
    "test_samples",
    "val_fraction",
    "status",
    "test_loss",
    "train_loss",
    "validation_accuracy",
    "validation_loss",
    *MEASURED_COLUMNS,
    "seconds",
    "data",
    "run",
)


class RunDirectory:
    """The files of one run. `path` need not exist yet."""

    def __init__(self, path):
        self.path = Path(path)
        self.config = self.path / "config.json"
        self.metrics = self.path / "metrics.csv"
        self.summary = self.path / "summary.json"
        self.last = self.path / "checkpoints" / "last.pt"
        self.curves = self.path / "curves.png"
        self.probes_picture = self.path / "probes.png"

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

    def lock(self):
        """A context that one process holds while it works on the run. Raises RunError where another does."""
        self.path.mkdir(parents=True, exist_ok=True)
        try:
            return filelock.FileLock(self.path / ".lock").acquire(timeout=0)
        except filelock.Timeout:
            raise RunError(f"{self.path} is being worked on by another process; wait for it, or stop it") from None

    def clear(self):
        """Removes everything that the run recorded; the lock stays."""
        for entry in self.path.iterdir():
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry)
            elif entry.name != ".lock":
                entry.unlink()


def identity_hash(config):
    """8 hex digits over the fields that change the numbers."""
    text = json.dumps(config.identity(), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def run_name(config):
    """`<arch>_<norm>_<dataset>_…_seed0_<8 hex>`: what differs from the defaults, readable; the hash, exact."""
    parts = [config.arch, config.norm_type, config.dataset]
    if config.norm_type == "GroupNorm":
        parts.append(f"p{config.p_grouping:g}")
    if config.conv_type != "Plain":
        parts.append(config.conv_type)
    if config.arch == "vgg":
        parts.append(config.cfg)
    parts += [flag for flag in ("skipinit", "preact") if getattr(config, flag)]
    parts += [f"bs{config.batch_size}", f"ep{config.epochs}", f"seed{config.seed}", identity_hash(config)]
    return "_".join(parts)


def open_run(config):
    """(Config, RunDirectory) of a parsed command line; with c_dir, the settings come from its config.json.

    Runtime flags beside c_dir replace the stored ones. Raises RunError where c_dir holds no readable config.json.
    """
    if config.c_dir is None:
        return config, RunDirectory(Path(config.results_dir) / run_name(config))
    run = RunDirectory(config.c_dir)
    if not run.path.is_dir():
        raise RunError(f"--c_dir={config.c_dir} is not a folder")
    runtime = {f.name for f in dataclasses.fields(Config) if f.metadata["runtime"]}
    changes = {name: getattr(config, name) for name in runtime if _differs(name, getattr(config, name))}
    changes |= {"overwrite": config.overwrite, "download": config.download}
    return dataclasses.replace(stored_config(run), **changes), run


def stored_config(run):
    """The Config in a run directory's config.json. Raises RunError where its settings are not those of one run."""
    settings = read_json(run.config)
    names = {f.name for f in dataclasses.fields(Config)}
    missing = sorted(names - settings.keys())
    if missing:
        raise RunError(f"{run.config} lacks {', '.join(missing)}: it is from another version, or damaged")
    try:
        changed = {name: settings[name] for name in names - {"c_dir"} if _differs(name, settings[name])}
        config = resolve(changed)
    except (UsageError, TypeError, ValueError) as error:
        raise RunError(f"{run.config} holds settings that do not fit together: {error}") from None
    return config


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
    others = {name: importlib.metadata.version(name) for name in ("torchvision", "numpy")}
    return {"python": platform.python_version(), "torch": str(torch.__version__)} | others


def git_commit():
    """The commit of this program, with `+` where its files differ from it; None outside a git checkout."""
    home = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=home, capture_output=True, text=True, check=True)
        dirty = subprocess.run(["git", "status", "--porcelain"], cwd=home, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")


def reads_same_folder(run, config):
    """Whether the run's images came from the folder that the config names now (or from the seed)."""
    stored = read_json(run.config).get("data_dir", "")
    return config.dataset == "Synthetic" or Path(stored).resolve() == Path(config.data_dir).resolve()


def begin(run, config, dataset):
    """Makes the directory ready for a run on these images: config.json written, or found to speak of the same images.

    With overwrite, what the directory held goes. Raises RunError where it was trained on other images.
    """
    fingerprint = dataset.fingerprint()
    if config.overwrite:
        run.clear()
    if not run.config.exists():
        write_json(run.config, describe(config, dataset, fingerprint))
        return
    try:
        stored = read_json(run.config).get("data", {}).get("fingerprint")
    except RunError as error:
        raise RunError(f"{error}; --overwrite=True starts the run over") from None
    if stored != fingerprint:
        raise RunError(
            f"{run.path} was trained on other images (fingerprint {stored}, here {fingerprint}): "
            "use another --results_dir, or --overwrite=True to start over"
        )


def save_state(run, config, model, optimizer, recorder, progress):
    """Writes last.pt: everything that the run needs to continue. progress: {"epoch", "rows", "seconds"} so far."""
    random_states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        random_states["cuda"] = torch.cuda.get_rng_state_all()
    state = {
        "identity": config.identity(),
        "model": model.state_dict(),
        "optimizer": optimizer.state_dict(),
        "probes": None if recorder is None else recorder.state_dict(),
        "random_states": random_states,
    }
    write_torch(run.last, state | progress)


def load_state(run, config, model, optimizer, recorder):
    """Takes last.pt back into model, optimizer and recorder, and returns the progress. Raises RunError.

    Where there is no last.pt: the progress of a run that has not begun.
    """
    if not run.last.exists():
        return {"epoch": 0, "rows": [], "seconds": 0.0}
    mend = "--overwrite=True starts the run over"
    try:
        state = read_torch(run.last)
        if state["identity"] != config.identity():
            raise RunError(f"{run.last} belongs to other settings than {run.config}")
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        if recorder is not None:
            recorder.load_state_dict(state["probes"])
        torch.set_rng_state(state["random_states"]["cpu"])
        if torch.cuda.is_available() and "cuda" in state["random_states"]:
            torch.cuda.set_rng_state_all(state["random_states"]["cuda"])
        return {name: state[name] for name in ("epoch", "rows", "seconds")}
    except RunError as error:
        raise RunError(f"{error}; {mend}") from None
    except (KeyError, TypeError, RuntimeError, ValueError, AttributeError) as error:
        reason = str(error).splitlines()[0][:120]
        raise RunError(f"{run.last} does not fit this run ({reason}); {mend}") from None


def save_checkpoint(run, config, model, epoch):
    """Writes the model of `epoch` alone; with keep=last the older ones go, once the new one is there."""
    path = run.checkpoint(epoch)
    write_torch(path, model.state_dict())
    if config.keep == "last":
        for older in run.checkpoints():
            if older != path:
                older.unlink()


def load_probes(run):
    """All probe dicts of a run as one: the keys of section 6, concatenated over iterations. None without dumps."""
    dumps = [read_torch(path) for path in run.probe_dumps()]
    if not dumps:
        return None
    joined = {"sites": dumps[0]["sites"]}
    for key in dumps[0]:
        if key != "sites":
            joined[key] = torch.cat([dump[key] for dump in dumps])
    return joined


# What the terminal and the log say


def epoch_line(config, row):
    """One finished epoch, from its row of metrics.csv."""
    epoch = f"epoch {row['epoch']:>{len(str(config.epochs))}}/{config.epochs}"
    parts = [epoch, f"lr {row['learning_rate']:.3g}"]
    for split in ("train", "validation", "test"):
        if f"{split}_loss" in row:
            parts.append(f"{split} loss {row[f'{split}_loss']:.4f} acc {100 * row[f'{split}_accuracy']:.2f} %")
    minutes_left = row["seconds"] * (config.epochs - row["epoch"]) / 60
    parts.append(f"{row['seconds']:.1f} s ({row['images_per_second']:,.0f} img/s, {minutes_left:.0f} min left)")
    return " | ".join(parts)


def outcome(run):
    """How a run ended and where its files are, from its summary.json. Raises RunError where that is damaged."""
    summary = read_json(run.summary)
    try:
        if summary["status"] == "diverged":
            step, epochs = summary["diverged_at_step"], summary["epochs_done"]
            return f"diverged at step {step}, after {epochs} whole epochs; what was recorded is in {run.path}"
        test, train = 100 * summary["test_accuracy"], 100 * summary["train_accuracy"]
        pictures = [str(path) for path in (run.curves, run.probes_picture) if path.exists()]
        return (
            f"done in {summary['seconds']:.0f} s: test accuracy {test:.2f} %, train accuracy {train:.2f} %\n"
            f"look at {', '.join(pictures) or run.metrics}; everything is in {run.path}"
        )
    except (KeyError, TypeError) as error:
        raise RunError(f"{run.summary} is damaged ({error}); --overwrite=True starts the run over") from None


# The table of all runs


def table_row(run):
    """One run's row of results.csv, or None where it has not ended or cannot be read."""
    try:
        settings, summary = read_json(run.config), read_json(run.summary)
        measured = _measured(run)
        values = {
            "Model": settings["arch"],
            "Norm": settings["norm_type"],
            "Dataset": settings["dataset"],
            "Batch Size": settings["batch_size"],
            "Trace": measured.get("trace"),
            "Eigen Mean": measured.get("eigen_mean"),
            "Eigen Variance": measured.get("eigen_variance"),
            "Max Eigen": measured.get("max_eigen"),
            "Test Accuracy": _percent(summary["test_accuracy"]),
            "Class Similarity": measured.get("class_similarity"),
            "Mom & WD": settings["momentum"] > 0 and settings["weight_decay"] > 0,
            "Train Accuracy": _percent(summary["train_accuracy"]),
            "SkipInit": settings["skipinit"],
            "Success": summary["status"] == "done",
            "P Grouping": settings["p_grouping"],
            "Gen. Ratio": summary["generalization_ratio"],
            "data": settings["data"]["fingerprint"],
            "run": run.path.name,
        }
        values |= {name: measured.get(name) for name in MEASURED_COLUMNS}
        values |= {name: settings[name] for name in OWN_COLUMNS if name in settings and name not in values}
        return values | {name: summary[name] for name in OWN_COLUMNS if name in summary}
    except (RunError, KeyError, TypeError):
        return None


def _measured(run):
    """What a run's measurements of its last checkpoint say, those of the Hessian in eval mode alone."""
    measured = {}
    for name in ("hessian", "class_similarity"):
        path = run.measurement(name)
        content = read_json(path) if path.exists() else {}
        settings = content.get("settings", {})
        if settings.get("curvature", "hessian") == "hessian" and settings.get("bn_mode", "eval") == "eval":
            measured |= content | {f"{name}_samples": content.get("num_samples")}
    return measured


def _percent(fraction):
    return None if fraction is None else 100 * fraction


def collect(results_dir):
    """Rebuilds results_dir/results.csv from the run directories, one row a run that has ended. Returns its path."""
    results_dir = Path(results_dir)
    table = results_dir / "results.csv"
    with filelock.FileLock(results_dir / ".results.lock"):
        runs = [RunDirectory(path.parent) for path in sorted(results_dir.glob("*/summary.json"))]
        rows = [row for row in map(table_row, runs) if row is not None]
        write_csv(table, ORIGINAL_COLUMNS + OWN_COLUMNS, rows)
    return table

"""results.csv: one row a run, derived from the run directories at any time."""

import csv
import io
import itertools
import os
import sys
from pathlib import Path

from config import GROUPED_NORMS, Config
from errors import RunError
from files import locked, read_json, remove_leftovers, write_bytes, write_csv
from runs import RunDirectory, read_summary

# {column: what it means}, in the order of the table; the first are those of the original study, so that both stack
ORIGINAL_COLUMNS = {
    "Model": "network, as `--arch` spells it",
    "Norm": "normalization layer, as `--norm_type` spells it",
    "Dataset": "as `--dataset` spells it",
    "Batch Size": "samples per step, over all processes",
    "Trace": "trace of the Hessian of the training loss (mean cross-entropy in nats), from `hessian.json`",
    "Eigen Mean": "mean of its eigenvalues",
    "Eigen Variance": "variance of its eigenvalues",
    "Max Eigen": "its largest eigenvalue",
    "Test Accuracy": "% of the test images, after the last epoch, eval mode",
    "Class Similarity": "mean cosine between the class means of the flattened features, from `class_similarity.json`",
    "Mom & WD": "whether momentum and weight decay were both on",
    "Train Accuracy": "% of the training images, after the last epoch, eval mode, unaugmented",
    "SkipInit": "whether residual branches were scaled from 0",
    "Success": "whether training stayed finite (`status` is `done`)",
    "P Grouping": f"`--p_grouping`; it acts on {', '.join(GROUPED_NORMS)} alone",
    "Gen. Ratio": "test accuracy / train accuracy",
}
SETTINGS = (
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
    "batch_shares",
)
IMAGES = {
    "train_samples": "training images that there were",
    "test_samples": "test images that there were",
    "val_fraction": "`--val_fraction`: part of the training set held out for validation",
}
RESULTS = {
    "status": "`done` or `diverged`",
    "test_loss": "mean cross-entropy in nats per test image, eval mode, after the last epoch",
    "train_loss": "the same of the training images, unaugmented",
    "validation_accuracy": "fraction from 0 to 1; empty where nothing was held out",
    "validation_loss": "in nats per image; empty where nothing was held out",
}
MEASURED = {
    "trace_standard_error": "standard error of the trace, over random probes",
    "eigen_mean_standard_error": "standard error of the mean eigenvalue",
    "eigen_variance_standard_error": "standard error of the variance of the eigenvalues",
    "max_eigen_residual": "an eigenvalue lies within it of `Max Eigen`",
    "min_eigen": "the smallest Ritz value of the Hessian: its smallest eigenvalue is this or less",
    "min_eigen_residual": "an eigenvalue lies within it of `min_eigen`",
    "hessian_samples": "images that the Hessian was measured on",
    "class_similarity_pooled": "`Class Similarity` of the features as the classifier pools them",
    "class_similarity_centred": "`Class Similarity` of class means centred on the global mean",
    "within_over_between": "variance of the features within classes over that between them",
    "class_similarity_samples": "images that class similarity was measured on",
}
ORIGIN = {
    "seconds": "training and evaluation of all epochs, over all continuations",
    "torch": "version of PyTorch that trained the run; several, where `--mix_versions=True` mixed them",
    "data": "fingerprint of every image and label used",
    "run": "the run's folder",
}


def _setting(name):
    option = Config.__dataclass_fields__[name].metadata
    return f"`--{name}`: {option['help']}" if option["group"] else option["help"]


COLUMNS = ORIGINAL_COLUMNS | {name: _setting(name) for name in SETTINGS} | IMAGES | RESULTS | MEASURED | ORIGIN
TITLE = "# Results of normalization runs"
LOCK = ".results.lock"
USUAL = {"curvature": "hessian", "bn_mode": "eval", "split": "train"}  # what the columns of measurements are of


def table_row(run):
    """(one run's row of results.csv as text, or None where it has not ended or cannot be read; complaints)."""
    try:
        settings, summary = read_json(run.config), read_summary(run)
        measured, complaints = _measured(run, summary)
        data = settings["data"]
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
            "train_samples": data["train_samples"],
            "test_samples": data["test_samples"],
            "torch": " + ".join(dict.fromkeys(each["versions"]["torch"] for each in summary.get("history", []))),
            "data": data["fingerprint"],
            "run": run.path.name,
        }
        values |= {name: measured.get(name) for name in MEASURED}
        values |= {name: settings.get(name, getattr(Config, name)) for name in (*SETTINGS, "val_fraction")}
        values |= {name: summary.get(name) for name in (*RESULTS, "seconds")}
        return {name: "" if values[name] is None else str(values[name]) for name in COLUMNS}, complaints
    except RunError as error:
        return None, [str(error)]
    except (KeyError, TypeError, AttributeError) as error:
        return None, [f"{run.path}: config.json or summary.json is damaged ({error!r})"]


def _measured(run, summary):
    """(what a run's measurements of its last checkpoint say, where they were made in the usual way; complaints)."""
    measured, complaints = {}, []
    last = summary.get("files", {}).get(f"checkpoints/epoch_{summary['epochs_done']:04d}.pt")
    for name in ("hessian", "class_similarity"):
        path = run.measurement(name)
        if not path.exists():
            continue
        try:
            content = read_json(path)
            if content.get("checkpoint_sha256", last) != last:
                raise RunError(f"{path} was measured on another checkpoint than this run's last one")
        except RunError as error:
            complaints.append(f"{error}; --overwrite=True measures again")
            continue
        settings = content.get("settings", {})
        if all(settings.get(flag, usual) == usual for flag, usual in USUAL.items()):
            measured |= content | {f"{name}_samples": content.get("num_samples")}
    return measured, complaints


def _percent(fraction):
    return None if fraction is None else round(100 * fraction, 9)


def collect(results_dir):
    """Rebuilds results_dir/results.csv from the run directories, one row a run that has ended. Returns its path.

    What is damaged, and rows that look alike but are of different images, are said on stderr. A table with rows of
    runs that are not there is kept beside it.
    """
    with locked(Path(results_dir) / LOCK):
        return _rebuild(Path(results_dir))


def update(runs):
    """Puts the rows of these runs into the results.csv beside them, and leaves all other rows as they are. Where
    there is no whole table, it is rebuilt."""
    folders = {}
    for run in runs:
        path = Path(os.path.abspath(run.path))
        folders.setdefault(path.parent, []).append(path.name)
    for results_dir, names in folders.items():
        with locked(results_dir / LOCK):
            kept = _rows(results_dir / "results.csv")
            if kept is None:
                _rebuild(results_dir)
            else:
                _write(results_dir, names, kept)


def _rebuild(results_dir):
    """The table of all runs that have ended, in place of one whose rows are kept elsewhere if this loses any."""
    table = results_dir / "results.csv"
    if _has_rows_of_its_own(table):
        names = (f"results.old{f'-{count}' if count > 1 else ''}.csv" for count in itertools.count(1))
        place = next(path for path in map(results_dir.joinpath, names) if not path.exists())
        os.replace(table, place)
        print(f"{table} held something else than these runs: it is {place.name} now, and made anew", file=sys.stderr)
    return _write(results_dir, _ended(results_dir), {})


def _has_rows_of_its_own(table):
    """Whether a table holds a line that no run's folder beside it stands for."""
    try:
        with open(table, encoding="utf-8", newline="") as file:
            header, *lines = csv.reader(file)
    except FileNotFoundError:
        return False
    except (OSError, ValueError, csv.Error):
        return os.path.getsize(table) > 0
    place = header.index("run") if "run" in header else None
    names = {line[place] if place is not None and len(line) == len(header) else None for line in lines}
    return any(not name or not (table.parent / name).is_dir() for name in names)


def _ended(results_dir):
    """The names of the runs that have ended."""
    return sorted(path.parent.name for path in Path(results_dir).glob("*/summary.json"))


def _rows(table):
    """{run: row} of a results.csv, or None where it is missing, not whole, or of another version of this program."""
    try:
        with open(table, encoding="utf-8", newline="") as file:
            content = file.read()
        header, *lines = csv.reader(io.StringIO(content, newline=""))
    except (OSError, ValueError, csv.Error):
        return None
    if not content.endswith("\n") or header != list(COLUMNS) or any(len(line) != len(header) for line in lines):
        return None
    rows = [dict(zip(header, line, strict=True)) for line in lines]
    return {row["run"]: row for row in rows}


def _write(results_dir, names, kept):
    """Writes the table of the runs of these names, read anew, and of the rows that are kept; complaints on stderr."""
    results_dir = Path(results_dir)
    table = results_dir / "results.csv"
    remove_leftovers(results_dir, ".*.tmp")
    rows, complaints = dict(kept), []
    for name in names:
        rows.pop(name, None)
        run = RunDirectory(results_dir / name)
        row, found = table_row(run) if run.summary.exists() else (None, [])
        complaints += found
        if row is not None:
            rows[name] = row
    in_order = [rows[name] for name in sorted(rows)]
    write_csv(table, COLUMNS, in_order)
    _explain(results_dir / "README.md")
    for complaint in complaints + _unlike_images(in_order):
        print(f"{table.name}: {complaint}", file=sys.stderr)
    return table


def _explain(path):
    """Writes what the columns mean, unless another text has that name."""
    if path.exists() and not path.read_text(encoding="utf-8", errors="replace").startswith(TITLE):
        return
    if not path.exists() or path.read_text(encoding="utf-8", errors="replace") != explanation():
        write_bytes(path, explanation().encode())


def explanation():
    """README.md of a results folder."""
    rows = "".join(f"| {name} | {meaning} |\n" for name, meaning in COLUMNS.items())
    return f"""{TITLE}

Each run has a folder of its own here, `<arch>_<norm>_<dataset>_…_seed<seed>_<8 hex>`; the hex is a hash of every
setting that changes the numbers. `results.csv` has one row for each run that has ended. It is derived: every run adds
its row, and `python run_report.py --collect` rebuilds all of them from the folders. So it can be deleted, and a folder
that is moved away loses its row then (which `results.old.csv` keeps). A subfolder with a `results.csv` of its own is
another study: the one that comes with the program is `results/cpu_study`, and its `FINDINGS.md` says what it found.

## Columns of results.csv
The first {len(ORIGINAL_COLUMNS)} are those of the original study's table, so that both stack. An empty cell means:
not measured, or measured in another way than with {", ".join(f"`--{flag}={usual}`" for flag, usual in USUAL.items())}:
such measurements are in the run's folder alone.

| column | meaning |
|---|---|
{rows}"""


def _unlike_images(rows):
    """A complaint for each data set whose rows seem to be of the same images and are not."""
    seen = {}
    for row in rows:
        size = row["image_size"] if row["Dataset"] == "ImageFolder" else None
        seed = row["seed"] if row["Dataset"] == "Synthetic" else None
        key = (row["Dataset"], row["train_samples"], row["test_samples"], row["val_fraction"], size, seed)
        seen.setdefault(key, set()).add(row["data"])
    return [
        f"runs on {dataset} with {int(train_samples):,} images are of {len(prints)} different sets of images: compare "
        "only rows that agree in the column data"
        for (dataset, train_samples, *_), prints in seen.items()
        if len(prints) > 1
    ]

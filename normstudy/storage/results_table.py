"""results.csv: one row for each run, derived from the run directories at any time."""

import csv
import io
import itertools
import os
import sys
from pathlib import Path

from config import Config
from normstudy.cli import RunError
from normstudy.storage.files import locked, read_json, remove_leftovers, write_csv
from normstudy.storage.results_columns import COLUMNS, DEFAULT_SETTINGS, MEASURED, RESULTS, SETTINGS, write_explanation
from normstudy.storage.run_directory import RunDirectory
from normstudy.storage.run_settings import read_summary

LOCK = ".results.lock"


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
        if all(settings.get(flag, usual) == usual for flag, usual in DEFAULT_SETTINGS.items()):
            measured |= content | {f"{name}_samples": content.get("num_samples")}
    return measured, complaints


def _percent(fraction):
    return None if fraction is None else round(100 * fraction, 9)


def collect_table(results_dir):
    """Rebuilds results_dir/results.csv from the run directories, one row a run that has ended. Returns its path.

    What is damaged, and rows that look alike but are of different images, are said on stderr. A table with rows of
    runs that are not there is kept beside it.
    """
    with locked(Path(results_dir) / LOCK):
        return _rebuild(Path(results_dir))


def update_table(runs):
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
    write_explanation(results_dir / "README.md")
    for complaint in complaints + _unlike_images(in_order):
        print(f"{table.name}: {complaint}", file=sys.stderr)
    return table


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

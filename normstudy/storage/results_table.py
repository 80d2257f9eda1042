"""results.csv: one row per run. The table can be rebuilt from the run directories at any time."""

import itertools
import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from config import Config
from normstudy.cli import RunError
from normstudy.storage.files import read_json, remove_leftovers, write_csv
from normstudy.storage.locks import locked
from normstudy.storage.results_columns import (
    COLUMNS,
    MEASUREMENT_COLUMNS,
    OTHER_KEYS,
    RESULT_COLUMNS,
    SETTING_COLUMNS,
    USUAL_MEASUREMENT,
    write_explanation,
)
from normstudy.storage.run_directory import MEASUREMENTS, RunDirectory, measurement_name
from normstudy.storage.run_settings import read_summary
from normstudy.storage.table_files import parse_table, read_table

LOCK = ".results.lock"
UNLIKE_RUNS, SAVED_ELSEWHERE = "did not match the runs here", "was saved by another program"
Row = dict[str, str]  # {column: text}; missing values are empty


def table_row(run: RunDirectory) -> tuple[Row | None, list[str]]:
    """Return a run's row of results.csv, and complaints about its files.

    The row is None if the run has not ended or cannot be read.
    """
    try:
        settings, summary = read_json(run.config), read_summary(run)
        measured, complaints = _read_measurements(run, summary)
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
        values |= {name: measured.get(name) for name in MEASUREMENT_COLUMNS}
        values |= {name: settings.get(name, getattr(Config, name)) for name in (*SETTING_COLUMNS, "val_fraction")}
        values |= {name: summary.get(name) for name in (*RESULT_COLUMNS, "seconds")}
        values |= {name: value for name, value in measured.items() if ":" in name}
        names = [*COLUMNS, *(name for name in values if ":" in name)]
        return {name: "" if values[name] is None else str(values[name]) for name in names}, complaints
    except RunError as error:
        return None, [str(error)]
    except (KeyError, TypeError, AttributeError) as error:
        return None, [f"{run.path}: config.json or summary.json is damaged ({error!r})"]


def _read_measurements(run: RunDirectory, summary: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """Return the usual measurements of a run's last checkpoint in one dict, and complaints about unusable files."""
    measured: dict[str, Any] = {}
    complaints = []
    last = summary.get("files", {}).get(f"checkpoints/epoch_{summary['epochs_done']:04d}.pt")
    for name in run.measurement_names():
        path = run.measurement(name)
        try:
            content = read_json(path)
            if content.get("checkpoint_sha256", last) != last:
                raise RunError(f"{path} was measured on another checkpoint, not on this run's last one")
        except RunError as error:
            complaints.append(f"{error}; use --overwrite=True to measure again")
            continue
        settings = content.get("settings", {})
        is_usual = all(settings.get(flag, usual) == usual for flag, usual in USUAL_MEASUREMENT.items())
        if name in MEASUREMENTS and is_usual:
            measured |= content | {f"{name}_samples": content.get("num_samples")}
            measured[f"{name}_dtype"] = settings.get("dtype")
        elif name not in MEASUREMENTS and name == measurement_name(name.partition("-")[0], settings):  # without a tag
            measured |= {f"{name}:{key}": ({"dtype": settings.get("dtype")} | content).get(key) for key in OTHER_KEYS}
    return measured, complaints


def _percent(fraction: float | None) -> float | None:
    return None if fraction is None else round(100 * fraction, 9)


def collect_table(results_dir: Path) -> Path:
    """Rebuild results_dir/results.csv from the run directories, one row for each run that has ended; return its path.

    Reports on stderr damaged runs, and rows that look comparable but are of different images. An old table with rows
    of runs that are not in the folder is kept under another name.
    """
    with locked(results_dir / LOCK):
        return _rebuild(results_dir)


def update_table(runs: Iterable[RunDirectory]) -> None:
    """Write the rows of these runs to the results.csv next to them, and leave all other rows as they are.

    A table that is missing, damaged, or from another version of this program is rebuilt. One that a spreadsheet program
    saved is kept under another name; in the new table, only the rows of runs that are not in the folder come from it.
    """
    names: dict[Path, list[str]] = {}
    for run in runs:
        path = Path(os.path.abspath(run.path))
        names.setdefault(path.parent, []).append(path.name)
    for results_dir, changed in names.items():
        with locked(results_dir / LOCK):
            table = results_dir / "results.csv"
            rows, is_own = _read_rows(table)
            if rows is None:
                _rebuild(results_dir)
            elif is_own:
                _write_table(results_dir, changed, rows)
            else:
                _rename(table, SAVED_ELSEWHERE)
                here = [name for name in rows if (results_dir / name).is_dir()]  # their cells may be rounded
                _write_table(results_dir, [*changed, *here], rows)


def _rebuild(results_dir: Path) -> Path:
    """Write the table of all runs that have ended. An old table that has something else is renamed first."""
    table = results_dir / "results.csv"
    if reason := _why_kept(table):
        _rename(table, reason)
    ended = sorted(path.parent.name for path in results_dir.glob("*/summary.json"))
    return _write_table(results_dir, ended, {})


def _rename(table: Path, reason: str) -> None:
    """Keep a table under another name; say so on stderr."""
    names = (f"results.old{f'-{count}' if count > 1 else ''}.csv" for count in itertools.count(1))
    place = next(path for path in map(table.parent.joinpath, names) if not path.exists())
    os.replace(table, place)
    print(f"{table} {reason}: it was renamed to {place.name} and rebuilt", file=sys.stderr)


def _why_kept(table: Path) -> str | None:
    """Return why a table must not be replaced: it is not a table of the runs here, or not of this program alone."""
    if not table.exists() or not os.path.getsize(table):
        return None
    try:
        found = parse_table(table)
    except RunError:
        return UNLIKE_RUNS
    if not found.is_own or any(name not in COLUMNS and ":" not in name for name in found.header):
        return SAVED_ELSEWHERE
    place = found.header.index("run") if "run" in found.header else None
    names = {row[place] if place is not None else "" for row in found.rows}
    return UNLIKE_RUNS if any(not name or not (table.parent / name).is_dir() for name in names) else None


def _read_rows(table: Path) -> tuple[dict[str, Row] | None, bool]:
    """Return {run: row} of a results.csv, and whether this program wrote it last.

    The rows are None if the table is missing, damaged, or from another version of this program.
    """
    try:
        found = parse_table(table)
        if not found.is_own:
            found = read_table(table)
    except RunError:
        return None, True
    header = found.header
    is_of_this_version = header[: len(COLUMNS)] == list(COLUMNS) and all(":" in name for name in header[len(COLUMNS) :])
    if not is_of_this_version or (found.is_own and not found.is_whole):
        return None, True
    rows = [dict(zip(header, row, strict=True)) for row in found.rows]
    return {row["run"]: row for row in rows if row["run"]}, found.is_own


def _write_table(results_dir: Path, changed: Sequence[str], rows: Mapping[str, Row]) -> Path:
    """Write a table of `rows`, {run: row}, after reading the rows of the changed runs again; return its path.

    Prints complaints on stderr.
    """
    table = results_dir / "results.csv"
    remove_leftovers(results_dir, ".*.tmp")
    rows, complaints = dict(rows), []
    for name in changed:
        rows.pop(name, None)
        run = RunDirectory(results_dir / name)
        row, found = table_row(run) if run.summary.exists() else (None, [])
        complaints += found
        if row is not None:
            rows[name] = row
    in_order = [rows[name] for name in sorted(rows)]
    others = sorted({name for row in in_order for name, value in row.items() if ":" in name and value})
    known = {*COLUMNS, *others}
    write_csv(table, [*COLUMNS, *others], [{name: row[name] for name in row if name in known} for row in in_order])
    write_explanation(results_dir / "README.md")
    for complaint in complaints + _mixed_images(in_order):
        print(f"{table.name}: {complaint}", file=sys.stderr)
    return table


def _mixed_images(rows: Iterable[Row]) -> list[str]:
    """Return a complaint for each data set whose rows seem to be of the same images but are not."""
    fingerprints: dict[tuple[str, ...], set[str]] = {}
    for row in rows:
        size = row["image_size"] if row["Dataset"] == "ImageFolder" else ""
        seed = row["seed"] if row["Dataset"] == "Synthetic" else ""
        names = ("Dataset", "train_samples", "test_samples", "val_fraction", "balance")
        key = (*(row[name] for name in names), size, seed)
        fingerprints.setdefault(key, set()).add(row["data"])
    return [
        f"runs on {dataset} with {int(train_samples):,} images used {len(found)} different sets of images: "
        "compare only rows with the same value in the column data"
        for (dataset, train_samples, *_), found in fingerprints.items()
        if len(found) > 1
    ]

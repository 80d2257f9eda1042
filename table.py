"""results.csv: one row a run, derived from the run directories at any time."""

import sys
from pathlib import Path

import states
from errors import RunError
from files import locked, read_json, remove_leftovers, write_csv
from runs import RunDirectory

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
    "torch",
    "data",
    "run",
)


def table_row(run):
    """(one run's row of results.csv or None, complaints): None where it has not ended or cannot be read."""
    try:
        settings, summary = read_json(run.config), states.read_summary(run)
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
        values |= {name: measured.get(name) for name in MEASURED_COLUMNS}
        values |= {name: settings[name] for name in OWN_COLUMNS if name in settings and name not in values}
        return values | {name: summary[name] for name in OWN_COLUMNS if name in summary}, complaints
    except RunError as error:
        return None, [str(error)]
    except (KeyError, TypeError, AttributeError) as error:
        return None, [f"{run.path}: config.json or summary.json is damaged ({error!r})"]


def _measured(run, summary):
    """(what a run's measurements of its last checkpoint say, those of the Hessian in eval mode alone; complaints)."""
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
        if settings.get("curvature", "hessian") == "hessian" and settings.get("bn_mode", "eval") == "eval":
            measured |= content | {f"{name}_samples": content.get("num_samples")}
    return measured, complaints


def _percent(fraction):
    return None if fraction is None else 100 * fraction


def collect(results_dir):
    """Rebuilds results_dir/results.csv from the run directories, one row a run that has ended. Returns its path.

    What is damaged, and rows that look alike but are of different images, are said on stderr.
    """
    results_dir = Path(results_dir)
    table = results_dir / "results.csv"
    with locked(results_dir / ".results.lock"):
        remove_leftovers(results_dir, ".*.tmp")
        found = [table_row(RunDirectory(path.parent)) for path in sorted(results_dir.glob("*/summary.json"))]
        rows = [row for row, _ in found if row is not None]
        write_csv(table, ORIGINAL_COLUMNS + OWN_COLUMNS, rows)
    complaints = [complaint for _, complaints in found for complaint in complaints]
    for complaint in complaints + _unlike_images(rows):
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
        f"runs on {dataset} with {train_samples:,} images are of {len(prints)} different sets of images: compare only "
        "rows that agree in the column data"
        for (dataset, train_samples, *_), prints in seen.items()
        if len(prints) > 1
    ]

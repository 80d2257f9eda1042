"""The columns of results.csv and their meaning."""

import dataclasses
from pathlib import Path

from config import GROUPED_NORMS, Config
from normstudy.storage.files import write_bytes
from normstudy.storage.measure_columns import OF_CLASS_SIMILARITY, OF_MEASURES, columns_of
from normstudy.storage.run_directory import USUAL_MATRIX

# {column: meaning}, in the order of the table; the original study's come first, so that both tables can be concatenated
ORIGINAL_COLUMNS = {
    "Model": "Network, as in `--arch`",
    "Norm": "Normalization layer, as in `--norm_type`",
    "Dataset": "Data set, as in `--dataset`",
    "Batch Size": "Samples per step, over all processes",
    "Trace": "Trace of the Hessian of the training loss (mean cross-entropy in nats), from `hessian.json`",
    "Eigen Mean": "Mean of the eigenvalues of this Hessian",
    "Eigen Variance": "Variance of its eigenvalues",
    "Max Eigen": "Its largest eigenvalue",
    "Test Accuracy": "Accuracy on the test images in %, after the last complete epoch, in eval mode",
    "Class Similarity": "Mean cosine between the class means of the flattened features, from `class_similarity.json`",
    "Mom & WD": "Whether momentum and weight decay were both above 0",
    "Train Accuracy": "Accuracy on the unaugmented training images in %, after the last epoch, in eval mode",
    "SkipInit": "Whether residual branches were scaled by a learned scalar that starts at 0",
    "Success": "Whether training stayed finite (`status` is `done`)",
    "P Grouping": f"`--p_grouping`, which applies only to {', '.join(GROUPED_NORMS)}; other norms show the default",
    "Gen. Ratio": "Test accuracy divided by train accuracy",
}
SETTING_COLUMNS = (
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
    "optimizer",
    "nesterov",
    "lr",
    "lr_schedule",
    "augment",
    "balance",
    "label_smoothing",
    "clip_grad",
    "weight_decay_on",
    "stop_at_loss",
    "deterministic",
)
IMAGE_COLUMNS = {
    "train_samples": "Number of images trained on",
    "test_samples": "Number of test images",
    "val_fraction": "`--val_fraction`: Fraction of the training set held out for validation",
}
RESULT_COLUMNS = {
    "status": "`done` or `diverged`",
    "test_loss": "Mean cross-entropy in nats per test image, after the last complete epoch, in eval mode",
    "train_loss": "Mean cross-entropy in nats per unaugmented training image, after the last epoch, in eval mode",
    "validation_accuracy": "Accuracy on the validation images, from 0 to 1; empty if none were held out",
    "validation_loss": "Mean cross-entropy in nats per validation image; empty if none were held out",
    "reached_loss": "Whether the training loss reached `--stop_at_loss`; empty if the run had none",
}
MEASUREMENT_COLUMNS = {
    "trace_standard_error": "Standard error of `Trace` over all probes (random vectors)",
    "trace_image_error": "Standard error of `Trace` over blocks of images: the error from the choice of images",
    "trace_total_error": "Standard error of `Trace` over probes and images; empty if measured with `--image_blocks=1`",
    "eigen_mean_standard_error": "Standard error of `Eigen Mean`",
    "eigen_variance_standard_error": "Standard error of `Eigen Variance`",
    "max_eigen_residual": "Residual of `Max Eigen`: an eigenvalue lies within this distance of it",
    "max_eigen_image_error": "Standard error of `Max Eigen` over blocks of images",
    "max_eigen_cross_fitted": "`Max Eigen` with eigenvectors of other images. It is too small on average, `Max Eigen` "
    "too large",
    "min_eigen": "Smallest Ritz value of the Hessian, whose smallest eigenvalue is at most this value",
    "min_eigen_residual": "Residual of `min_eigen`: an eigenvalue lies within this distance of it",
    "hessian_samples": "Number of images on which the Hessian was measured",
    "hessian_dtype": "Floating-point type in which the Hessian was computed",
    **columns_of(OF_CLASS_SIMILARITY),
    "class_similarity_samples": "Number of images on which class similarity was measured",
    "class_similarity_dtype": "Floating-point type in which class similarity was computed",
    **columns_of(OF_MEASURES),
    "measures_samples": "Number of images on which the measures of `measures.json` were computed",
    "measures_dtype": "Floating-point type in which `measures.json` was computed",
}
PROVENANCE_COLUMNS = {
    "seconds": "Time in seconds for training and evaluation, summed over all epochs and continuations",
    "torch": "Version of PyTorch that trained the run; several if `--mix_versions=True` was used",
    "data": "Fingerprint of every image and label used",
    "run": "Name of the run's folder",
}


OPTIONS = {option.name: option.metadata for option in dataclasses.fields(Config)}
COLUMNS = (
    ORIGINAL_COLUMNS
    | {
        name: f"`--{name}`: {OPTIONS[name]['help']}" if OPTIONS[name]["group"] else OPTIONS[name]["help"]
        for name in SETTING_COLUMNS
    }
    | IMAGE_COLUMNS
    | RESULT_COLUMNS
    | MEASUREMENT_COLUMNS
    | PROVENANCE_COLUMNS
)
USUAL_MEASUREMENT = {**USUAL_MATRIX, "split": "train"}
# Other measurements without a tag have the columns `<name>:<key>`, with these keys of their JSON files.
OTHER_KEYS = (
    *("trace", "trace_standard_error", "trace_total_error", "max_eigen", "max_eigen_residual"),
    *("max_eigen_cross_fitted", "min_eigen", "eigen_variance", "num_samples", "dtype"),
)
README_TITLE = "# Results of normalization runs"


def write_explanation(path: Path) -> None:
    """Write the README.md of a results folder, unless a file from another source has that name."""
    stored = path.read_text(encoding="utf-8", errors="replace") if path.exists() else README_TITLE
    if stored.startswith(README_TITLE) and stored != explanation():
        write_bytes(path, explanation().encode())


def explanation() -> str:
    """Return the text of a results folder's README.md."""
    usual = ", ".join(f"`--{flag}={value}`" for flag, value in USUAL_MEASUREMENT.items())
    rows = "".join(f"| {name} | {meaning} |\n" for name, meaning in COLUMNS.items())
    return f"""{README_TITLE}

Each run has its own folder, `<arch>_<norm>_<dataset>_…_seed<seed>_<8 hex>`. The 8 hex digits are a hash of every
setting that changes the numbers. Each run adds its row to `results.csv` when it ends. `python run_report.py` rebuilds
the table from the folders (with `--collect`, it does only that), so the table can be deleted. Rebuilding drops the rows
of folders that were moved away, and keeps the old table as `results.old.csv`. A subfolder with its own `results.csv` is
another study. Three subfolders of `results/` come with the program: the studies `cpu_study` and `converged`, whose
`FINDINGS.md` describe them, and `example`, a trained network on which to try the measuring commands.

## Columns of results.csv
The first {len(ORIGINAL_COLUMNS)} columns are those of the original study's table, so that the two can be concatenated.

An empty cell means that there is no value: it was not measured, or it is undefined or not finite. Most results of a
diverged run are empty. An empty `image_size` means that the images keep their size.

Values from `hessian.json` and `class_similarity.json` are in the table only if they were measured on the last
checkpoint with {usual}. Other matrices, such as those of
`--curvature=ggn` or `--scale=filter`, have columns named after their file and a key in it, such as
`hessian-filter:trace`, at the end of the table. Measurements with a `--tag`, and landscapes, are only in the run's
folder.

| column | meaning |
|---|---|
{rows}"""

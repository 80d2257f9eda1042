"""The columns of results.csv and their meaning."""

import dataclasses
from pathlib import Path

from config import GROUPED_NORMS, Config
from normstudy.storage.files import write_bytes

# {column: its meaning}, in the order of the table; the first are those of the original study, so that both stack
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
)
IMAGE_COLUMNS = {
    "train_samples": "training images that there were",
    "test_samples": "test images that there were",
    "val_fraction": "`--val_fraction`: part of the training set held out for validation",
}
RESULT_COLUMNS = {
    "status": "`done` or `diverged`",
    "test_loss": "mean cross-entropy in nats per test image, eval mode, after the last epoch",
    "train_loss": "the same of the training images, unaugmented",
    "validation_accuracy": "fraction from 0 to 1; empty where nothing was held out",
    "validation_loss": "in nats per image; empty where nothing was held out",
}
MEASUREMENT_COLUMNS = {
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
PROVENANCE_COLUMNS = {
    "seconds": "training and evaluation of all epochs, over all continuations",
    "torch": "version of PyTorch that trained the run; several, where `--mix_versions=True` mixed them",
    "data": "fingerprint of every image and label used",
    "run": "the run's folder",
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
USUAL_MEASUREMENT = {"curvature": "hessian", "bn_mode": "eval", "split": "train"}  # the only one in the table
README_TITLE = "# Results of normalization runs"


def write_explanation(path: Path) -> None:
    """Write the README.md of a results folder, unless a text of someone else has that name."""
    stored = path.read_text(encoding="utf-8", errors="replace") if path.exists() else README_TITLE
    if stored.startswith(README_TITLE) and stored != explanation():
        write_bytes(path, explanation().encode())


def explanation() -> str:
    """The text of a results folder's README.md."""
    usual = ", ".join(f"`--{flag}={value}`" for flag, value in USUAL_MEASUREMENT.items())
    rows = "".join(f"| {name} | {meaning} |\n" for name, meaning in COLUMNS.items())
    return f"""{README_TITLE}

Each run has a folder of its own here, `<arch>_<norm>_<dataset>_…_seed<seed>_<8 hex>`; the hex is a hash of every
setting that changes the numbers. `results.csv` has one row for each run that has ended. It is derived: every run adds
its row, and `python run_report.py --collect` rebuilds all of them from the folders. So it can be deleted, and a folder
that is moved away loses its row then (which `results.old.csv` keeps). A subfolder with a `results.csv` of its own is
another study: the one that comes with the program is `results/cpu_study`, and its `FINDINGS.md` says what it found.

## Columns of results.csv
The first {len(ORIGINAL_COLUMNS)} are those of the original study's table, so that both stack. An empty cell means:
not measured, or measured in another way than with {usual}:
such measurements are in the run's folder alone.

| column | meaning |
|---|---|
{rows}"""

"""Pictures of class similarity: cosines between class means, and class similarity over training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normstudy.plots.style import (
    TEST,
    TRAIN,
    VALIDATION,
    finish_over_training,
    legend_above,
    new_figure,
    printable,
    save_figure,
    tick_whole_numbers,
)
from normstudy.storage import NEURAL_COLLAPSE_KEYS, RunDirectory, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Neural collapse: key in the JSON file, short name, colour; all are 0 in a collapsed network.
COLLAPSE = (
    ("nc1", "nc1: within / between classes", TRAIN),
    ("nc2_equinorm", "nc2: spread of norms", VALIDATION),
    ("nc2_max_angle", "nc2: angles from a simplex", "#7b3294"),
    ("nc3", "nc3: classifier from means", TEST),
    ("nc4", "nc4: nearest mean disagrees", "#4d4d4d"),
)
MOST_NUMBERED = 12  # classes up to which each field of the heatmap shows its cosine
MOST_NAMED = 25  # maximum number of class names along an axis
# Variants of the class means: suffix of the keys in the JSON file, short and long name, colour.
WAYS = (
    ("", "flattened", "flattened features", TRAIN),
    ("_pooled", "pooled", "pooled features", VALIDATION),
    ("_centred", "centred", "centred on the global mean", TEST),
)


def draw_class_similarity(path: Path) -> None:
    """Draw class_similarity.png next to the JSON file `path`, from that file only: the cosines between class means as a
    heatmap and as histograms over all class pairs."""
    content = read_json(path)
    figure, [[heatmap, spread]] = new_figure(1, 2, figsize=(14, 6.2))
    figure.subplots_adjust(left=0.105, right=0.98, bottom=0.19, top=0.78)
    _draw_cosines(figure, heatmap, np.array(content["matrix"]), content["classes"])
    _draw_spread(spread, content)
    ratio = content["within_over_between"]
    variance = "undefined" if ratio is None else f"{ratio:.3g}"
    images = f"{content['num_samples']:,} {content['settings']['split']} images"
    figure.suptitle(
        f"{printable(content['run'])}, epoch {content['epoch']}\n"
        f"{images}, ratio of within-class to between-class variance: {variance}\n{_collapse_line(content)}"
    )
    save_figure(figure, path.with_suffix(".png"))


def _collapse_line(content: Mapping[str, Any]) -> str:
    """Return the values of neural collapse in one line; an empty one for files of earlier versions."""
    if "nc1" not in content:
        return ""
    values = {key: "undefined" if content[key] is None else f"{content[key]:.3g}" for key in NEURAL_COLLAPSE_KEYS}
    return ", ".join(f"{key.replace('_', ' ')} {value}" for key, value in values.items())


def _draw_cosines(figure: Figure, panel: Axes, matrix: np.ndarray, classes: list[str]) -> None:
    """Draw the matrix (classes, classes) as a heatmap, with numbers in the fields if there are few classes."""
    lowest = 0.0 if matrix.min() >= 0 else -1.0  # fixed, so that pictures of different runs compare
    mesh = panel.imshow(matrix, cmap="cividis", vmin=lowest, vmax=1.0, interpolation="nearest")
    figure.colorbar(mesh, ax=panel, label="cosine between the class means of flattened features")
    if len(classes) <= MOST_NUMBERED:
        for row, column in np.ndindex(matrix.shape):
            ink = "black" if matrix[row, column] > (lowest + 1) / 2 else "white"
            number = f"{matrix[row, column]:.2f}".replace("0.", ".").replace("1.00", "1")
            panel.text(column, row, number, ha="center", va="center", color=ink, fontsize="small")
    ticks = range(0, len(classes), max(1, math.ceil(len(classes) / MOST_NAMED)))
    labels = [_shortened(classes[index]) for index in ticks]
    panel.set_xticks(ticks, labels, rotation=90)
    panel.set_yticks(ticks, labels)


def _shortened(name: str) -> str:
    return printable(name if len(name) <= 14 else f"{name[:13]}…")


def _draw_spread(panel: Axes, content: Mapping[str, Any]) -> None:
    """Draw one histogram of the cosines of all class pairs for each variant of the class means."""
    pairs, bins = np.triu_indices(len(content["classes"]), 1), np.linspace(-1, 1, 41).tolist()
    for ending, _, name, colour in WAYS:
        cosines = np.array(content[f"matrix{ending}"])[pairs]
        mean = content[f"class_similarity{ending}"]
        label = f"{name}: mean {mean:.3f}"
        panel.hist(cosines, bins=bins, histtype="step", color=colour, lw=1.6, label=label)
        panel.axvline(mean, color=colour, ls="--", lw=1.2)
    panel.set(xlabel="cosine between two class means (dashed: mean)", ylabel=f"class pairs (of {len(pairs[0])})")
    tick_whole_numbers(panel.yaxis)
    panel.grid(alpha=0.3)
    legend_above(panel, 2)


def draw_class_similarity_over_training(run: RunDirectory, measurement: str) -> None:
    """Draw <measurement>_over_training.png: mean cosines, the variance ratio and neural collapse at each epoch."""
    contents = [read_json(path) for path in run.measurements(measurement)]
    epochs = [content["epoch"] for content in contents]
    figure, [[similarities, variances, collapse]] = new_figure(1, 3, figsize=(16, 4.8))
    figure.subplots_adjust(left=0.055, right=0.985, bottom=0.12, top=0.83)
    for ending, name, _, colour in WAYS:
        values = [content[f"class_similarity{ending}"] for content in contents]
        similarities.plot(epochs, values, color=colour, marker="o", ms=4, label=name)
    ratios = [content["within_over_between"] for content in contents]
    defined = [math.nan if ratio is None else ratio for ratio in ratios]
    variances.plot(epochs, defined, color=TRAIN, marker="o", ms=4, label="within / between")
    for key, name, colour in COLLAPSE:
        found = [content.get(key) for content in contents]
        positive = [math.nan if value is None or value <= 0 else value for value in found]
        collapse.plot(epochs, positive, color=colour, marker="o", ms=4, label=name)
    collapse.set(xlabel="epoch", ylabel="neural collapse (0 if complete)", yscale="log")
    similarities.set(xlabel="epoch", ylabel="class similarity (mean cosine)")
    variances.set(xlabel="epoch", ylabel="within-class / between-class variance", yscale="log")
    figure.suptitle(
        f"{printable(run.path.name)}\nclass similarity over training, {contents[-1]['num_samples']:,} images"
    )
    finish_over_training(figure, (similarities, variances, collapse), run.path / f"{measurement}_over_training.png")

"""Cosines between class means, and class similarity over training."""

import math

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
from normstudy.storage import read_json

MOST_NUMBERED = 12  # classes up to which each cosine stands in its field


def draw_class_similarity(path):
    """class_similarity.png beside its JSON, from it alone: the matrix of cosines, and how its pairs are spread."""
    content = read_json(path)
    matrix, classes = np.array(content["matrix"]), content["classes"]
    figure, axes = new_figure(1, 2, figsize=(14, 6.2))
    figure.subplots_adjust(left=0.105, right=0.98, bottom=0.19, top=0.82, wspace=0.16)
    heatmap, spread = axes[0]
    lowest = 0.0 if matrix.min() >= 0 else -1.0  # the same for all runs, so that pictures compare
    mesh = heatmap.imshow(matrix, cmap="cividis", vmin=lowest, vmax=1.0, interpolation="nearest")
    figure.colorbar(mesh, ax=heatmap, label="cosine between class means of flattened features")
    if len(classes) <= MOST_NUMBERED:
        for row, column in np.ndindex(matrix.shape):
            ink = "black" if matrix[row, column] > (lowest + 1) / 2 else "white"
            number = f"{matrix[row, column]:.2f}".replace("0.", ".").replace("1.00", "1")
            heatmap.text(column, row, number, ha="center", va="center", color=ink, fontsize="small")
    every = max(1, math.ceil(len(classes) / 25))
    ticks = range(0, len(classes), every)
    labels = [_shorten(classes[index]) for index in ticks]
    heatmap.set_xticks(ticks, labels, rotation=90)
    heatmap.set_yticks(ticks, labels)
    pairs = np.triu_indices(len(matrix), 1)
    for key, name, colour in (
        ("", "flattened features", TRAIN),
        ("_pooled", "pooled features", VALIDATION),
        ("_centred", "centred on the global mean", TEST),
    ):
        values = np.array(content[f"matrix{key}"])[pairs]
        mean = content[f"class_similarity{key}"]
        bins, label = np.linspace(-1, 1, 41), f"{name}: mean {mean:.3f}"
        spread.hist(values, bins=bins, histtype="step", color=colour, lw=1.6, label=label)
        spread.axvline(mean, color=colour, ls="--", lw=1.2)
    spread.set(xlabel="cosine between the means of two classes", ylabel=f"pairs of classes (of {len(pairs[0])})")
    tick_whole_numbers(spread.yaxis)
    spread.grid(alpha=0.3)
    legend_above(spread, 2)
    ratio = content["within_over_between"]
    ratio = "undefined" if ratio is None else f"{ratio:.3g}"
    images = f"{content['num_samples']:,} {content['settings']['split']} images"
    figure.suptitle(
        f"{printable(content['run'])}, epoch {content['epoch']}\n{images}, within/between class variance {ratio}"
    )
    save_figure(figure, path.with_suffix(".png"))


def _shorten(name):
    return printable(name if len(name) <= 14 else f"{name[:13]}…")


def draw_class_similarity_over_training(run):
    """class_similarity_over_training.png: the three means and the variance ratio of the measured epochs."""
    contents = [read_json(path) for path in run.measurements("class_similarity")]
    epochs = [content["epoch"] for content in contents]
    figure, axes = new_figure(1, 2, figsize=(11, 4.6))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.13, top=0.84)
    for key, name, colour in (
        ("", "flattened", TRAIN),
        ("_pooled", "pooled", VALIDATION),
        ("_centred", "centred", TEST),
    ):
        values = [content[f"class_similarity{key}"] for content in contents]
        axes[0, 0].plot(epochs, values, color=colour, marker="o", ms=4, label=name)
    ratios = [
        math.nan if content["within_over_between"] is None else content["within_over_between"] for content in contents
    ]
    axes[0, 1].plot(epochs, ratios, color=TRAIN, marker="o", ms=4, label="within / between")
    axes[0, 0].set(xlabel="epoch", ylabel="class similarity (mean cosine)")
    axes[0, 1].set(xlabel="epoch", ylabel="class variance, within / between", yscale="log")
    figure.suptitle(
        f"{printable(run.path.name)}\nclass similarity over training, {contents[-1]['num_samples']:,} images"
    )
    finish_over_training(figure, axes[0], run.path / "class_similarity_over_training.png")

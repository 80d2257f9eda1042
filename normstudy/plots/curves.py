"""Loss and accuracy over epochs."""

import math

from normstudy.plots.style import TEST, TRAIN, VALIDATION, new_figure, printable, save_figure, tick_whole_numbers
from normstudy.storage import read_csv


def draw_curves(run, title):
    """curves.png: loss and accuracy over epochs, from metrics.csv."""
    rows = read_csv(run.metrics)
    epochs = [int(row["epoch"]) for row in rows]
    figure, axes = new_figure(1, 2, figsize=(11, 4.5))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.12, top=0.9)
    for axis, quantity, scale, label in (
        (axes[0, 0], "loss", 1, "cross-entropy (nats per image)"),
        (axes[0, 1], "accuracy", 100, "accuracy (%)"),
    ):
        for split, colour in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
            values = [float(row[f"{split}_{quantity}"] or "nan") * scale for row in rows]
            if any(map(math.isfinite, values)):
                name = "train (running, augmented)" if split == "train" else split
                marker = {"train": "o", "validation": "^", "test": "s"}[split] if len(epochs) <= 30 else None
                axis.plot(epochs, values, color=colour, marker=marker, mfc="none", ms=6, label=name)
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(alpha=0.3)
        tick_whole_numbers(axis.xaxis)
        if axis.lines:
            axis.legend()
        else:
            axis.text(0.5, 0.5, "no epoch was completed", ha="center", va="center", transform=axis.transAxes)
    figure.suptitle(printable(title))
    save_figure(figure, run.curves)

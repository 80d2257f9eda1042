"""The picture of loss and accuracy over epochs."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from normstudy.plots.style import TEST, TRAIN, VALIDATION, new_figure, printable, save_figure, tick_whole_numbers
from normstudy.storage import RunDirectory, read_csv

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FEW_POINTS = 30  # number of points of a line up to which each has a marker


def draw_curves(run: RunDirectory, title: str) -> None:
    """Draw curves.png from metrics.csv: loss and accuracy over epochs."""
    rows = read_csv(run.metrics)
    figure, [[loss, accuracy]] = new_figure(1, 2, figsize=(11, 4.5))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.12, top=0.9)
    _draw_quantity(loss, rows, "loss", 1, "cross-entropy (nats per image)")
    _draw_quantity(accuracy, rows, "accuracy", 100, "accuracy (%)")
    figure.suptitle(printable(title))
    save_figure(figure, run.curves)


def _draw_quantity(panel: Axes, rows: list[dict[str, str]], quantity: str, scale: float, label: str) -> None:
    """Draw the quantity, multiplied by `scale`, as a line for each split that has finite values.

    Epochs in which a split was not evaluated (`--eval_every`) are left out, so that its points are joined.
    """
    for split, name, colour, marker in (
        ("train", "train (running mean, augmented)", TRAIN, "o"),
        ("validation", "validation", VALIDATION, "^"),
        ("test", "test", TEST, "s"),
    ):
        found = [(int(row["epoch"]), float(row[f"{split}_{quantity}"] or "nan") * scale) for row in rows]
        points = [(epoch, value) for epoch, value in found if math.isfinite(value)]
        if points:
            shown = marker if len(points) <= FEW_POINTS else None
            panel.plot(*zip(*points, strict=True), color=colour, marker=shown, mfc="none", ms=6, label=name)
    panel.set(xlabel="epoch", ylabel=label)
    panel.grid(alpha=0.3)
    tick_whole_numbers(panel.xaxis)
    if panel.lines:
        panel.legend()
    else:
        panel.text(0.5, 0.5, "no epoch was completed", ha="center", va="center", transform=panel.transAxes)

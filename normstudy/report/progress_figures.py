"""The picture of the runs in training: one panel per run, over the curves of finished runs of the same kind."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config import GROUPED_NORMS
from normstudy.plots import FEW_POINTS, norm_colour, panel_grid, printable, scale_logarithmically
from normstudy.report.figures import Drawing
from normstudy.report.run_states import Epoch, FileCache, RunStates, TrainingRun
from normstudy.storage import RunDirectory

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MOST_PANELS = 12
MOST_FINISHED = 50  # maximum number of finished runs in a panel
COLUMNS = 4
PANEL_LETTERS = 36  # that fit into a line above a panel
PANEL_SIZE = (2.3, 1.6)  # inches
MIN_WIDTH = 10  # epochs on the x axis, of a run with as many; beyond, a curve takes at least half of the width
QUANTITIES = {"test_accuracy": ("test accuracy (%)", 100.0), "train_loss": ("train loss (nats per image)", 1.0)}
COMPARED = ("arch", "dataset")  # settings that the finished runs in a panel share with its run


def draw_progress(states: RunStates, folder: Path, files: FileCache) -> Drawing:
    """Draw a curve for each run in training, the latest first, at most MOST_PANELS.

    folder: the folder of the runs. The quantity is test accuracy, or train loss if no run has a test accuracy yet.
    """
    runs = states.training[:MOST_PANELS]
    has_accuracy = any(row["test_accuracy"] == row["test_accuracy"] for run in runs for row in run.epochs)
    quantity = "test_accuracy" if has_accuracy else "train_loss"
    label, _ = QUANTITIES[quantity]
    caption = f"{label.partition(' (')[0].capitalize()} of the runs in training, the latest first."
    if len(states.training) > len(runs):
        caption += f" {len(states.training) - len(runs)} more are not shown."
    if not runs:
        return Drawing("progress", caption, lambda: None)
    finished = _finished_runs(states, runs, folder, files)
    if any(finished.values()):
        caption += f" Grey curves are finished runs of the same network and data set (at most {MOST_FINISHED})."
    curves = {kind: [files.epochs(other) for other in others] for kind, others in finished.items()}
    return Drawing("progress", caption, partial(_draw_panels, runs, curves, quantity))


def _draw_panels(
    runs: Sequence[TrainingRun], finished: Mapping[tuple[object, ...], Sequence[Sequence[Epoch]]], quantity: str
) -> Figure:
    """Draw a panel for each run, over the curves of the finished runs of its kind."""
    label, factor = QUANTITIES[quantity]
    columns = min(COLUMNS, len(runs))
    figure, grid = panel_grid(math.ceil(len(runs) / columns), columns, PANEL_SIZE, left=0.55, above=0.5)
    panels = grid.ravel()[: len(runs)]
    for unused in grid.ravel()[len(runs) :]:
        unused.set_axis_off()
    shown = []
    for panel, run in zip(panels, runs, strict=True):
        for epochs in finished[_kind(run.settings)]:
            shown.append(_draw_curve(panel, epochs, quantity, factor, color="#cccccc", lw=0.8, zorder=1))
        shown.append(_draw_run(panel, run, quantity, factor))
    values = np.concatenate(shown)
    for place, panel in enumerate(panels):
        _set_limits(panel, values, quantity == "test_accuracy")
        if place % columns == 0:
            panel.set_ylabel(label, fontsize="small")
        if place + columns >= len(runs):
            panel.set_xlabel("epoch", fontsize="small")
    return figure


def _kind(settings: Any) -> tuple[object, ...]:
    return tuple(settings.get(name) for name in COMPARED)


def _finished_runs(
    states: RunStates, runs: Sequence[TrainingRun], folder: Path, files: FileCache
) -> dict[tuple[object, ...], list[RunDirectory]]:
    """Return {kind: its finished runs, the latest MOST_FINISHED} for the kinds of the runs in training.

    Diverged runs have not finished: their last losses would hide all others.
    """
    found: dict[tuple[object, ...], list[RunDirectory]] = {_kind(run.settings): [] for run in runs}
    latest = sorted(states.ended, key=lambda name: -states.ended[name][1])
    for name in latest:
        run = RunDirectory(folder / name)
        settings = files.json(run.config)
        listed = found.get(_kind(settings))
        if not settings or listed is None or len(listed) == MOST_FINISHED:
            continue
        if files.json(run.summary).get("status") == "done":
            listed.append(run)
    return found


def _draw_run(panel: Axes, run: TrainingRun, quantity: str, factor: float) -> np.ndarray:
    """Draw the curve of a run in training, with its title; return the values that were drawn."""
    settings = run.settings
    has_few = sum(math.isfinite(row[quantity]) for row in run.epochs) <= FEW_POINTS
    marker = "o" if has_few else None
    colour = norm_colour(str(settings.get("norm_type")))
    values = _draw_curve(panel, run.epochs, quantity, factor, color=colour, marker=marker, ms=3, lw=1.6, zorder=2)
    if not len(values):
        panel.text(0.5, 0.5, "no value yet", ha="center", va="center", transform=panel.transAxes, fontsize="small")
    panel.set_title("\n".join(map(printable, _title(run))), fontsize="small")
    panel.set_xlim(0, max(1, run.last_epoch, min(run.total_epochs or MIN_WIDTH, max(2 * run.last_epoch, MIN_WIDTH))))
    return values


def _title(run: TrainingRun) -> list[str]:
    """Return the two lines that tell a run from the others: norm and network, seed and the hash in its name."""
    settings, name = run.settings, run.directory.path.name
    if not settings:
        return [name[:PANEL_LETTERS], name[PANEL_LETTERS:]]
    grouping = f" p={settings['p_grouping']:g}" if settings["norm_type"] in GROUPED_NORMS else ""
    return [
        f"{settings['norm_type']}{grouping}, {settings['arch']}",
        f"seed {settings['seed']}, {name.rpartition('_')[2]}, epoch {run.epochs_of_total}",
    ]


def _draw_curve(panel: Axes, epochs: Sequence[Epoch], quantity: str, factor: float, **style: Any) -> np.ndarray:
    """Draw a quantity over epochs, without epochs that have no value; return the values."""
    points = [(row["epoch"], factor * row[quantity]) for row in epochs if math.isfinite(row[quantity])]
    if not points:
        return np.zeros(0)
    places, values = zip(*points, strict=True)
    panel.plot(places, values, **style)
    return np.array(values)


def _set_limits(panel: Axes, values: np.ndarray, is_accuracy: bool) -> None:
    """Give all panels of the picture the same y axis, and whole numbers as epochs."""
    from matplotlib.ticker import MaxNLocator

    panel.xaxis.set_major_locator(MaxNLocator(5, integer=True, min_n_ticks=1))
    panel.tick_params(labelsize="small")
    panel.grid(alpha=0.3)
    if not len(values):
        return
    if is_accuracy:
        margin = 0.05 * max(values.max() - values.min(), 5)
        panel.set_ylim(max(0, values.min() - margin), min(100, values.max() + margin))
        return
    scale_logarithmically(panel, values)
    low, high = values[values > 0].min(initial=values.max()), values.max()
    panel.set_ylim(low / 1.1, high * 1.1)

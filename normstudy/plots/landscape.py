"""Pictures of the loss along lines through the weights."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normstudy.plots.style import MIN_LOG_RANGE, TEST, TRAIN, new_figure, printable, save_figure
from normstudy.storage import read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

KINDS = (("stored", "running statistics as they are", TRAIN), ("reestimated", "re-estimated at each point", TEST))


def draw_landscape(path: Path) -> None:
    """Draw landscape.png next to the JSON file `path`, from that file only."""
    content = read_json(path)
    figure, [panels] = new_figure(1, 2, figsize=(11, 4.8))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.13, top=0.84)
    title = f"{printable(content['run'])}, epoch {content['epoch']}"
    if "to" in content:
        to = content["to"]
        title += f"\nto {printable(to['run'])}, epoch {to['epoch']}"
        _draw_line(panels, content)
    else:
        title += f"\nloss on {content['num_samples']:,} training images, without augmentation"
        _draw_random(panels[0], content)
        _draw_eigenvector(panels[1], content)
    for panel in panels:
        panel.grid(alpha=0.3)
        panel.locator_params(axis="x", nbins=7)
    figure.suptitle(title)
    save_figure(figure, path.with_suffix(".png"))


def _kinds(values: Mapping[str, object]) -> list[tuple[str, str, str]]:
    """Return (key, label, colour) of each kind of running statistics that the network has."""
    found = [each for each in KINDS if values[each[0]] is not None]
    return found if len(found) > 1 else [("stored", "", TRAIN)]


def _numbers(values: Sequence[float | None]) -> np.ndarray:
    return np.array([math.nan if value is None else value for value in values])


def _draw_random(panel: Axes, content: Mapping[str, Any]) -> None:
    """Draw the loss along each random direction, and its mean over directions."""
    distances, directions = content["distances"], content["random"]
    every = []
    for kind, label, colour in _kinds(directions[0]):
        losses = np.array([_numbers(each[kind]) for each in directions])
        panel.plot(distances, losses.T, color=colour, lw=0.7, alpha=0.4)
        panel.plot(distances, losses.mean(0), color=colour, marker="o", ms=3, label=label or "mean over directions")
        every.append(losses)
    panel.set(xlabel="change of each filter, relative to its norm", ylabel="loss (nats)")
    panel.set_title(f"{len(directions)} random directions, and their mean", fontsize="medium")
    _finish(panel, np.concatenate(every))


def _draw_eigenvector(panel: Axes, content: Mapping[str, Any]) -> None:
    """Draw the loss along the sharpest direction, and the parabola that its first two derivatives give."""
    found, distances = content["eigenvector"], np.array(content["eigenvector"]["distances"])
    every = []
    for kind, label, colour in _kinds(found["losses"]):
        losses = _numbers(found["losses"][kind])
        panel.plot(distances, losses, color=colour, marker="o", ms=3, label=label or "loss")
        every.append(losses)
    fine = np.linspace(distances[0], distances[-1], 201)
    parabola = content["loss"]["stored"] + found["slope"] * fine + found["eigenvalue"] * fine**2 / 2
    shown = np.where((parabola >= 0) & (parabola <= np.nanmax(np.concatenate(every))), parabola, math.nan)
    panel.plot(fine, shown, color="black", ls="--", lw=1, label=f"curvature {found['eigenvalue']:.3g}")
    panel.set(xlabel="change of all filters together, relative to their norms", ylabel="loss (nats)")
    panel.set_title("sharpest direction (filter-scaled Hessian)", fontsize="medium")
    _finish(panel, np.concatenate(every))


def _draw_line(panels: Sequence[Axes], content: Mapping[str, Any]) -> None:
    """Draw loss and accuracy on the line to another network."""
    shares, every = content["shares"], []
    for kind, label, colour in _kinds(content["losses"]):
        losses, barrier = _numbers(content["losses"][kind]), content["barrier"][kind]
        words = "" if barrier is None else f"barrier {barrier:.3g} nats"
        panels[0].plot(shares, losses, color=colour, marker="o", ms=3, label=", ".join(filter(None, (label, words))))
        panels[1].plot(shares, 100 * _numbers(content["accuracies"][kind]), color=colour, marker="o", ms=3, label=label)
        every.append(losses)
    for panel in panels:
        panel.set(xlabel="position on the line (0: this run, 1: the other)")
    panels[0].set(ylabel=f"loss on {content['num_samples']:,} training images (nats)")
    panels[1].set(ylabel="accuracy on these images (%)", ylim=(0, 102))
    _finish(panels[0], np.concatenate(every))


def _finish(panel: Axes, losses: np.ndarray) -> None:
    finite = losses[np.isfinite(losses) & (losses > 0)]
    if len(finite) and finite.max() > 4 * MIN_LOG_RANGE * finite.min():
        panel.set_yscale("log", nonpositive="mask")
    panel.legend(fontsize="small", loc="best")

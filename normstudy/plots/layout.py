"""Panels of a fixed size in inches, and names next to lines and points, where they need no legend."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from normstudy.plots.style import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

NAME_SIZE = 7.0  # points
NAME_HEIGHT = 0.125  # inches from one name to the next
BEHIND_POINTS = 2.05  # zorder above the error bars and below the markers of matplotlib's errorbar
MARKER = 4.0  # pixels around a point that no name should cover
DISTANCES = (5.0, 14.0, 26.0, 40.0)  # pixels between a point and its name
NEAREST = 10  # number of places so near a point that its name needs no line to it
NAME_WIDTH = 1.7  # inches to the right of a panel for the longest name of a norm, with the line that leads to it
LEADER = np.array([0.0, 0.13, 0.18])  # inches to the right of a panel: a line to a name is bent here
NAME_START = 0.21  # inches to the right of a panel


def panel_grid(
    rows: int,
    columns: int,
    size: tuple[float, float],
    left: float = 0.8,
    right: float = 0.12,
    above: float = 0.45,
    below: float = 0.45,
) -> tuple[Figure, np.ndarray]:
    """Return a figure of panels (rows, columns), each `size` inches (width, height) with these margins around it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    width, height = left + size[0] + right, above + size[1] + below
    figure = Figure(figsize=(columns * width, rows * height))
    FigureCanvasAgg(figure)
    panels = np.empty((rows, columns), dtype=object)
    for row, column in np.ndindex(rows, columns):
        corner = (column * width + left) / (columns * width), 1 - (row * height + above + size[1]) / (rows * height)
        panels[row, column] = figure.add_axes((*corner, size[0] / (columns * width), size[1] / (rows * height)))
    return figure, panels


def label_line_ends(panel: Axes) -> None:
    """Write the label of each line to the right of the panel, at the height of the line's end.

    Names that would touch are moved apart as little as possible. A line that ends earlier than others is named at its
    end, and one that ends outside the frame above the panel. Call this when the scales and limits are final.
    """
    lines = [line for line in panel.lines if not str(line.get_label()).startswith("_")]
    panel.get_xlim(), panel.get_ylim()  # matplotlib computes them on demand
    to_panel = panel.transData + panel.transAxes.inverted()
    drawn = [np.asarray(line.get_data(), dtype=float) for line in lines]
    finite = [points[:, np.isfinite(points[1])] for points in drawn]
    last = max((points[0, -1] for points in finite if points.size), default=0.0)
    ends, early, outside = [], [], []
    for line, points in zip(lines, finite, strict=True):
        height = to_panel.transform(points[:, -1])[1] if points.size else np.nan
        if not -0.01 <= height <= 1.01:
            outside.append(printable(line.get_label()))
        elif points[0, -1] >= last:
            ends.append((height, line))
        else:
            early.append((str(line.get_label()), *points[:, -1]))
    ends.sort(key=lambda end: end[0])
    frame = panel.get_window_extent()  # pixels
    wide, high = frame.width / panel.figure.dpi, frame.height / panel.figure.dpi
    places = spread_out([height for height, _ in ends], NAME_HEIGHT / high)
    for (height, line), place in zip(ends, places, strict=True):
        panel.plot(
            1 + LEADER / wide,
            [height, place, place],
            color=line.get_color(),
            lw=1.2,
            clip_on=False,
            transform=panel.transAxes,
            scalex=False,
            scaley=False,
        )
        name = printable(line.get_label())
        panel.text(1 + NAME_START / wide, place, name, va="center", fontsize=NAME_SIZE, transform=panel.transAxes)
    if early:
        label_points(panel, *zip(*early, strict=True))
    if outside:
        words = f"off the scale, or not finite: {', '.join(outside)}"
        panel.text(0, 1.02, words, va="bottom", fontsize=NAME_SIZE, transform=panel.transAxes)


def spread_out(heights: Sequence[float], gap: float) -> list[float]:
    """Move sorted heights until neighbours are at least `gap` apart, as little as possible in total squares.

    The result stays within 0 and 1 if there is room.
    """
    from scipy.optimize import isotonic_regression

    if not len(heights):
        return []
    steps = gap * np.arange(len(heights))
    moved = isotonic_regression(np.array(heights) - steps).x
    places: np.ndarray = np.clip(moved, 0, max(0.0, 1 - steps[-1])) + steps
    return [float(place) for place in places]


def label_points(panel: Axes, names: Sequence[str], x: Sequence[float], y: Sequence[float]) -> None:
    """Write a name near each point, where it covers as little as possible; the scales and limits must be final."""
    panel.get_xlim(), panel.get_ylim()  # matplotlib computes them on demand
    points = panel.transData.transform(np.column_stack([x, y]))  # pixels
    # A white box, not an outline of the letters, which SVG files would store as thousands of curves.
    white = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 0.5}
    texts = [
        panel.text(across, up, printable(name), fontsize=NAME_SIZE, bbox=white, zorder=BEHIND_POINTS)
        for across, up, name in zip(x, y, names, strict=True)
    ]
    sizes = [np.array(text.get_window_extent().size) for text in texts]
    taken = [np.concatenate([point - MARKER, point + MARKER]) for point in points]  # (left, bottom, right, top)
    to_data = panel.transData.inverted()
    for point, text, size in zip(points, texts, sizes, strict=True):
        candidates = point + _places_around(size)
        boxes = np.hstack([candidates, candidates + size])
        outside = np.abs(np.clip(boxes, [*panel.bbox.min] * 2, [*panel.bbox.max] * 2) - boxes).sum(1)
        cost = sum(_overlaps(boxes, other) for other in taken) + 20 * outside + np.arange(len(boxes))
        best = int(np.argmin(cost))
        taken.append(boxes[best])
        text.set_position(tuple(to_data.transform(candidates[best])))
        if best >= NEAREST:
            nearest = np.clip(point, boxes[best][:2], boxes[best][2:])
            leader = to_data.transform([point, nearest])
            panel.plot(*leader.T, color="#777777", lw=0.5, scalex=False, scaley=False)


def _places_around(size: np.ndarray) -> np.ndarray:
    """Return where the lower left corner of a name of this size may be (candidates, 2), from its point, in pixels.

    The places that need no line to the point come first.
    """
    width, height = size
    places = []
    for distance in DISTANCES:
        across = [(distance, -height / 2), (-width - distance, -height / 2)]
        stacked = [
            (shift, up) for up in (distance, -height - distance) for shift in (0.0, -width / 2, -width, -width / 4)
        ]
        places += [*across, *stacked]
    return np.array(places)


def _overlaps(boxes: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the area in which each box (boxes, 4) overlaps the other (4,), in square pixels."""
    low, high = np.maximum(boxes[:, :2], other[:2]), np.minimum(boxes[:, 2:], other[2:])
    area: np.ndarray = np.clip(high - low, 0, None).prod(1)
    return area

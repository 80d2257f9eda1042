"""Pictures of rankings, learning rates and groupings."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from config import ARCHS
from normstudy.plots import (
    NAME_WIDTH,
    PALETTE,
    label_line_ends,
    new_figure,
    norm_colour,
    panel_grid,
    printable,
    tick_logarithmically,
)
from normstudy.report.orders import in_order, ordered_groupings
from normstudy.report.tables import Row

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

WIDTH = 9.6  # inches of the ranking
LETTER = 0.08  # inches, the mean width of the letters of its labels
BATCH_COLOURS = (PALETTE[12], PALETTE[9], PALETTE[5], PALETTE[6])


def draw_ranking(ranking: pd.DataFrame) -> Figure:
    """Draw each norm's advantage over the mean of its cells, with intervals, from the frame of rank_norms.

    Each network has a panel, and another one for the norms' best rates if rates were tuned.
    """
    by_network = {
        f"{network}, at {at}": ranks for (network, at), ranks in ranking.groupby(["network", "at"], sort=False)
    }
    sizes = [len(ranks) for ranks in by_network.values()]
    heights = [0.4 + 0.36 * size for size in sizes]  # inches
    height = sum(heights) + 0.75 * len(sizes)
    figure, panels = new_figure(len(sizes), 1, figsize=(WIDTH, height))
    left = 0.02 + max(len(_counted(row)) for row in ranking.to_dict("records")) * LETTER / WIDTH
    top, hollow = height, "" if np.isfinite(ranking["low"]).all() else "; hollow: without one"
    for (network, ranks), size, own, [panel] in zip(by_network.items(), sizes, heights, panels, strict=True):
        panel.set_position([left, (top - own) / height, 0.97 - left, (own - 0.35) / height])
        top -= own + 0.75
        from_worst = ranks.iloc[::-1].to_dict("records")
        for place, row in enumerate(from_worst):
            spread = np.maximum([[row["advantage"] - row["low"]], [row["high"] - row["advantage"]]], 0)
            fill = None if np.isfinite(row["low"]) else "white"
            style = {"color": norm_colour(row["norm"]), "marker": "o", "mfc": fill, "capsize": 3}
            panel.errorbar(row["advantage"], place, xerr=spread, **style)
        panel.set_yticks(range(size), [_counted(row) for row in from_worst])
        panel.set_ylim(-0.6, size - 0.4)
        panel.axvline(0, color="#888888", lw=0.8)
        panel.set_title(printable(network), fontsize="medium")
        panel.set_xlabel(f"advantage in test accuracy (points, 95 % interval{hollow})")
        panel.grid(alpha=0.3, axis="x")
    return figure


def _counted(row: Row) -> str:
    """Return a norm's name with the number of its runs, and of those that failed."""
    failed = f", {row['failed']} failed" if row["failed"] else ""
    return f"{printable(row['norm'])} (n = {row['n']}{failed})"


def draw_rates(curves: Sequence[pd.DataFrame]) -> Figure | None:
    """Draw test accuracy over the learning rates tried, a panel for each network, a line for each of tuning_curves.

    A ring marks the best rate by validation accuracy. Return None without curves.
    """
    networks = in_order([curve["Model"].iloc[0] for curve in curves], ARCHS)
    if not networks:
        return None
    figure, [panels] = panel_grid(1, len(networks), (4.8, 3.3), left=0.7, right=NAME_WIDTH, below=0.55)
    for network, panel in zip(networks, panels, strict=True):
        shown = [curve for curve in curves if curve["Model"].iloc[0] == network]
        named = set[str]()
        for curve in shown:
            colour, label = norm_colour(curve["Norm"].iloc[0]), str(curve["Label"].iloc[0])
            name = f"_{label}" if label in named else label  # lines whose names begin so are not named
            named.add(label)
            panel.plot(curve["peak_rate"], curve["Test Accuracy"], color=colour, marker="o", ms=4, lw=1.2, label=name)
            best = curve[curve["is_chosen"]]
            panel.plot(best["peak_rate"], best["Test Accuracy"], "o", color=colour, ms=10, mfc="none", label="_")
        panel.set_xscale("log")
        tick_logarithmically(panel.xaxis, np.concatenate([curve["peak_rate"] for curve in shown]))
        panel.set_title(printable(network), fontsize="medium", pad=14)
        panel.set_xlabel("learning rate", fontsize="small")
        panel.set_ylabel("test accuracy (%)", fontsize="small")
        panel.tick_params(labelsize="small")
        panel.grid(alpha=0.3)
        label_line_ends(panel)
    return figure


def draw_groupings(table: pd.DataFrame) -> Figure | None:
    """Draw the test accuracy of grouped norms over their groupings: a panel for each network and data set.

    Return None with fewer than two groupings.
    """
    usable = table[~table["has_failed"] & table["Grouping"].notna()]
    groups = {place: runs for place, runs in usable.groupby(["Model", "Dataset"]) if runs["Grouping"].nunique() > 1}
    if not groups:
        return None
    order = in_order([network for network, _ in groups], ARCHS)
    shown = sorted(groups, key=lambda place: (order.index(place[0]), place[1]))
    columns = min(2, len(shown))
    rows = -(-len(shown) // columns)
    figure, panels = panel_grid(rows, columns, (3.7, 2.1), left=0.7, right=NAME_WIDTH + 0.1, below=0.75)
    for place, panel in zip(shown, panels.flat, strict=False):
        _draw_accuracies(panel, groups[place])
        panel.set_title(printable(", ".join(place)), fontsize="medium", pad=14)
    for panel in panels.flat[len(shown) :]:
        panel.remove()
    return figure


def _draw_accuracies(panel: Axes, runs: pd.DataFrame) -> None:
    """Draw test accuracy over groupings, a line for each norm and batch size."""
    groupings = ordered_groupings(runs["Grouping"].unique())
    sizes = sum(p <= 1 for p in groupings)  # the others are numbers of groups; no line connects the two kinds
    places = np.insert(np.arange(len(groupings)) + 0.5 * (np.arange(len(groupings)) >= sizes), sizes, sizes)
    shades = itertools.cycle(BATCH_COLOURS)
    for (norm, batch), group in runs.groupby(["Norm", "Batch Size"]):
        by = group.groupby("Grouping")["Test Accuracy"].agg(["mean", "std", "count"]).reindex(groupings)
        mean, spread = (np.insert(by[name].to_numpy(), sizes, np.nan) for name in ("mean", "std"))
        colour = next(shades)
        label = f"{norm if runs['Norm'].nunique() > 1 else ''} batch {batch:g} (n = {int(by['count'].sum())})".strip()
        panel.plot(places, mean, color=colour, marker="o", ms=4, lw=1.2, label=label)
        panel.errorbar(places, mean, spread, color=colour, ls="none", capsize=2, lw=0.8)
    panel.set_xticks(np.delete(places, sizes), [f"{p:g}" for p in groupings], rotation=45, fontsize="x-small")
    panel.tick_params(axis="y", labelsize="x-small")
    panel.set_xlabel("p (≤ 1: groups of 1/p channels; > 1: p groups)", fontsize="small")
    panel.set_ylabel("test accuracy (%), mean ± s.d.", fontsize="small")
    panel.grid(alpha=0.3)
    label_line_ends(panel)

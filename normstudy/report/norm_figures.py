"""Pictures of rankings and groupings."""

from __future__ import annotations

import itertools
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from normstudy.plots import PALETTE, network_marker, new_figure, norm_colour, printable
from normstudy.report.figure_legends import ordered_groupings

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
    figure, panels = new_figure(len(sizes), 1, figsize=(9.6, height))
    top = height
    for (network, ranks), size, own, [panel] in zip(by_network.items(), sizes, heights, panels, strict=True):
        panel.set_position([0.31, (top - own) / height, 0.66, (own - 0.35) / height])
        top -= own + 0.75
        from_worst = ranks.iloc[::-1].to_dict("records")
        for place, row in enumerate(from_worst):
            spread = np.maximum([[row["advantage"] - row["low"]], [row["high"] - row["advantage"]]], 0)
            panel.errorbar(row["advantage"], place, xerr=spread, color=norm_colour(row["norm"]), marker="o", capsize=3)
        panel.set_yticks(range(size), [f"{printable(row['norm'])} (n = {row['n']})" for row in from_worst])
        panel.set_ylim(-0.6, size - 0.4)
        panel.axvline(0, color="#888888", lw=0.8)
        panel.set_title(printable(network), fontsize="medium")
        panel.set_xlabel("test accuracy minus the mean over norms in the same cell (points, 95 % interval)")
        panel.grid(alpha=0.3, axis="x")
    return figure


def draw_groupings(table: pd.DataFrame) -> Figure | None:
    """Draw the test accuracy of grouped norms over their groupings; return None with fewer than two groupings."""
    usable = table[~table["has_failed"] & table["Grouping"].notna()]
    groupings = ordered_groupings(usable["Grouping"].unique())
    if len(groupings) < 2:
        return None
    figure, [[panel]] = new_figure(1, 1, figsize=(11, 5.6))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.3, top=0.97)
    shades = itertools.cycle(PALETTE[1:])
    sizes = sum(p <= 1 for p in groupings)  # the others are numbers of groups; no line connects the two kinds
    places = np.insert(np.arange(len(groupings)) + 0.5 * (np.arange(len(groupings)) >= sizes), sizes, sizes)
    for (norm, network, dataset, batch), group in usable.groupby(["Norm", "Model", "Dataset", "Batch Size"]):
        by = group.groupby("Grouping")["Test Accuracy"].agg(["mean", "std", "count"]).reindex(groupings)
        where = ", ".join(map(printable, (norm, network, dataset)))
        label = f"{where}, batch {batch:g} (n = {int(by['count'].sum())})"
        mean, spread = (np.insert(by[name].to_numpy(), sizes, np.nan) for name in ("mean", "std"))
        style = {"color": next(shades), "marker": network_marker(network), "capsize": 2, "lw": 1, "ms": 5}
        panel.errorbar(places, mean, spread, label=label, **style)
    panel.set_xticks(np.delete(places, sizes), [f"{p:g}" for p in groupings])
    panel.set(
        xlabel="p (p ≤ 1: groups of 1/p channels; p > 1: p groups)",
        ylabel="test accuracy (%), mean ± s.d.",
    )
    panel.grid(alpha=0.3)
    figure.legend(loc="lower center", ncols=3, frameon=False, fontsize="small")
    return figure

"""Pictures of rankings and groupings."""

import itertools

import numpy as np

from normstudy.plots import MARKERS, PALETTE, new_figure, norm_colour, printable, save_figure
from normstudy.report.figure_legends import ordered_groupings


def draw_ranking(by_network, path):
    """How far each norm lies above the mean of its cells, with intervals, network by network."""
    sizes = [len(ranks) for ranks in by_network.values()]
    heights = [0.4 + 0.36 * size for size in sizes]
    height = sum(heights) + 0.75 * len(sizes)
    figure, axes = new_figure(len(sizes), 1, figsize=(9.6, height))
    top = height
    for (network, ranks), size, own, [axis] in zip(by_network.items(), sizes, heights, axes, strict=True):
        axis.set_position([0.31, (top - own) / height, 0.66, (own - 0.35) / height])
        top -= own + 0.75
        for place, row in enumerate(ranks.iloc[::-1].to_dict("records")):
            spread = [[row["advantage"] - row["low"]], [row["high"] - row["advantage"]]]
            axis.errorbar(row["advantage"], place, xerr=spread, color=norm_colour(row["Norm"]), marker="o", capsize=3)
        names = [f"{printable(row['Norm'])} (n = {row['n']})" for row in ranks.iloc[::-1].to_dict("records")]
        axis.set_yticks(range(size), names)
        axis.set_ylim(-0.6, size - 0.4)
        axis.axvline(0, color="#888888", lw=0.8)
        axis.set_title(printable(network), fontsize="medium")
        axis.set_xlabel("test accuracy above the mean of norms in the same cell (points, 95 % interval)")
        axis.grid(alpha=0.3, axis="x")
    save_figure(figure, path)


def draw_groupings(table, path):
    """Test accuracy of grouped norms over their groupings, from single channels to one group; False without two."""
    usable = table[~table["has_failed"] & table["Grouping"].notna()]
    groupings = ordered_groupings(usable["Grouping"].unique())
    if len(groupings) < 2:
        return False
    figure, [[axis]] = new_figure(1, 1, figsize=(11, 5.6))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.3, top=0.97)
    shades = itertools.cycle(PALETTE[1:])
    sizes = sum(p <= 1 for p in groupings)  # the others are numbers of groups: no line leads from these to those
    places = np.insert(np.arange(len(groupings)) + 0.5 * (np.arange(len(groupings)) >= sizes), sizes, sizes)
    for (norm, network, dataset, batch), group in usable.groupby(["Norm", "Model", "Dataset", "Batch Size"]):
        by = group.groupby("Grouping")["Test Accuracy"].agg(["mean", "std", "count"]).reindex(groupings)
        where = ", ".join(map(printable, (norm, network, dataset)))
        label = f"{where}, batch {batch:g} (n = {int(by['count'].sum())})"
        mean, spread = (np.insert(by[name].to_numpy(), sizes, np.nan) for name in ("mean", "std"))
        style = {"color": next(shades), "marker": MARKERS.get(network, "^"), "capsize": 2, "lw": 1, "ms": 5}
        axis.errorbar(places, mean, spread, label=label, **style)
    axis.set_xticks(np.delete(places, sizes), [f"{p:g}" for p in groupings])
    axis.set(
        xlabel="p: groups of 1/p channels up to 1, p groups above",
        ylabel="test accuracy (%), mean ± s.d.",
    )
    axis.grid(alpha=0.3)
    figure.legend(loc="lower center", ncols=3, frameon=False, fontsize="small")
    save_figure(figure, path)
    return True

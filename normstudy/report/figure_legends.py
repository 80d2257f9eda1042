"""Legends and orders that the report's pictures share."""

from normstudy.plots import MARKERS, NORM_COLOURS, OTHER_COLOUR, printable


def add_norm_legend(figure, norms, networks, colours=NORM_COLOURS, columns=8):
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colours.get(norm, OTHER_COLOUR), marker="o", ls="none", label=printable(norm))
        for norm in norms
    ]
    handles += [
        Line2D([], [], color="#444444", marker=MARKERS.get(name, "^"), ls="none", mfc="none", label=printable(name))
        for name in networks
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=min(len(handles), columns), frameon=False, fontsize="small"
    )


def legend_size(count, panels):
    """(columns of a legend of `count` names below some panels side by side, inches that it and the labels take)."""
    columns = min(8, 3 * panels)
    return columns, 0.7 + 0.25 * -(-count // columns)


def in_order(values, order):
    values = set(values)
    return [name for name in order if name in values] + sorted(values - set(order), key=str)


def ordered_groupings(groupings):
    """From one channel a group (p = 1) over larger groups to one group (p → 0), then by number of groups."""
    return sorted((p for p in groupings if p <= 1), reverse=True) + sorted(p for p in groupings if p > 1)

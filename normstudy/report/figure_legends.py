"""Legends and orders that several pictures of the report share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

from normstudy.plots import NORM_COLOURS, OTHER_COLOUR, network_marker, printable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOST_COLUMNS = 8


def add_norm_legend(
    figure: Figure,
    norms: Iterable[str],
    networks: Iterable[str] = (),
    colours: Mapping[str, str] = NORM_COLOURS,
    columns: int = MOST_COLUMNS,
) -> None:
    """Put a legend below a figure: the norms by colour, the networks by marker."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colours.get(norm, OTHER_COLOUR), marker="o", ls="none", label=printable(norm))
        for norm in norms
    ]
    handles += [
        Line2D([], [], color="#444444", marker=network_marker(name), ls="none", mfc="none", label=printable(name))
        for name in networks
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=min(len(handles), columns), frameon=False, fontsize="small"
    )


def legend_size(count: int, panels: int) -> tuple[int, float]:
    """Return the columns of a legend with `count` names below a row of panels, and the inches for it and the labels."""
    columns = min(MOST_COLUMNS, 3 * panels)
    return columns, 0.7 + 0.25 * -(-count // columns)


def in_order(values: Iterable[str], order: Sequence[str] | Mapping[str, object]) -> list[str]:
    """Return the distinct values: those named in `order` first, in that order, then the others alphabetically."""
    distinct = set(values)
    return [name for name in order if name in distinct] + sorted(distinct - set(order), key=str)


def ordered_groupings(groupings: Iterable[float]) -> list[float]:
    """Sort groupings from one channel per group (p = 1) to one group (p → 0), then by number of groups (p > 1)."""
    return sorted(groupings, key=lambda p: (p > 1, p if p > 1 else -p))

"""Pictures of what happens inside the networks: spectra, and statistics over depth and training."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config import ARCHS, GROUPED_NORMS, NORM_TYPES
from normstudy.cli import RunError
from normstudy.plots import (
    LOGARITHMIC_PROBES,
    NAME_WIDTH,
    NORM_COLOURS,
    OTHER_COLOUR,
    PROBE_TITLES,
    WEIGHT_TITLES,
    label_line_ends,
    norm_colour,
    panel_grid,
    printable,
    scale_logarithmically,
    spectral_density,
)
from normstudy.report.baseline import BASELINE
from normstudy.report.orders import in_order, ordered_groupings
from normstudy.report.probe_statistics import ProbeStatistics, evenly_chosen
from normstudy.report.tables import Row
from normstudy.storage import CONV_KEYS, PROBE_KEYS, RunDirectory, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

GROUPING_SCALE = "viridis"
PANEL, WIDE_PANEL = (1.85, 1.9), (5.5, 2.2)  # inches, with several networks and with one
FEW_SITES = 20  # sites up to which each has a marker
DENSITY_COLUMNS = 4
NODE_WIDTH = 0.1  # smallest standard deviation in asinh(λ/scale) of the Gaussian drawn for a Ritz value
SCALES_IN_LARGEST = 40  # a network's scale is the power of ten closest to this part of its norms' median λ_max
SPECTRA = {  # {measurement: its name}, those first that can be compared between norms
    "hessian-element": "element-scaled Hessian",
    "hessian-filter": "filter-scaled Hessian",
    "hessian": "Hessian, whose scale differs between norms",
}
DENSITY_KEYS = ("probes", "min_eigen", "max_eigen", "dimension")  # of a measurement, that a density is drawn from
MIN_DENSITY = 0.01  # eigenvalues per unit of asinh(λ/scale); a smaller density is not drawn


def comparable_spectra(runs: Sequence[tuple[Row, RunDirectory]]) -> tuple[str, list[tuple[Row, RunDirectory]]]:
    """Return the first measurement in SPECTRA that several norms have, or else the last, and the runs that have it."""
    name, measured = "", []
    for name in SPECTRA:
        measured = [(row, run) for row, run in runs if run.measurement(name).exists()]
        if len({row["Norm"] for row, _ in measured}) > 1:
            break
    return name, measured


def draw_densities(runs: Sequence[tuple[Row, RunDirectory]], measurement: str = "hessian") -> Figure | None:
    """Draw spectral densities: a panel for each norm (its first run) over a grey BatchNorm, a block for each network.

    Return None if no Hessian was measured in eval mode. measurement: one of SPECTRA.
    """
    found = _first_hessians(runs, measurement)
    networks = in_order([network for network, _ in found], ARCHS)
    if not networks:
        return None
    norms = {network: in_order([norm for own, norm in found if own == network], NORM_TYPES) for network in networks}
    rows = {network: -(-len(norms[network]) // DENSITY_COLUMNS) for network in networks}
    figure, panels = panel_grid(
        sum(rows.values()), DENSITY_COLUMNS, (2.1, 1.3), left=0.75, right=0.08, above=0.3, below=0.4
    )
    first = 0
    for network in networks:
        scale = _scale_of([content["max_eigen"] for (own, _), content in found.items() if own == network])
        block = panels[first : first + rows[network]]
        first += rows[network]
        used = [(norm, panel, found[network, norm]) for norm, panel in zip(norms[network], block.flat, strict=False)]
        for norm, panel, content in used:
            if norm != BASELINE and (network, BASELINE) in found:
                _draw_density(panel, found[network, BASELINE], scale, "#bbbbbb", lw=2.5)
            _draw_density(panel, content, scale, norm_colour(norm))
            panel.set_title(f"{network}: {printable(norm)}", fontsize="small")
        lowest, highest = _common_limits([panel for _, panel, _ in used])
        for place, panel in enumerate(block.flat):
            if place >= len(used):
                panel.remove()
                continue
            panel.set(xlim=lowest, ylim=highest)
            is_leftmost, is_lowest = place % DENSITY_COLUMNS == 0, place + DENSITY_COLUMNS >= len(used)
            _label_eigenvalues(panel, scale, is_leftmost, is_lowest)
    return figure


def _scale_of(largest: Sequence[float]) -> float:
    """Return the eigenvalue up to which the axis is linear, from the largest eigenvalues of a network's norms."""
    middle = float(np.median(largest))
    return 10.0 ** round(math.log10(middle / SCALES_IN_LARGEST)) if middle > 0 else 1.0


def _common_limits(panels: Sequence[Axes]) -> tuple[tuple[float, float], tuple[float, float]]:
    """Return the limits of x and y that hold all lines of these panels."""
    lines = np.concatenate([np.asarray(line.get_data(), dtype=float) for panel in panels for line in panel.lines], 1)
    (x_low, y_low), (x_high, y_high) = np.nanmin(lines, 1), np.nanmax(lines, 1)
    return (float(x_low), float(x_high)), (float(y_low), 3 * float(y_high))


def _first_hessians(
    runs: Sequence[tuple[Row, RunDirectory]], measurement: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return {(network, norm): content of the JSON file} of the first run with this measurement in eval mode.

    Only evenly_chosen runs are read. Damaged files are named on stderr and left out.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row, run in evenly_chosen(runs):
        path = run.measurement(measurement)
        if path.exists() and (row["Model"], row["Norm"]) not in found:
            content = _read_hessian(path)
            if content is not None:
                found[row["Model"], row["Norm"]] = content
    return found


def _read_hessian(path: Path) -> dict[str, Any] | None:
    """Return what _draw_density needs, or None if the file is not of a Hessian in eval mode, or is damaged."""
    try:
        content = read_json(path)
        settings = content["settings"]
        is_usual = settings["curvature"] == "hessian" and settings["bn_mode"] == "eval"
        return {name: content[name] for name in DENSITY_KEYS} if is_usual else None
    except RunError as error:
        reason = str(error)
    except (KeyError, TypeError) as error:
        reason = f"{path} is damaged ({error!r})"
    print(f"left out of the densities: {reason}", file=sys.stderr)
    return None


def _draw_density(panel: Axes, content: Mapping[str, Any], scale: float, colour: str, lw: float = 1.2) -> None:
    """Draw the number of eigenvalues per unit of asinh(λ/scale), with gaps below MIN_DENSITY."""
    probes = [probe | {"nodes": np.arcsinh(np.array(probe["nodes"]) / scale)} for probe in content["probes"]]
    low, high = (np.arcsinh(content[name] / scale) for name in ("min_eigen", "max_eigen"))
    points = np.linspace(low - 7 * NODE_WIDTH, high + 7 * NODE_WIDTH, 1000)
    density = content["dimension"] * spectral_density(probes, points, NODE_WIDTH).mean(0)
    panel.plot(scale * np.sinh(points), np.where(density < MIN_DENSITY, np.nan, density), color=colour, lw=lw)


def _label_eigenvalues(panel: Axes, scale: float, is_leftmost: bool, is_lowest: bool) -> None:
    """Scale the axes of a spectrum, with ticks at powers of ten on both sides of zero; label those at the edge."""
    from matplotlib.ticker import FixedLocator, LogLocator, NullLocator

    limits = panel.get_xlim(), panel.get_ylim()
    panel.set_xscale("asinh", linear_width=scale)
    panel.set(yscale="log", xlim=limits[0], ylim=limits[1])
    end = max(map(abs, limits[0]))
    powers = [scale * 10**power for power in range(0, 12, 1 if end < 1000 * scale else 2)]
    nearest = powers[0] if end < powers[1] else powers[1]  # to zero, with a label that does not touch that of zero
    panel.xaxis.set_major_locator(FixedLocator([*(-power for power in reversed(powers)), 0, *powers]))
    panel.xaxis.set_major_formatter(
        lambda value, _: f"{value:,.6g}".replace("-", "−") if value == 0 or abs(value) >= nearest else ""
    )
    panel.xaxis.set_minor_locator(NullLocator())
    panel.yaxis.set_major_locator(LogLocator(numticks=5))
    panel.yaxis.set_minor_locator(NullLocator())
    panel.tick_params(labelsize="x-small", labelleft=is_leftmost)
    panel.set_xlabel("eigenvalue λ" if is_lowest else "", fontsize="small")
    unit = "asinh λ" if scale == 1 else f"asinh(λ/{scale:g})"
    panel.set_ylabel(f"eigenvalues\nper unit of {unit}" if is_leftmost else "", fontsize="x-small")
    panel.grid(alpha=0.3)


def draw_groupings_of_norm(probed: Sequence[tuple[Row, ProbeStatistics]], moment: str) -> Figure | None:
    """Draw the similarity of samples over depth for each grouping of the norm with the most groupings.

    Networks with one grouping are left out. Return None if no norm has two groupings.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    found = {norm: {row["Grouping"] for row, _ in probed if row["Norm"] == norm} for norm in GROUPED_NORMS}
    norm = max(found, key=lambda norm: len(found[norm]))
    groupings = ordered_groupings(found[norm])
    scale = colormaps[GROUPING_SCALE](np.linspace(0, 0.95, len(groupings)))
    colours = {_grouping_name(norm, p): to_hex(shade) for p, shade in zip(groupings, scale, strict=True)}
    of_norm = [(row, part) for row, part in probed if row["Norm"] == norm]
    several = {
        network
        for network in {row["Model"] for row, _ in of_norm}
        if len({row["Grouping"] for row, _ in of_norm if row["Model"] == network}) > 1
    }
    own = [
        (row | {"Norm": _grouping_name(norm, row["Grouping"])}, part)
        for row, part in of_norm
        if row["Model"] in several
    ]
    return draw_statistics(own, moment, ("activation_variance", "cosine_similarity", "stable_rank"), colours)


def _grouping_name(norm: str, p: float) -> str:
    return f"{norm} p={p:g}"


def draw_statistics(
    probed: Sequence[tuple[Row, ProbeStatistics]],
    moment: str,
    keys: Sequence[str] = PROBE_KEYS,
    colours: Mapping[str, str] = NORM_COLOURS,
) -> Figure | None:
    """Draw layer statistics, averaged over a norm's runs: a row of panels for each, a column for each network.

    The x axis is depth at the "first" or the "last" iteration, with the last site of each block. If `moment` is "mean",
    it is the iteration, and the values are means over sites. Runs that lack a statistic are left out. Return None
    without runs.
    """
    probed = [(row, part) for row, part in probed if all(key in part.values for key in keys)]
    networks = in_order([row["Model"] for row, _ in probed], ARCHS)
    if not networks:
        return None
    norms = in_order([row["Norm"] for row, _ in probed], list(colours))
    size = PANEL if len(networks) > 1 else WIDE_PANEL
    figure, panels = panel_grid(len(keys), len(networks), size, left=0.75, right=NAME_WIDTH)
    for key, row_of_panels in zip(keys, panels, strict=True):
        for network, panel in zip(networks, row_of_panels, strict=True):
            framed = []
            for norm in norms:
                own = [(row, part) for row, part in probed if (row["Model"], row["Norm"]) == (network, norm)]
                if own:
                    line = _draw_mean(panel, own, key, moment, colours.get(norm, OTHER_COLOUR), norm)
                    framed += [line] if not all(row["has_failed"] for row, _ in own) else []
            _scale_and_frame(panel, framed or panel.lines, key in LOGARITHMIC_PROBES)
            panel.tick_params(labelsize="x-small")
            panel.grid(alpha=0.3)
            label_line_ends(panel)
        title, kind = (PROBE_TITLES | WEIGHT_TITLES)[key], "convolutions" if key in CONV_KEYS else "activations"
        is_clear = key in WEIGHT_TITLES or title.startswith("activation")
        row_of_panels[0].set_ylabel(title if is_clear else f"{title}\n({kind})", fontsize="small")
    for network, top, bottom_panel in zip(networks, panels[0], panels[-1], strict=True):
        top.set_title(network, pad=14)
        bottom_panel.set_xlabel("iteration" if moment == "mean" else "layer (1 = nearest the input)", fontsize="small")
    return figure


def _draw_mean(
    panel: Axes, runs: Sequence[tuple[Row, ProbeStatistics]], key: str, moment: str, colour: str, name: str
) -> Line2D:
    """Draw the mean of a statistic over the runs whose value is finite at that point.

    Over iterations, it ends where the first run ends that did not diverge: the mean of the others would jump there.
    """
    parts = [part for _, part in runs]
    if moment == "mean":
        x = max((part.iterations for part in parts), key=lambda iterations: iterations[-1])
        x = x[x <= min((part.iterations[-1] for row, part in runs if not row["has_failed"]), default=x[-1])]
        curves = [np.interp(x, part.iterations, part.values[key][moment], right=np.nan) for part in parts]
    else:
        kind = "conv" if key in CONV_KEYS else "activation" if key in PROBE_KEYS else "weight"
        chosen = last_of_blocks(parts[0].sites[kind]) if kind in parts[0].sites else slice(None)
        curves = [part.values[key][moment][chosen] for part in parts]
        x = np.arange(1, len(parts[0].values[key][moment]) + 1)[chosen]
    stacked = np.array(curves)
    is_finite = np.isfinite(stacked)
    mean = np.where(is_finite, stacked, 0).sum(0) / np.maximum(is_finite.sum(0), 1)
    mean = np.where(is_finite.any(0), mean, np.nan)
    marker = "." if moment != "mean" and len(x) <= FEW_SITES else None
    [line] = panel.plot(x, mean, color=colour, lw=1.2, marker=marker, ms=4, label=name)
    return line


def last_of_blocks(sites: Sequence[str]) -> list[int]:
    """Return the places of the last site of each block, shortcuts aside; a site outside the blocks is its own."""
    places: dict[str, int] = {}
    for place, name in enumerate(sites):
        if "shortcut" not in name:
            places[".".join(name.split(".")[:2]) if name.startswith("blocks.") else name] = place
    return sorted(places.values())


def _scale_and_frame(panel: Axes, framed: Iterable[Line2D], is_logarithmic: bool) -> None:
    """Fit the y axis to these lines; others, of norms whose runs all diverged, may leave it.

    If is_logarithmic, the scale is logarithmic where the values span a large range (see scale_logarithmically).
    """
    values = np.concatenate([np.asarray(line.get_ydata(), dtype=float) for line in framed])
    values = values[np.isfinite(values)]
    if is_logarithmic:
        scale_logarithmically(panel, values)
        values = values[values > 0] if panel.get_yscale() == "log" else values
    scale = panel.yaxis.get_transform()
    values = scale.transform(values)
    if len(values) and np.ptp(values) > 0:
        margin = 0.05 * np.ptp(values)
        panel.set_ylim(*scale.inverted().transform([values.min() - margin, values.max() + margin]))

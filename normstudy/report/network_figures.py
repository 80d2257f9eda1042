"""Pictures of what happens inside the networks: spectra, and statistics over depth and training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from config import ARCHS, GROUPED_NORMS, NORM_TYPES
from normstudy.plots import (
    LOGARITHMIC_PROBES,
    NORM_COLOURS,
    OTHER_COLOUR,
    PROBE_TITLES,
    WEIGHT_TITLES,
    new_figure,
    norm_colour,
    scale_logarithmically,
    spectral_density,
)
from normstudy.report.figure_legends import add_norm_legend, in_order, legend_size, ordered_groupings
from normstudy.report.probe_statistics import ProbeStatistics, evenly_chosen
from normstudy.report.tables import Row
from normstudy.storage import CONV_KEYS, PROBE_KEYS, RunDirectory, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

GROUPING_SCALE = "viridis"
NODE_WIDTH = 0.1  # smallest standard deviation in asinh λ of the Gaussian drawn for a Ritz value
SPECTRA = {  # {measurement: its name}, those first that can be compared between norms
    "hessian-element": "element-scaled Hessian",
    "hessian-filter": "filter-scaled Hessian",
    "hessian": "Hessian, whose scale differs between norms",
}
MIN_DENSITY = 0.01  # eigenvalues per unit of asinh λ; a smaller density is not drawn


def comparable_spectra(runs: Sequence[tuple[Row, RunDirectory]]) -> tuple[str, list[tuple[Row, RunDirectory]]]:
    """Return the first measurement in SPECTRA that several norms have, or else the last, and the runs that have it."""
    name, measured = "", []
    for name in SPECTRA:
        measured = [(row, run) for row, run in runs if run.measurement(name).exists()]
        if len({row["Norm"] for row, _ in measured}) > 1:
            break
    return name, measured


def draw_densities(runs: Sequence[tuple[Row, RunDirectory]], measurement: str = "hessian") -> Figure | None:
    """Draw spectral densities: a panel for each network, a line for each norm (its first run).

    Return None if no Hessian was measured in eval mode. measurement: one of SPECTRA.
    """
    found = _first_hessians(runs, measurement)
    networks = in_order([network for network, _ in found], ARCHS)
    if not networks:
        return None
    norms = in_order([norm for _, norm in found], NORM_TYPES)
    columns, bottom = legend_size(len(norms), len(networks))
    height = 3.6 + bottom
    figure, [panels] = new_figure(1, len(networks), figsize=(6.4 * len(networks), height))
    figure.subplots_adjust(left=0.1 / len(networks) + 0.02, right=0.985, bottom=bottom / height, top=1 - 0.35 / height)
    for panel, network in zip(panels, networks, strict=True):
        for (own_network, norm), content in found.items():
            if own_network == network:
                _draw_density(panel, content, norm_colour(norm))
        _label_eigenvalues(panel)
        panel.set(title=network, ylabel="eigenvalues per unit of asinh λ")
        panel.grid(alpha=0.3)
    add_norm_legend(figure, norms, columns=columns)
    return figure


def _first_hessians(
    runs: Sequence[tuple[Row, RunDirectory]], measurement: str
) -> dict[tuple[str, str], dict[str, Any]]:
    """Return {(network, norm): content of the JSON file} of the first run with this measurement in eval mode.

    Only evenly_chosen runs are read.
    """
    found: dict[tuple[str, str], dict[str, Any]] = {}
    for row, run in evenly_chosen(runs):
        path = run.measurement(measurement)
        if path.exists() and (row["Model"], row["Norm"]) not in found:
            content = read_json(path)
            if content["settings"]["curvature"] == "hessian" and content["settings"]["bn_mode"] == "eval":
                found[row["Model"], row["Norm"]] = content
    return found


def _draw_density(panel: Axes, content: Mapping[str, Any], colour: str) -> None:
    """Draw the number of eigenvalues per unit of asinh λ, with gaps below MIN_DENSITY."""
    probes = [probe | {"nodes": np.arcsinh(probe["nodes"])} for probe in content["probes"]]
    low, high = np.arcsinh(content["min_eigen"]), np.arcsinh(content["max_eigen"])
    points = np.linspace(low - 7 * NODE_WIDTH, high + 7 * NODE_WIDTH, 1000)
    density = content["dimension"] * spectral_density(probes, points, NODE_WIDTH).mean(0)
    panel.plot(np.sinh(points), np.where(density < MIN_DENSITY, np.nan, density), color=colour, lw=1.2)


def _label_eigenvalues(panel: Axes) -> None:
    """Scale and label the axes of a spectrum, with ticks at the powers of ten on both sides of zero."""
    from matplotlib.ticker import FixedLocator, NullLocator

    panel.set(xscale="asinh", yscale="log", xlabel="eigenvalue λ")
    powers = [10**power for power in range(12)]
    panel.xaxis.set_major_locator(FixedLocator([*(-power for power in reversed(powers)), 0, *powers]))
    panel.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace("-", "−"))
    panel.xaxis.set_minor_locator(NullLocator())


def draw_groupings_of_norm(probed: Sequence[tuple[Row, ProbeStatistics]], moment: str) -> Figure | None:
    """Draw the similarity of samples over depth for each grouping of the norm with the most groupings.

    Return None if no norm has two groupings.
    """
    from matplotlib import colormaps
    from matplotlib.colors import to_hex

    found = {norm: {row["Grouping"] for row, _ in probed if row["Norm"] == norm} for norm in GROUPED_NORMS}
    norm = max(found, key=lambda norm: len(found[norm]))
    groupings = ordered_groupings(found[norm])
    if len(groupings) < 2:
        return None
    scale = colormaps[GROUPING_SCALE](np.linspace(0, 0.95, len(groupings)))
    colours = {f"{norm} p = {p:g}": to_hex(shade) for p, shade in zip(groupings, scale, strict=True)}
    own = [(row | {"Norm": f"{norm} p = {row['Grouping']:g}"}, part) for row, part in probed if row["Norm"] == norm]
    return draw_statistics(own, moment, ("activation_variance", "cosine_similarity", "stable_rank"), colours)


def draw_statistics(
    probed: Sequence[tuple[Row, ProbeStatistics]],
    moment: str,
    keys: Sequence[str] = PROBE_KEYS,
    colours: Mapping[str, str] = NORM_COLOURS,
) -> Figure | None:
    """Draw layer statistics, averaged over a norm's runs: a row of panels for each, a column for each network.

    The x axis is depth at the "first" or the "last" iteration. If `moment` is "mean", it is the iteration, and the
    values are means over sites. Runs that lack a statistic are left out. Return None without runs.
    """
    probed = [(row, part) for row, part in probed if all(key in part.values for key in keys)]
    networks = in_order([row["Model"] for row, _ in probed], ARCHS)
    if not networks:
        return None
    norms = in_order([row["Norm"] for row, _ in probed], list(colours))
    columns, bottom = legend_size(len(norms), len(networks))
    height = 3 * len(keys) + bottom
    figure, panels = new_figure(len(keys), len(networks), figsize=(5.6 * len(networks) + 0.6, height))
    figure.subplots_adjust(
        left=0.16 / len(networks), right=0.985, bottom=bottom / height, top=1 - 0.35 / height, hspace=0.3
    )
    for key, row_of_panels in zip(keys, panels, strict=True):
        for network, panel in zip(networks, row_of_panels, strict=True):
            for norm in norms:
                own = [part for row, part in probed if (row["Model"], row["Norm"]) == (network, norm)]
                if own:
                    colour = colours.get(norm, OTHER_COLOUR)
                    _draw_mean(panel, own, key, moment, colour)
            _scale_and_frame(panel, key in LOGARITHMIC_PROBES)
            panel.grid(alpha=0.3)
        title, kind = (PROBE_TITLES | WEIGHT_TITLES)[key], "convolutions" if key in CONV_KEYS else "activations"
        is_clear = key in WEIGHT_TITLES or title.startswith("activation")
        row_of_panels[0].set_ylabel(title if is_clear else f"{title} ({kind})")
    for network, top, bottom_panel in zip(networks, panels[0], panels[-1], strict=True):
        top.set_title(network)
        bottom_panel.set_xlabel("iteration" if moment == "mean" else "layer (1 = nearest the input)")
    add_norm_legend(figure, norms, colours=colours, columns=columns)
    return figure


def _draw_mean(panel: Axes, parts: Sequence[ProbeStatistics], key: str, moment: str, colour: str) -> None:
    """Draw the mean of a statistic over the runs whose value is finite at that point."""
    if moment == "mean":  # a run that diverged ends early
        x = max((part.iterations for part in parts), key=lambda iterations: iterations[-1])
        curves = [np.interp(x, part.iterations, part.values[key][moment], right=np.nan) for part in parts]
    else:
        curves = [part.values[key][moment] for part in parts]
        x = np.arange(1, len(curves[0]) + 1)
    stacked = np.array(curves)
    is_finite = np.isfinite(stacked)
    mean = np.where(is_finite, stacked, 0).sum(0) / np.maximum(is_finite.sum(0), 1)
    mean = np.where(is_finite.any(0), mean, np.nan)
    panel.plot(x, mean, color=colour, lw=1.2, marker=None if moment == "mean" else ".")


def _scale_and_frame(panel: Axes, is_logarithmic: bool) -> None:
    """Fit the y axis to the lines that reach at least half of the longest; lines of runs that diverged may leave it.

    If is_logarithmic, the scale is logarithmic where the values span a large range (see scale_logarithmically).
    """
    lines = [np.asarray(line.get_data(), dtype=float) for line in panel.lines]  # (2, points)
    longest = max(x[-1] for x, _ in lines)
    values = np.concatenate([y for x, y in lines if x[-1] >= longest / 2])
    values = values[np.isfinite(values)]
    if is_logarithmic:
        scale_logarithmically(panel, values)
        values = values[values > 0] if panel.get_yscale() == "log" else values
    scale = panel.yaxis.get_transform()
    values = scale.transform(values)
    if len(values) and np.ptp(values) > 0:
        margin = 0.05 * np.ptp(values)
        panel.set_ylim(*scale.inverted().transform([values.min() - margin, values.max() + margin]))

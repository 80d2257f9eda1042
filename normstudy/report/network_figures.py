"""Pictures of what happens inside the networks: spectra, and statistics over depth and training."""

import numpy as np

from config import ARCHS, GROUPED_NORMS, NORM_TYPES
from normstudy.plots import (
    LOGARITHMIC_PROBES,
    NORM_COLOURS,
    OTHER_COLOUR,
    PROBE_TITLES,
    new_figure,
    norm_colour,
    save_figure,
    scale_logarithmically,
    spectral_density,
)
from normstudy.report.figure_legends import add_norm_legend, in_order, legend_size, ordered_groupings
from normstudy.storage import CONV_KEYS, PROBE_KEYS, read_json, read_probes_summary

MOST_RUNS = 1000  # whose probe dicts and spectra are read, evenly chosen
GROUPING_SCALE = "viridis"
NODE_WIDTH = 0.1  # in asinh λ, of a Ritz value in the densities side by side
FEWEST = 0.01  # eigenvalues per unit of it that are still drawn


def evenly_chosen(runs_of_table, most=MOST_RUNS):
    """Evenly chosen ones of [(row, RunDirectory)]."""
    return runs_of_table[:: max(1, -(-len(runs_of_table) // most))]


def draw_densities(runs_of_table, path):
    """Spectral densities side by side: a panel a network, a line a norm (its first run). False where none is there."""
    from matplotlib.ticker import FixedLocator, NullLocator

    found = {}
    for row, run in evenly_chosen(runs_of_table):
        json = run.measurement("hessian")
        if json.exists() and (row["Model"], row["Norm"]) not in found:
            content = read_json(json)
            if content["settings"]["curvature"] == "hessian" and content["settings"]["bn_mode"] == "eval":
                found[row["Model"], row["Norm"]] = content
    networks = in_order([network for network, _ in found], ARCHS)
    if not networks:
        return False
    named = in_order([norm for _, norm in found], NORM_TYPES)
    columns, bottom = legend_size(len(named), len(networks))
    height = 3.6 + bottom
    figure, axes = new_figure(1, len(networks), figsize=(6.4 * len(networks), height))
    figure.subplots_adjust(left=0.1 / len(networks) + 0.02, right=0.985, bottom=bottom / height, top=1 - 0.35 / height)
    for axis, network in zip(axes.flat, networks, strict=True):
        for (arch, norm), content in found.items():
            if arch == network:
                probes = [probe | {"nodes": np.arcsinh(probe["nodes"]).tolist()} for probe in content["probes"]]
                low, high = (np.arcsinh(content[name]) for name in ("min_eigen", "max_eigen"))
                points = np.linspace(low - 7 * NODE_WIDTH, high + 7 * NODE_WIDTH, 1000)
                density = content["dimension"] * spectral_density(probes, points, NODE_WIDTH).mean(0)
                axis.plot(np.sinh(points), np.where(density < FEWEST, np.nan, density), color=norm_colour(norm), lw=1.2)
        axis.set(xscale="asinh", yscale="log", xlabel="eigenvalue λ", title=network)
        powers = [10**power for power in range(12)]
        axis.xaxis.set_major_locator(FixedLocator([*(-power for power in reversed(powers)), 0, *powers]))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace("-", "−"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylabel("eigenvalues per unit of asinh λ")
        axis.grid(alpha=0.3)
    add_norm_legend(figure, named, [], columns=columns)
    save_figure(figure, path)
    return True


def read_probe_statistics(runs_of_table):
    """[(row, {"first", "last", "iteration", key: …})] of runs with probe dicts: statistics by site at the first and the
    last iteration, and means over sites by iteration."""
    found = []
    for row, run in evenly_chosen(runs_of_table):
        content = read_probes_summary(run)
        if content is not None:
            part = {"sites": content["sites"], "iteration": np.array(content["iteration"])}
            for key in PROBE_KEYS:
                part[key] = {name: np.array(values, dtype=float) for name, values in content[key].items()}
            found.append((row, part))
    return found


def draw_depth(probed, moment, keys, path):
    """Statistics over depth, at the first or the last iteration: columns are networks, a line is a norm's mean."""
    return _draw_statistics(probed, path, lambda part, key: part[key][moment], "site (1 = nearest the input)", keys)


def draw_iterations(probed, path):
    """Each statistic over iterations, as the mean over sites."""
    return _draw_statistics(probed, path, lambda part, key: part[key]["mean"], "iteration", is_over_time=True)


def draw_depth_of_groupings(probed, moment, path):
    """Likeness of samples over depth for each grouping of the grouped norm with most; False where there are no two."""
    from matplotlib import colormaps

    found = {norm: {row["Grouping"] for row, _ in probed if row["Norm"] == norm} for norm in GROUPED_NORMS}
    norm = max(found, key=lambda norm: len(found[norm]))
    own = [(row, part) for row, part in probed if row["Norm"] == norm]
    groupings = ordered_groupings({row["Grouping"] for row, _ in own})
    if len(groupings) < 2:
        return False
    scale = colormaps[GROUPING_SCALE](np.linspace(0, 0.95, len(groupings)))
    colours = {f"{norm} p = {p:g}": shade for p, shade in zip(groupings, scale, strict=True)}
    named = [({**row, "Norm": f"{norm} p = {row['Grouping']:g}"}, part) for row, part in own]
    keys = ("activation_variance", "cosine_similarity", "stable_rank")
    values_of, xlabel = (lambda part, key: part[key][moment]), "site (1 = nearest the input)"
    return _draw_statistics(named, path, values_of, xlabel, keys, colours)


def _scale_and_frame(axis, is_logarithmic):
    """A logarithmic scale for what spans a magnitude, and limits for the lines that go on to the end, which those of
    runs that diverged leave."""
    longest = max(line.get_xdata()[-1] for line in axis.lines)
    lasting = [line.get_ydata() for line in axis.lines if line.get_xdata()[-1] >= longest / 2]
    values = np.concatenate(lasting).astype(float)
    values = values[np.isfinite(values)]
    if is_logarithmic:
        scale_logarithmically(axis, values)
        values = values[values > 0] if axis.get_yscale() == "log" else values
    scale = axis.yaxis.get_transform()
    values = scale.transform(values)
    if len(values) and np.ptp(values) > 0:
        margin = 0.05 * np.ptp(values)
        axis.set_ylim(scale.inverted().transform([values.min() - margin, values.max() + margin]))


def _draw_statistics(probed, path, values_of, xlabel, keys=PROBE_KEYS, colours=NORM_COLOURS, is_over_time=False):
    networks = in_order({row["Model"] for row, _ in probed}, ARCHS)
    if not networks:
        return False
    named = in_order({about["Norm"] for about, _ in probed}, colours)
    columns, bottom = legend_size(len(named), len(networks))
    height = 3 * len(keys) + bottom
    figure, axes = new_figure(len(keys), len(networks), figsize=(5.6 * len(networks) + 0.6, height))
    figure.subplots_adjust(
        left=0.16 / len(networks), right=0.985, bottom=bottom / height, top=1 - 0.35 / height, hspace=0.3
    )
    for row, key in enumerate(keys):
        for column, network in enumerate(networks):
            axis = axes[row, column]
            by_norm = {}
            for about, part in probed:
                if about["Model"] == network:
                    by_norm.setdefault(about["Norm"], []).append((part["iteration"], values_of(part, key)))
            for norm in in_order(by_norm, colours):
                runs = by_norm[norm]
                if is_over_time:  # one that diverged ends early
                    x = max((iterations for iterations, _ in runs), key=lambda iterations: iterations[-1])
                    stacked = np.array([np.interp(x, *run, right=np.nan) for run in runs])
                else:
                    x = np.arange(1, len(runs[0][1]) + 1)
                    stacked = np.array([values for _, values in runs])
                mean = np.where(np.isfinite(stacked), stacked, 0).sum(0) / np.maximum(np.isfinite(stacked).sum(0), 1)
                mean = np.where(np.isfinite(stacked).any(0), mean, np.nan)
                marker = None if is_over_time else "."
                axis.plot(x, mean, color=colours.get(norm, OTHER_COLOUR), lw=1.2, marker=marker)
            _scale_and_frame(axis, key in LOGARITHMIC_PROBES)
            kind = "convolutions" if key in CONV_KEYS else "activations"
            axis.set_ylabel(f"{PROBE_TITLES[key]} ({kind})" if column == 0 else "")
            axis.set(xlabel=xlabel if row == len(keys) - 1 else "", title=network if row == 0 else "")
            axis.grid(alpha=0.3)
    add_norm_legend(figure, named, [], colours, columns)
    save_figure(figure, path)
    return True

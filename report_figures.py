"""The pictures of the report: norms, measures and outcomes of a table of runs, and what the runs' own files show.

A norm has the same colour, and a network the same marker, in every picture.
"""

import functools
import itertools

import numpy as np

from config import ARCHS, GROUPED_NORMS, NORM_TYPES
from files import read_json
from findings import LEAST, OUTCOMES, hyperparameters
from plots import (
    LOGARITHMIC,
    TITLES,
    _figure,
    _text,
    save_figure,
    scale_logarithmically,
    spectral_density,
    tick_logarithmically,
)
from probes import CONV_KEYS, KEYS
from states import read_probes_summary

# From the palettes of Paul Tol (muted) and of Okabe & Ito: told apart with the common forms of colour blindness.
COLOURS = ("#000000", "#332288", "#88ccee", "#882255", "#ddcc77", "#117733", "#aa4499", "#cc6677", "#e69f00", "#d55e00")
COLOURS += ("#44aa99", "#777777", "#0072b2", "#999933")
COLOURS += ("#661100", "#6699cc", "#225522", "#ee8866", "#bbcc33", "#000088", "#ffaabb", "#997700")  # for norms to come
OTHER = "#bbbbbb"
OF_NORM = {name: COLOURS[index % len(COLOURS)] for index, name in enumerate(NORM_TYPES)}
MARKERS = dict(zip(ARCHS, "osD", strict=True))
MAGNITUDES = ("Trace", "Eigen Mean", "Eigen Variance", "Max Eigen", "within_over_between")
MOST_RUNS = 1000  # whose probe dicts and spectra are read, evenly chosen
STARRED = 0.05
GROUPING_SCALE = "viridis"
NODE_WIDTH = 0.1  # in asinh λ, of a Ritz value in the densities side by side
FEWEST = 0.01  # eigenvalues per unit of it that are still drawn


@functools.cache
def _palette():
    """A PIL image whose palette keeps what means something: the norms' colours and their tints, greys, two scales."""
    from matplotlib import colormaps, colors
    from PIL import Image

    marks = np.array([colors.to_rgb(each) for each in COLOURS[1:]])
    tints = [1 - alpha * (1 - marks) for alpha in np.linspace(1, 0.15, 6)]
    greys = np.repeat(np.linspace(0, 1, 32)[:, None], 3, axis=1)
    scales = [colormaps[name](np.linspace(0, 1, 47))[:, :3] for name in ("PuOr", GROUPING_SCALE)]
    entries = (np.concatenate([*tints, greys, *scales]) * 255).round().astype(np.uint8)
    palette = Image.new("P", (1, 1))
    palette.putpalette(entries[:256].tobytes())
    return palette


def colour(norm):
    return OF_NORM.get(norm, OTHER)


def _legend(figure, norms, networks, colours=OF_NORM, columns=8):
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colours.get(norm, OTHER), marker="o", ls="none", label=_text(norm)) for norm in norms
    ]
    handles += [
        Line2D([], [], color="#444444", marker=MARKERS.get(name, "^"), ls="none", mfc="none", label=_text(name))
        for name in networks
    ]
    figure.legend(
        handles=handles, loc="lower center", ncols=min(len(handles), columns), frameon=False, fontsize="small"
    )


def _below(count, panels):
    """(columns of a legend of `count` names below some panels side by side, inches that it and the labels take)."""
    columns = min(8, 3 * panels)
    return columns, 0.7 + 0.25 * -(-count // columns)


def _in_order(values, order):
    values = set(values)
    return [name for name in order if name in values] + sorted(values - set(order), key=str)


def draw_ranking(by_network, path):
    """How far each norm lies above the mean of its cells, with intervals, network by network."""
    sizes = [len(ranks) for ranks in by_network.values()]
    heights = [0.4 + 0.36 * size for size in sizes]
    height = sum(heights) + 0.75 * len(sizes)
    figure, axes = _figure(len(sizes), 1, figsize=(9.6, height))
    top = height
    for (network, ranks), size, own, [axis] in zip(by_network.items(), sizes, heights, axes, strict=True):
        axis.set_position([0.31, (top - own) / height, 0.66, (own - 0.35) / height])
        top -= own + 0.75
        for place, row in enumerate(ranks.iloc[::-1].to_dict("records")):
            spread = [[row["advantage"] - row["low"]], [row["high"] - row["advantage"]]]
            axis.errorbar(row["advantage"], place, xerr=spread, color=colour(row["Norm"]), marker="o", capsize=3)
        names = [f"{_text(row['Norm'])} (n = {row['n']})" for row in ranks.iloc[::-1].to_dict("records")]
        axis.set_yticks(range(size), names)
        axis.set_ylim(-0.6, size - 0.4)
        axis.axvline(0, color="#888888", lw=0.8)
        axis.set_title(_text(network), fontsize="medium")
        axis.set_xlabel("test accuracy above the mean of norms in the same cell (points, 95 % interval)")
        axis.grid(alpha=0.3, axis="x")
    save_figure(figure, path, _palette())


def _scale_of(measure, values):
    """An axis's scale and its options: of what has magnitudes the logarithm, or what is like it on both sides of
    zero where some are not positive and sizes differ much."""
    size = values.abs().median()
    if measure not in MAGNITUDES or not size > 0:
        return "linear", {}
    if (values > 0).all():
        return "log", {}
    if values.abs().max() < 8 * size:
        return "linear", {}
    return "symlog", {"linthresh": 10.0 ** np.floor(np.log10(size)), "linscale": 0.6}


def draw_outcome(table, outcome, titles, path):
    """Every measure of {column: title} against one outcome, with a line through each cell."""
    measures = list(titles)
    usable = table[~table["has_failed"]]
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    figure, axes = _figure(rows, columns, figsize=(5.2 * columns, 4.2 * rows + 0.9))
    figure.subplots_adjust(left=0.3 / columns, right=0.985, bottom=1.4 / (4.2 * rows + 0.9), top=0.96)
    axes_of = hyperparameters(usable)
    for axis, measure in zip(axes.flat, measures, strict=False):
        pair = usable.dropna(subset=[measure, outcome])
        name, options = _scale_of(measure, pair[measure])
        axis.set_xscale(name, **options)
        scale = axis.xaxis.get_transform()
        size = 36 if len(pair) < 100 else 14
        for (norm, network), group in pair.groupby(["Norm", "Model"]):
            marker = MARKERS.get(network, "^")
            axis.scatter(group[measure], group[outcome], s=size, color=colour(norm), marker=marker, alpha=0.7, lw=0)
        cells = pair.groupby([pair[name].astype(str) for name in axes_of]) if axes_of else [("", pair)]
        for _, group in cells:
            x = scale.transform(group[measure].to_numpy(float))
            if len(group) >= LEAST and np.ptp(x) > 0:
                slope = np.cov(x, group[outcome])[0, 1] / np.var(x, ddof=1)
                ends = np.array([x.min(), x.max()])
                line = group[outcome].mean() + slope * (ends - x.mean())
                axis.plot(scale.inverted().transform(ends), line, color="#555555", lw=0.7, alpha=0.6)
        axis.set(xlabel=f"{titles[measure]} ({len(pair)} runs)", ylabel=OUTCOMES[outcome])
        if name == "linear":
            axis.xaxis.get_major_locator().set_params(nbins=5)
        elif name == "log":
            tick_logarithmically(axis.xaxis, pair[measure])
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(measures) :]:
        axis.remove()
    _legend(figure, _in_order(usable["Norm"], NORM_TYPES), _in_order(usable["Model"], ARCHS))
    save_figure(figure, path, _palette())


def draw_heatmap(correlations, granulated, titles, path):
    """Spearman's ρ pooled and within cells, and Ψ, of every measure and outcome; * where Holm's p < 0.05."""
    measures = list(dict.fromkeys(correlations["measure"]))
    figure, axes = _figure(1, 3, figsize=(15, 2.2 + 0.5 * len(measures)))
    height = 2.2 + 0.5 * len(measures)
    figure.subplots_adjust(left=0.17, right=0.93, bottom=1.2 / height, top=1 - 0.45 / height, wspace=0.08)
    spearman = correlations[correlations["coefficient"] == "Spearman"]
    parts = {
        "pooled (Spearman's ρ)": spearman[spearman["way"] == "pooled"],
        "within cells (Spearman's ρ)": spearman[spearman["way"] == "within cells"],
        "granulated (Ψ)": granulated,
    }
    for index, (title, frame) in enumerate(parts.items()):
        axis = axes[0, index]
        grid = frame.pivot(index="measure", columns="outcome", values="value").reindex(measures)[list(OUTCOMES)]
        mesh = axis.imshow(grid.to_numpy(float), cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
        for row, measure in enumerate(measures):
            for column, outcome in enumerate(OUTCOMES):
                value = grid.loc[measure, outcome]
                cell = frame[(frame["measure"] == measure) & (frame["outcome"] == outcome)]
                star = "*" if "p_holm" in cell and (cell["p_holm"] < STARRED).any() else ""
                ink = "white" if abs(value) > 0.6 else "black"
                words = f"{value:.2f}{star}" if np.isfinite(value) else "–"
                axis.text(column, row, words, ha="center", va="center", color=ink, fontsize="small")
        axis.set_xticks(range(len(OUTCOMES)), [name.replace(" ", "\n") for name in OUTCOMES])
        axis.set_yticks(range(len(measures)), [titles[name] for name in measures] if index == 0 else [])
        axis.set_title(title, fontsize="medium")
    colours = figure.add_axes([0.945, 1.2 / height, 0.012, 1 - 1.65 / height])
    figure.colorbar(mesh, cax=colours)
    save_figure(figure, path, _palette())


def _ordered_groupings(groupings):
    """From one channel a group (p = 1) over larger groups to one group (p → 0), then by number of groups."""
    return sorted((p for p in groupings if p <= 1), reverse=True) + sorted(p for p in groupings if p > 1)


def draw_groupings(table, path):
    """Test accuracy of grouped norms over their groupings, from single channels to one group; False without two."""
    usable = table[~table["has_failed"] & table["Grouping"].notna()]
    groupings = _ordered_groupings(usable["Grouping"].unique())
    if len(groupings) < 2:
        return False
    figure, [[axis]] = _figure(1, 1, figsize=(11, 5.6))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.3, top=0.97)
    shades = itertools.cycle(COLOURS[1:])
    sizes = sum(p <= 1 for p in groupings)  # the others are numbers of groups: no line leads from these to those
    places = np.insert(np.arange(len(groupings)) + 0.5 * (np.arange(len(groupings)) >= sizes), sizes, sizes)
    for (norm, network, dataset, batch), group in usable.groupby(["Norm", "Model", "Dataset", "Batch Size"]):
        by = group.groupby("Grouping")["Test Accuracy"].agg(["mean", "std", "count"]).reindex(groupings)
        label = f"{_text(norm)}, {_text(network)}, {_text(dataset)}, batch {batch:g} (n = {int(by['count'].sum())})"
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
    save_figure(figure, path, _palette())
    return True


def chosen(runs_of_table, most=MOST_RUNS):
    """Evenly chosen ones of [(row, RunDirectory)]."""
    return runs_of_table[:: max(1, -(-len(runs_of_table) // most))]


def draw_densities(runs_of_table, path):
    """Spectral densities side by side: a panel a network, a line a norm (its first run). False where none is there."""
    from matplotlib.ticker import FixedLocator, NullLocator

    found = {}
    for row, run in chosen(runs_of_table):
        json = run.measurement("hessian")
        if json.exists() and (row["Model"], row["Norm"]) not in found:
            content = read_json(json)
            if content["settings"]["curvature"] == "hessian" and content["settings"]["bn_mode"] == "eval":
                found[row["Model"], row["Norm"]] = content
    networks = _in_order([network for network, _ in found], ARCHS)
    if not networks:
        return False
    named = _in_order([norm for _, norm in found], NORM_TYPES)
    columns, bottom = _below(len(named), len(networks))
    height = 3.6 + bottom
    figure, axes = _figure(1, len(networks), figsize=(6.4 * len(networks), height))
    figure.subplots_adjust(left=0.1 / len(networks) + 0.02, right=0.985, bottom=bottom / height, top=1 - 0.35 / height)
    for axis, network in zip(axes.flat, networks, strict=True):
        for (arch, norm), content in found.items():
            if arch == network:
                probes = [probe | {"nodes": np.arcsinh(probe["nodes"]).tolist()} for probe in content["probes"]]
                low, high = (np.arcsinh(content[name]) for name in ("min_eigen", "max_eigen"))
                points = np.linspace(low - 7 * NODE_WIDTH, high + 7 * NODE_WIDTH, 1000)
                density = content["dimension"] * spectral_density(probes, points, NODE_WIDTH).mean(0)
                axis.plot(np.sinh(points), np.where(density < FEWEST, np.nan, density), color=colour(norm), lw=1.2)
        axis.set(xscale="asinh", yscale="log", xlabel="eigenvalue λ", title=network)
        powers = [10**power for power in range(12)]
        axis.xaxis.set_major_locator(FixedLocator([*(-power for power in reversed(powers)), 0, *powers]))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}".replace("-", "−"))
        axis.xaxis.set_minor_locator(NullLocator())
        axis.set_ylabel("eigenvalues per unit of asinh λ")
        axis.grid(alpha=0.3)
    _legend(figure, named, [], columns=columns)
    save_figure(figure, path, _palette())
    return True


def read_probes(runs_of_table):
    """[(row, {"first", "last", "iteration", key: …})] of runs with probe dicts: statistics by site at the first and the
    last iteration, and means over sites by iteration."""
    found = []
    for row, run in chosen(runs_of_table):
        content = read_probes_summary(run)
        if content is not None:
            part = {"sites": content["sites"], "iteration": np.array(content["iteration"])}
            for key in KEYS:
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
    groupings = _ordered_groupings({row["Grouping"] for row, _ in own})
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


def _draw_statistics(probed, path, values_of, xlabel, keys=KEYS, colours=OF_NORM, is_over_time=False):
    networks = _in_order({row["Model"] for row, _ in probed}, ARCHS)
    if not networks:
        return False
    named = _in_order({about["Norm"] for about, _ in probed}, colours)
    columns, bottom = _below(len(named), len(networks))
    height = 3 * len(keys) + bottom
    figure, axes = _figure(len(keys), len(networks), figsize=(5.6 * len(networks) + 0.6, height))
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
            for norm in _in_order(by_norm, colours):
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
                axis.plot(x, mean, color=colours.get(norm, OTHER), lw=1.2, marker=marker)
            _scale_and_frame(axis, key in LOGARITHMIC)
            kind = "convolutions" if key in CONV_KEYS else "activations"
            axis.set_ylabel(f"{TITLES[key]} ({kind})" if column == 0 else "")
            axis.set(xlabel=xlabel if row == len(keys) - 1 else "", title=network if row == 0 else "")
            axis.grid(alpha=0.3)
    _legend(figure, named, [], colours, columns)
    save_figure(figure, path, _palette())
    return True

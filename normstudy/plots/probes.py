"""Probe statistics over iterations and depth."""

import numpy as np

from normstudy.plots.style import (
    FEW_TICKS,
    MIN_LOG_RANGE,
    new_figure,
    printable,
    save_figure,
    scale_logarithmically,
    tick_whole_numbers,
)
from normstudy.storage import CONV_KEYS, PROBE_KEYS, load_probes_of_whole_batches

PROBE_TITLES = {
    "std": "standard deviation",
    "grad_norm": "gradient norm",
    "activation_norm": "activation norm",
    "activation_variance": "activation variance",
    "cosine_similarity": "cosine similarity",
    "stable_rank": "stable rank",
}
LOGARITHMIC_PROBES = ("std", "grad_norm", "activation_norm", "activation_variance", "stable_rank")
MOST_COLUMNS = 300  # of a heatmap: more iterations are averaged into bins


def draw_probes(run, title):
    """probes.png: each statistic over iterations of whole batches and depth (heatmap), over depth at four moments."""
    probes = load_probes_of_whole_batches(run)
    if probes is None or not len(probes["iteration"]):
        return
    iterations = probes["iteration"].numpy()
    moments = np.unique(np.linspace(0, len(iterations) - 1, 4).round().astype(int))
    figure, axes = new_figure(4, 3, figsize=(17, 18))
    figure.subplots_adjust(left=0.065, right=0.98, bottom=0.04, top=0.93)
    for index, key in enumerate(PROBE_KEYS):
        heatmap, profile = axes[2 * (index // 3), index % 3], axes[2 * (index // 3) + 1, index % 3]
        values = probes[key].double().numpy()
        kind = "conv" if key in CONV_KEYS else "activation"
        _draw_heatmap(figure, heatmap, iterations, values, key, kind)
        _draw_profile(profile, iterations, values, moments, key, kind, probes["sites"][kind])
    has_shortcuts = any("shortcut" in name for name in probes["sites"]["conv"])
    is_white = any(not probes[key].isfinite().all() for key in PROBE_KEYS)
    figure.suptitle(
        printable(title)
        + "\niterations of whole batches; layers are numbered from the input"
        + "; crosses: shortcuts" * has_shortcuts
        + "; white: not finite" * is_white
    )
    save_figure(figure, run.probes_picture, dpi=85)


def _site_label(kind):
    return {"conv": "convolution or branch", "activation": "activation or block"}[kind]


def _colour_scale(values, key):
    """Matplotlib's colour scale of (iterations, sites), logarithmic for what spans magnitudes: that of the iterations
    that are finite as a whole, and wider than six magnitudes only where more than a few values are that small."""
    from matplotlib.colors import LogNorm, Normalize

    is_whole = np.isfinite(values).all(1)
    values = values[is_whole] if is_whole.any() else values
    positive = values[np.isfinite(values) & (values > 0)]
    if key not in LOGARITHMIC_PROBES or not len(positive) or positive.max() < MIN_LOG_RANGE * positive.min():
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if len(finite) else (0, 1)
        return Normalize(low, high if high > low else low + 1e-9)
    high = positive.max()
    low = max(positive.min(), min(high * 1e-6, np.quantile(positive, 0.05)))
    return LogNorm(low, high)


def _draw_heatmap(figure, axis, iterations, values, key, kind):
    from matplotlib.colors import LogNorm
    from matplotlib.ticker import LogLocator

    bins = np.array_split(np.arange(len(iterations)), min(len(iterations), MOST_COLUMNS))
    binned = np.stack([values[part].mean(0) for part in bins])
    edges = np.array([iterations[part[0]] for part in bins] + [iterations[-1] + 1], dtype=float)
    depth = np.arange(values.shape[1] + 1) + 0.5
    norm, finite = _colour_scale(binned, key), binned[np.isfinite(binned)]
    mesh = axis.pcolormesh(edges, depth, binned.T, norm=norm, cmap="cividis", rasterized=True)
    beyond = len(finite) > 0 and (bool(finite.min() < norm.vmin), bool(finite.max() > norm.vmax))
    extend = {(True, False): "min", (False, True): "max", (True, True): "both"}.get(beyond, "neither")
    ticks = {}
    if isinstance(norm, LogNorm) and norm.vmax < FEW_TICKS * norm.vmin:
        ticks = {"ticks": LogLocator(subs=(1, 2, 5)), "format": "%g"}
    figure.colorbar(mesh, ax=axis, extend=extend, **ticks).minorticks_off()
    axis.invert_yaxis()
    axis.set(title=PROBE_TITLES[key], xlabel="iteration", ylabel=_site_label(kind))
    tick_whole_numbers(axis.xaxis)
    tick_whole_numbers(axis.yaxis)


def _draw_profile(axis, iterations, values, moments, key, kind, names):
    """A statistic over depth at a few moments: one line style for each place in a block, crosses for shortcuts."""
    from matplotlib import colormaps

    depth = np.arange(1, values.shape[1] + 1)
    places = np.array([_place(name) for name in names])
    ordinary = [place for place in dict.fromkeys(places) if place != "shortcut"]
    for position, moment in enumerate(moments):
        colour = colormaps["viridis"](0.85 * position / max(len(moments) - 1, 1))
        label = f"iteration {iterations[moment]:,}"
        for place, style in zip(ordinary, ("-", "--", ":", "-."), strict=False):
            here = places == place
            marker = "o" if here.sum() <= 20 else None
            axis.plot(depth[here], values[moment, here], color=colour, marker=marker, ms=4, ls=style, label=label)
            label = None
        aside = places == "shortcut"
        axis.plot(depth[aside], values[moment, aside], color=colour, marker="x", ls="none", ms=5)
    if len(ordinary) > 1:
        for place, style in zip(ordinary, ("-", "--", ":", "-."), strict=False):
            axis.plot([], [], color="grey", ls=style, label=place)
    finite = values[moments][np.isfinite(values[moments])]
    if key in LOGARITHMIC_PROBES and len(finite) and finite.min() > 0:
        scale_logarithmically(axis, finite)
    axis.set(xlabel=f"{_site_label(kind)} (1 = nearest the input)", ylabel=PROBE_TITLES[key])
    tick_whole_numbers(axis.xaxis)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def _place(name):
    """Where in a block a site stands: blocks.3.conv1 → conv1, blocks.3.shortcut.0 → shortcut, blocks.3 → block."""
    if "shortcut" in name:
        return "shortcut"
    last = name.rpartition(".")[2].removeprefix("final_")
    return "block" if last.isdigit() else last

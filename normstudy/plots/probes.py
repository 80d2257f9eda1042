"""The picture of layer statistics over iterations and depth."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

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
from normstudy.storage import (
    CONV_KEYS,
    PROBE_KEYS,
    RunDirectory,
    effective_rates,
    load_probes_of_whole_batches,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PROBE_TITLES = {
    "std": "standard deviation",
    "grad_norm": "gradient norm",
    "activation_norm": "activation norm",
    "activation_variance": "activation variance",
    "cosine_similarity": "cosine similarity",
    "stable_rank": "stable rank",
}
WEIGHT_TITLES = {
    "weight_norm": "weight norm",
    "update_angle": "angle of the update (radians)",
    "effective_rate": "effective learning rate",
}
LOGARITHMIC_PROBES = ("std", "grad_norm", "activation_norm", "activation_variance", "stable_rank", *WEIGHT_TITLES)
SITE_LABELS = {"conv": "convolution or branch", "activation": "activation or block", "weight": "weight"}
LINE_STYLES = ("-", "--", ":", "-.")  # one for each place in a block
MOST_COLUMNS = 300  # maximum number of columns of a heatmap; more iterations are averaged into bins
MOST_MARKED = 20  # number of sites of a line up to which each has a marker


def draw_probes(run: RunDirectory, title: str) -> None:
    """Draw probes.png if the run has probe dicts: each statistic over iterations and depth as a heatmap, and over depth
    at four iterations.

    A smaller last batch of an epoch is left out, unless no larger batch was recorded.
    """
    probes = load_probes_of_whole_batches(run)
    if probes is None or not len(probes["iteration"]):
        return
    iterations = probes["iteration"].numpy()
    probes |= effective_rates(run, probes)
    keys = (*PROBE_KEYS, *(key for key in WEIGHT_TITLES if key in probes))
    statistics = {key: probes[key].double().numpy() for key in keys}
    figure, panels = new_figure(2 * len(statistics) // 3, 3, figsize=(17, 3 * len(statistics)))
    figure.subplots_adjust(left=0.065, right=0.98, bottom=0.24 / len(statistics), top=1 - 0.42 / len(statistics))
    for index, (key, values) in enumerate(statistics.items()):
        heatmap, profile = panels[2 * (index // 3), index % 3], panels[2 * (index // 3) + 1, index % 3]
        kind = "conv" if key in CONV_KEYS else "activation" if key in PROBE_KEYS else "weight"
        names = probes["sites"][kind] if kind != "weight" else ["weight"] * values.shape[1]
        label = (PROBE_TITLES | WEIGHT_TITLES)[key]
        _draw_heatmap(figure, heatmap, iterations, values, key)
        heatmap.set(title=label, xlabel="iteration", ylabel=SITE_LABELS[kind])
        _draw_profile(profile, iterations, values, key, names)
        profile.set(xlabel=f"{SITE_LABELS[kind]} (1 = nearest the input)", ylabel=label)
    has_shortcuts = any("shortcut" in name for name in probes["sites"]["conv"])
    is_white = any(not np.isfinite(values).all() for values in statistics.values())
    figure.suptitle(
        printable(title)
        + "\nfull batches only; layers are numbered from the input"
        + "; crosses: shortcuts" * has_shortcuts
        + "; white: not finite" * is_white
    )
    save_figure(figure, run.probes_picture, dpi=85)


def _colour_limits(values: np.ndarray, key: str) -> tuple[float, float, bool]:
    """Return the lower and upper limit of the colour scale for `values` (iterations, sites), and whether the scale is
    logarithmic, as it is for statistics that span orders of magnitude.

    The limits come from the iterations in which every value is finite, if there are any. On a logarithmic scale they
    are more than six orders of magnitude apart only if more than 5 % of the positive values are that small.
    """
    is_whole = np.isfinite(values).all(1)
    values = values[is_whole] if is_whole.any() else values
    finite = values[np.isfinite(values)]
    positive = finite[finite > 0]
    if key not in LOGARITHMIC_PROBES or not len(positive) or positive.max() < MIN_LOG_RANGE * positive.min():
        low, high = (finite.min(), finite.max()) if len(finite) else (0, 1)
        return low, high if high > low else low + 1e-9, False
    high = positive.max()
    return max(positive.min(), min(high * 1e-6, np.quantile(positive, 0.05))), high, True


def _draw_heatmap(figure: Figure, panel: Axes, iterations: np.ndarray, values: np.ndarray, key: str) -> None:
    """Draw a statistic (iterations, sites) as a heatmap with a colour bar; the first site is at the top."""
    from matplotlib.colors import LogNorm, Normalize
    from matplotlib.ticker import LogLocator

    bins = np.array_split(np.arange(len(iterations)), min(len(iterations), MOST_COLUMNS))
    binned = np.stack([values[part].mean(0) for part in bins])
    edges = np.array([iterations[part[0]] for part in bins] + [iterations[-1] + 1], dtype=float)
    depth = np.arange(values.shape[1] + 1) + 0.5
    low, high, is_logarithmic = _colour_limits(binned, key)
    scale = LogNorm(low, high) if is_logarithmic else Normalize(low, high)
    mesh = panel.pcolormesh(edges, depth, binned.T, norm=scale, cmap="cividis", rasterized=True)
    finite = binned[np.isfinite(binned)]
    is_below, is_above = bool((finite < low).any()), bool((finite > high).any())
    extend = {(True, False): "min", (False, True): "max", (True, True): "both"}.get((is_below, is_above), "neither")
    ticks: dict[str, Any] = {}
    if is_logarithmic and high < FEW_TICKS * low:
        ticks = {"ticks": LogLocator(subs=(1, 2, 5)), "format": "%g"}
    figure.colorbar(mesh, ax=panel, extend=extend, **ticks).minorticks_off()
    panel.invert_yaxis()
    tick_whole_numbers(panel.xaxis)
    tick_whole_numbers(panel.yaxis)


def _draw_profile(panel: Axes, iterations: np.ndarray, values: np.ndarray, key: str, names: list[str]) -> None:
    """Draw a statistic (iterations, sites) over depth at four iterations, with one line style for each place in a block
    and crosses for shortcuts."""
    from matplotlib import colormaps

    depth = np.arange(1, values.shape[1] + 1)
    places = np.array([_place(name) for name in names])
    is_shortcut = places == "shortcut"
    styles = dict(zip(dict.fromkeys(places[~is_shortcut]), LINE_STYLES, strict=False))
    moments = np.unique(np.linspace(0, len(iterations) - 1, 4).round().astype(int))
    for position, moment in enumerate(moments):
        colour = colormaps["viridis"](0.85 * position / max(len(moments) - 1, 1))
        label: str | None = f"iteration {iterations[moment]:,}"
        for place, style in styles.items():
            here = places == place
            marker = "o" if here.sum() <= MOST_MARKED else None
            panel.plot(depth[here], values[moment, here], color=colour, marker=marker, ms=4, ls=style, label=label)
            label = None
        shortcuts = depth[is_shortcut], values[moment, is_shortcut]
        panel.plot(*shortcuts, color=colour, marker="x", ls="none", ms=5)
    if len(styles) > 1:
        for place, style in styles.items():
            panel.plot([], [], color="grey", ls=style, label=place)
    finite = values[moments][np.isfinite(values[moments])]
    if key in LOGARITHMIC_PROBES and len(finite) and finite.min() > 0:
        scale_logarithmically(panel, finite)
    tick_whole_numbers(panel.xaxis)
    panel.grid(alpha=0.3)
    panel.legend(fontsize="small")


def _place(name: str) -> str:
    """Return a site's place in its block: blocks.3.conv1 → conv1, blocks.3.shortcut.0 → shortcut, blocks.3 → block."""
    if "shortcut" in name:
        return "shortcut"
    last = name.rpartition(".")[2].removeprefix("final_")
    return "block" if last.isdigit() else last

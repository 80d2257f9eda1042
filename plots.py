"""The pictures of a run: curves.png and probes.png. Drawn from the saved files alone, so they can be redrawn."""

import io
import math

import numpy as np

from files import read_csv, write_bytes
from probes import CONV_KEYS, KEYS
from runs import load_probes

TRAIN, VALIDATION, TEST = "#0072b2", "#009e73", "#d55e00"  # Okabe & Ito's colour-blind safe palette
TITLES = {
    "std": "standard deviation",
    "grad_norm": "gradient norm",
    "activation_norm": "activation norm",
    "activation_variance": "activation variance",
    "cosine_similarity": "cosine similarity",
    "stable_rank": "stable rank",
}
LOGARITHMIC = ("std", "grad_norm", "activation_norm", "activation_variance", "stable_rank")
MOST_COLUMNS = 300  # of a heatmap: more iterations are averaged into bins


def _figure(*grid, **options):
    """A figure that needs no screen, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(*grid, squeeze=False, gridspec_kw={"hspace": 0.32, "wspace": 0.28})


def _save(figure, path):
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=100)
    write_bytes(path, picture.getvalue())


def draw_curves(run, title):
    """curves.png: loss and accuracy over epochs, from metrics.csv."""
    rows = read_csv(run.metrics)
    epochs = [int(row["epoch"]) for row in rows]
    figure, axes = _figure(1, 2, figsize=(11, 4.5))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.12, top=0.9)
    for axis, quantity, scale, label in (
        (axes[0, 0], "loss", 1, "cross-entropy (nats per image)"),
        (axes[0, 1], "accuracy", 100, "accuracy (%)"),
    ):
        for split, colour in (("train", TRAIN), ("validation", VALIDATION), ("test", TEST)):
            values = [float(row[f"{split}_{quantity}"] or "nan") * scale for row in rows]
            if any(map(math.isfinite, values)):
                name = "train (running, augmented)" if split == "train" else split
                axis.plot(epochs, values, color=colour, marker="o" if len(epochs) <= 30 else None, ms=4, label=name)
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
        if axis.lines:
            axis.legend()
        else:
            axis.text(0.5, 0.5, "no epoch was completed", ha="center", va="center", transform=axis.transAxes)
    figure.suptitle(title)
    _save(figure, run.curves)


def draw_probes(run, title):
    """probes.png: each statistic over iterations and depth (heatmap), and over depth at four moments."""
    probes = load_probes(run)
    if probes is None or not len(probes["iteration"]):
        return
    iterations = probes["iteration"].numpy()
    moments = np.unique(np.linspace(0, len(iterations) - 1, 4).round().astype(int))
    figure, axes = _figure(4, 3, figsize=(17, 18))
    figure.subplots_adjust(left=0.065, right=0.98, bottom=0.04, top=0.93)
    for index, key in enumerate(KEYS):
        heatmap, profile = axes[2 * (index // 3), index % 3], axes[2 * (index // 3) + 1, index % 3]
        values = probes[key].double().numpy()
        kind = "conv" if key in CONV_KEYS else "activation"
        _draw_heatmap(figure, heatmap, iterations, values, key, kind)
        _draw_profile(profile, iterations, values, moments, key, kind, probes["sites"][kind])
    has_shortcuts = any("shortcut" in name for name in probes["sites"]["conv"])
    figure.suptitle(title + "\nlayers are numbered from the input" + "; crosses: shortcuts" * has_shortcuts)
    _save(figure, run.probes_picture)


def _site_label(kind):
    return {"conv": "convolution or branch", "activation": "activation or block"}[kind]


def _norm(values, key):
    """Matplotlib's colour scale: logarithmic for what spans magnitudes, and no wider than six of them."""
    from matplotlib.colors import LogNorm, Normalize

    positive = values[np.isfinite(values) & (values > 0)]
    if key not in LOGARITHMIC or not len(positive):
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if len(finite) else (0, 1)
        return Normalize(low, high if high > low else low + 1e-9)
    high = positive.max()
    low = max(positive.min(), high * 1e-6)
    return LogNorm(low, high if high > low else low * 1.0001)


def _draw_heatmap(figure, axis, iterations, values, key, kind):
    bins = np.array_split(np.arange(len(iterations)), min(len(iterations), MOST_COLUMNS))
    binned = np.stack([values[part].mean(0) for part in bins])
    edges = np.array([iterations[part[0]] for part in bins] + [iterations[-1] + 1], dtype=float)
    depth = np.arange(values.shape[1] + 1) + 0.5
    mesh = axis.pcolormesh(edges, depth, binned.T, norm=_norm(binned, key), cmap="cividis", rasterized=True)
    figure.colorbar(mesh, ax=axis)
    axis.invert_yaxis()
    axis.set(title=TITLES[key], xlabel="iteration", ylabel=_site_label(kind))
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.yaxis.get_major_locator().set_params(integer=True)


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
    if key in LOGARITHMIC and len(finite) and finite.min() > 0:
        axis.set_yscale("log")
    axis.set(xlabel=f"{_site_label(kind)} (1 = nearest the input)", ylabel=TITLES[key])
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def _place(name):
    """Where in a block a site stands: blocks.3.conv1 → conv1, blocks.3.shortcut.0 → shortcut, blocks.3 → block."""
    if "shortcut" in name:
        return "shortcut"
    last = name.rpartition(".")[2].removeprefix("final_")
    return "block" if last.isdigit() else last

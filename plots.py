"""The pictures of a run and of its measurements. Drawn from the saved files alone, so they can be redrawn."""

import io
import math
import warnings

import numpy as np

from files import read_csv, read_json, write_bytes
from probes import CONV_KEYS, KEYS
from states import load_probes_of_whole_batches

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
SPECTRUM_WIDTH = 1 / 300  # of a Ritz value in the drawn density, as part of the whole range
LEAST_RANGE = 5  # largest over smallest value from which a scale is logarithmic
FEW_TICKS = 300  # and below which powers of ten are too few ticks for it
MOST_NUMBERED = 12  # classes up to which each cosine stands in its field
MOST_NAMES = 45  # of layers that are written below an axis; more are numbered
MOST_COLUMNS = 300  # of a heatmap: more iterations are averaged into bins


def _figure(*grid, **options):
    """A figure that needs no screen, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(*grid, squeeze=False, gridspec_kw={"hspace": 0.32, "wspace": 0.28})


def save_figure(figure, path, palette=None, dpi=100):
    """Writes a picture in 256 colours, those of a PIL image or those that fit best: a third of the space."""
    from PIL import Image

    full, picture = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # scripts that matplotlib's font lacks are drawn as boxes
        figure.savefig(full, format="png", dpi=dpi)
    with Image.open(full) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.MEDIANCUT, palette=palette, dither=Image.Dither.NONE)
    few.save(picture, "PNG", optimize=True)
    write_bytes(path, picture.getvalue())


def is_whole(path):
    """Whether a picture is there and fits its checksums."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.verify()
    except Exception:  # PIL raises many types for what a file can hold; drawing again mends it
        return False
    return True


def _text(name):
    """A name from disk, of which matplotlib makes no formula, in characters that can be drawn."""
    return "".join(character if character.isprintable() else "·" for character in str(name)).replace("$", r"\$")


def _whole_numbers(axis):
    """Ticks at whole numbers, were it one alone."""
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def scale_logarithmically(axis, values):
    """A logarithmic y axis for positive values that span a good half magnitude; others are left out."""
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) and values.max() > LEAST_RANGE * values.min():
        axis.set_yscale("log", nonpositive="mask")
        tick_logarithmically(axis.yaxis, values)


def tick_logarithmically(axis, values):
    """Ticks of a logarithmic xaxis or yaxis for positive values: enough to read it, and not so many that they touch."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_minor_formatter(NullFormatter())
    if values.max() < FEW_TICKS * values.min():
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")


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
                marker = {"train": "o", "validation": "^", "test": "s"}[split] if len(epochs) <= 30 else None
                axis.plot(epochs, values, color=colour, marker=marker, mfc="none", ms=6, label=name)
        axis.set(xlabel="epoch", ylabel=label)
        axis.grid(alpha=0.3)
        _whole_numbers(axis.xaxis)
        if axis.lines:
            axis.legend()
        else:
            axis.text(0.5, 0.5, "no epoch was completed", ha="center", va="center", transform=axis.transAxes)
    figure.suptitle(_text(title))
    save_figure(figure, run.curves)


def draw_probes(run, title):
    """probes.png: each statistic over iterations of whole batches and depth (heatmap), over depth at four moments."""
    probes = load_probes_of_whole_batches(run)
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
    is_white = any(not probes[key].isfinite().all() for key in KEYS)
    figure.suptitle(
        _text(title)
        + "\niterations of whole batches; layers are numbered from the input"
        + "; crosses: shortcuts" * has_shortcuts
        + "; white: not finite" * is_white
    )
    save_figure(figure, run.probes_picture, dpi=85)


def _site_label(kind):
    return {"conv": "convolution or branch", "activation": "activation or block"}[kind]


def _norm(values, key):
    """Matplotlib's colour scale of (iterations, sites), logarithmic for what spans magnitudes: that of the iterations
    that are finite as a whole, and wider than six magnitudes only where more than a few values are that small."""
    from matplotlib.colors import LogNorm, Normalize

    is_whole = np.isfinite(values).all(1)
    values = values[is_whole] if is_whole.any() else values
    positive = values[np.isfinite(values) & (values > 0)]
    if key not in LOGARITHMIC or not len(positive) or positive.max() < LEAST_RANGE * positive.min():
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
    norm, finite = _norm(binned, key), binned[np.isfinite(binned)]
    mesh = axis.pcolormesh(edges, depth, binned.T, norm=norm, cmap="cividis", rasterized=True)
    beyond = len(finite) > 0 and (bool(finite.min() < norm.vmin), bool(finite.max() > norm.vmax))
    extend = {(True, False): "min", (False, True): "max", (True, True): "both"}.get(beyond, "neither")
    ticks = {}
    if isinstance(norm, LogNorm) and norm.vmax < FEW_TICKS * norm.vmin:
        ticks = {"ticks": LogLocator(subs=(1, 2, 5)), "format": "%g"}
    figure.colorbar(mesh, ax=axis, extend=extend, **ticks).minorticks_off()
    axis.invert_yaxis()
    axis.set(title=TITLES[key], xlabel="iteration", ylabel=_site_label(kind))
    _whole_numbers(axis.xaxis)
    _whole_numbers(axis.yaxis)


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
        scale_logarithmically(axis, finite)
    axis.set(xlabel=f"{_site_label(kind)} (1 = nearest the input)", ylabel=TITLES[key])
    _whole_numbers(axis.xaxis)
    axis.grid(alpha=0.3)
    axis.legend(fontsize="small")


def _place(name):
    """Where in a block a site stands: blocks.3.conv1 → conv1, blocks.3.shortcut.0 → shortcut, blocks.3 → block."""
    if "shortcut" in name:
        return "shortcut"
    last = name.rpartition(".")[2].removeprefix("final_")
    return "block" if last.isdigit() else last


# Measurements


def spectral_density(probes, points, width):
    """The density of eigenvalues at `points` (P,), from each probe's nodes and weights: (probes, P).

    Each node is spread to a Gaussian of standard deviation `width`; a probe's density integrates to 1.
    """
    curves = []
    for probe in probes:
        nodes, weights = np.array(probe["nodes"]), np.array(probe["weights"])
        distances = (points[None] - nodes[:, None]) / width
        curves.append(weights @ np.exp(-0.5 * distances**2) / (width * math.sqrt(2 * math.pi)))
    return np.array(curves)


def draw_hessian(path):
    """hessian.png beside hessian.json, from it alone: the spectral density, and the trace of each layer."""
    content = read_json(path)
    below = 1.5 if len(content["layer_traces"]) <= MOST_NAMES else 0.7  # inches, for names or numbers of layers
    figure, axes = _figure(1, 2, figsize=(14, 4.7 + below))
    figure.subplots_adjust(
        left=0.065, right=0.98, bottom=below / (4.7 + below), top=1 - 1.3 / (4.7 + below), wspace=0.2
    )
    _draw_density(axes[0, 0], content)
    _draw_layer_traces(axes[0, 1], content)
    settings = content["settings"]
    matrix = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}[settings["curvature"]]
    has_statistics = settings["bn_mode"] == "train" and content.get("has_batch_statistics", True)
    mode = "batch statistics" if has_statistics else "eval mode"
    error = content["trace_standard_error"]
    trace = f"{content['trace']:.4g}"
    if error is not None:
        samples = content.get("trace_samples", len(content["probes"]) + settings["trace_probes"])
        trace += f" ± {error:.3g} (s.e. of {samples} probes)"
    figure.suptitle(
        f"{_text(content['run'])}, epoch {content['epoch']}\n{matrix} of the training loss, "
        f"{content['num_samples']:,} images, {mode}: trace {trace}, "
        f"{len(content['probes'])} Lanczos probes, {content['products']} products"
    )
    save_figure(figure, path.with_suffix(".png"))


def with_residual(value, residual):
    """A Ritz value with the residual, and no more digits than that leaves sure: 45 (residual 11)."""
    if residual > 0 and math.isfinite(residual):
        value = round(value, 1 - math.floor(math.log10(residual)))
    size = f"{residual:.1g}" if not 1 <= residual < 1e6 else f"{residual:.0f}"
    return f"{value + 0.0:.4g} (residual {size})"  # which makes −0 of rounding 0


def _draw_density(axis, content):
    low, high = content["min_eigen"], content["max_eigen"]
    span = (high - low) or abs(high) or 1.0
    width = span * SPECTRUM_WIDTH
    points = np.linspace(low - 0.05 * span, high + 0.05 * span, 4000)
    curves = spectral_density(content["probes"], points, width)
    floor = 1e-3 / content["dimension"] / span  # a thousandth of one eigenvalue, spread over the whole range
    mean = np.maximum(curves.mean(0), floor)
    axis.fill_between(points, floor, mean, color=TRAIN, alpha=0.2, lw=0)
    axis.plot(points, mean, color=TRAIN, lw=1.2, label=f"density (Ritz values as Gaussians, s.d. {width:.2g})")
    for index, probe in enumerate(content["probes"]):
        label = "Ritz values" if index == 0 else None
        axis.plot(probe["nodes"], np.full(len(probe["nodes"]), floor * 2), "|", color="black", ms=7, label=label)
    for key, name, colour in (("max_eigen", "λ_max", TEST), ("min_eigen", "λ_min", VALIDATION)):
        label = f"{name} = {with_residual(content[key], content[f'{key}_residual'])}"
        axis.axvline(content[key], color=colour, ls="--", lw=1.2, label=label)
    axis.set(yscale="log", ylim=(floor, None), xlabel="eigenvalue λ", ylabel="density of eigenvalues (per unit of λ)")
    axis.grid(alpha=0.3)
    _legend_above(axis, 2)


def _draw_layer_traces(axis, content):
    names = list(content["layer_traces"])
    kinds = np.array([_kind(name) for name in names])
    traces = np.array([content["layer_traces"][name]["trace"] for name in names])
    errors = np.array([content["layer_traces"][name]["standard_error"] or 0.0 for name in names])
    depth = np.arange(1, len(names) + 1)
    for kind, colour, marker in zip(dict.fromkeys(kinds), (TRAIN, TEST, VALIDATION, "#cc79a7"), "os^D", strict=False):
        here = kinds == kind
        axis.errorbar(depth[here], traces[here], errors[here], color=colour, marker=marker, ms=4, ls="none", label=kind)
    axis.set(xlabel="layer with parameters (1 = nearest the input)", ylabel="trace of the layer's block (± s.e.)")
    _whole_numbers(axis.xaxis)
    if len(names) <= MOST_NAMES:
        axis.set_xticks(depth, [_text(name) for name in names], rotation=90, fontsize="x-small")
        axis.set_xlabel("layer with parameters, from the input on")
    axis.grid(alpha=0.3)
    _legend_above(axis, 4)


def _legend_above(axis, columns):
    """A legend that hides no data."""
    box = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False}
    axis.legend(fontsize="small", ncols=columns, columnspacing=1.2, **box)


def _kind(name):
    """What a layer with parameters is, from its name."""
    for word, kind in (("norm", "normalization"), ("activation", "activation"), ("classifier", "classifier")):
        if word in name:
            return kind
    return "normalization" if name.endswith("shortcut.1") else "convolution or linear"


def draw_hessian_over_training(run):
    """hessian_over_training.png: trace, outermost eigenvalues, loss and gradient norm of the measured epochs."""
    contents = [read_json(path) for path in run.measurements("hessian")]
    epochs = [content["epoch"] for content in contents]
    figure, axes = _figure(1, 3, figsize=(15, 4.6))
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.13, top=0.84)
    errors = [content["trace_standard_error"] or 0.0 for content in contents]
    traces = [content["trace"] for content in contents]
    axes[0, 0].errorbar(epochs, traces, errors, color=TRAIN, marker="o", ms=4, label="trace ± s.e.")
    for key, name, colour in (("max_eigen", "λ_max", TEST), ("min_eigen", "λ_min", VALIDATION)):
        values = [content[key] for content in contents]
        residuals = [content[f"{key}_residual"] for content in contents]
        axes[0, 1].errorbar(epochs, values, residuals, color=colour, marker="o", ms=4, label=f"{name} ± residual")
    for key, name, colour in (("loss", "loss (nats per image)", TRAIN), ("gradient_norm", "gradient norm", TEST)):
        axes[0, 2].plot(epochs, [content[key] for content in contents], color=colour, marker="o", ms=4, label=name)
    for axis, label in zip(axes[0], ("trace", "eigenvalue", "on the measured images"), strict=True):
        axis.set(xlabel="epoch", ylabel=label)
    axes[0, 2].set_yscale("log")
    figure.suptitle(f"{_text(run.path.name)}\ncurvature over training, {contents[-1]['num_samples']:,} images")
    _finish_over_training(figure, axes[0], run.path / "hessian_over_training.png")


def _finish_over_training(figure, axes, path):
    for axis in axes:
        _whole_numbers(axis.xaxis)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    save_figure(figure, path)


def draw_class_similarity(path):
    """class_similarity.png beside its JSON, from it alone: the matrix of cosines, and how its pairs are spread."""
    content = read_json(path)
    matrix, classes = np.array(content["matrix"]), content["classes"]
    figure, axes = _figure(1, 2, figsize=(14, 6.2))
    figure.subplots_adjust(left=0.105, right=0.98, bottom=0.19, top=0.82, wspace=0.16)
    heatmap, spread = axes[0]
    lowest = 0.0 if matrix.min() >= 0 else -1.0  # the same for all runs, so that pictures compare
    mesh = heatmap.imshow(matrix, cmap="cividis", vmin=lowest, vmax=1.0, interpolation="nearest")
    figure.colorbar(mesh, ax=heatmap, label="cosine between class means of flattened features")
    if len(classes) <= MOST_NUMBERED:
        for row, column in np.ndindex(matrix.shape):
            ink = "black" if matrix[row, column] > (lowest + 1) / 2 else "white"
            number = f"{matrix[row, column]:.2f}".replace("0.", ".").replace("1.00", "1")
            heatmap.text(column, row, number, ha="center", va="center", color=ink, fontsize="small")
    every = max(1, math.ceil(len(classes) / 25))
    ticks = range(0, len(classes), every)
    labels = [_shorten(classes[index]) for index in ticks]
    heatmap.set_xticks(ticks, labels, rotation=90)
    heatmap.set_yticks(ticks, labels)
    pairs = np.triu_indices(len(matrix), 1)
    for key, name, colour in (
        ("", "flattened features", TRAIN),
        ("_pooled", "pooled features", VALIDATION),
        ("_centred", "centred on the global mean", TEST),
    ):
        values = np.array(content[f"matrix{key}"])[pairs]
        mean = content[f"class_similarity{key}"]
        bins, label = np.linspace(-1, 1, 41), f"{name}: mean {mean:.3f}"
        spread.hist(values, bins=bins, histtype="step", color=colour, lw=1.6, label=label)
        spread.axvline(mean, color=colour, ls="--", lw=1.2)
    spread.set(xlabel="cosine between the means of two classes", ylabel=f"pairs of classes (of {len(pairs[0])})")
    _whole_numbers(spread.yaxis)
    spread.grid(alpha=0.3)
    _legend_above(spread, 2)
    ratio = content["within_over_between"]
    ratio = "undefined" if ratio is None else f"{ratio:.3g}"
    images = f"{content['num_samples']:,} {content['settings']['split']} images"
    figure.suptitle(
        f"{_text(content['run'])}, epoch {content['epoch']}\n{images}, within/between class variance {ratio}"
    )
    save_figure(figure, path.with_suffix(".png"))


def _shorten(name):
    return _text(name if len(name) <= 14 else f"{name[:13]}…")


def draw_class_similarity_over_training(run):
    """class_similarity_over_training.png: the three means and the variance ratio of the measured epochs."""
    contents = [read_json(path) for path in run.measurements("class_similarity")]
    epochs = [content["epoch"] for content in contents]
    figure, axes = _figure(1, 2, figsize=(11, 4.6))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.13, top=0.84)
    for key, name, colour in (
        ("", "flattened", TRAIN),
        ("_pooled", "pooled", VALIDATION),
        ("_centred", "centred", TEST),
    ):
        values = [content[f"class_similarity{key}"] for content in contents]
        axes[0, 0].plot(epochs, values, color=colour, marker="o", ms=4, label=name)
    ratios = [
        math.nan if content["within_over_between"] is None else content["within_over_between"] for content in contents
    ]
    axes[0, 1].plot(epochs, ratios, color=TRAIN, marker="o", ms=4, label="within / between")
    axes[0, 0].set(xlabel="epoch", ylabel="class similarity (mean cosine)")
    axes[0, 1].set(xlabel="epoch", ylabel="class variance, within / between", yscale="log")
    figure.suptitle(f"{_text(run.path.name)}\nclass similarity over training, {contents[-1]['num_samples']:,} images")
    _finish_over_training(figure, axes[0], run.path / "class_similarity_over_training.png")

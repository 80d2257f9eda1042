"""Spectral density, layer traces, and curvature over training."""

import math

import numpy as np

from normstudy.plots.style import (
    TEST,
    TRAIN,
    VALIDATION,
    finish_over_training,
    legend_above,
    new_figure,
    printable,
    save_figure,
    tick_whole_numbers,
)
from normstudy.storage import read_json

SPECTRUM_WIDTH = 1 / 300  # of a Ritz value in the drawn density, as part of the whole range
MOST_NAMES = 45  # of layers that are written below an axis; more are numbered


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
    figure, axes = new_figure(1, 2, figsize=(14, 4.7 + below))
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
        f"{printable(content['run'])}, epoch {content['epoch']}\n{matrix} of the training loss, "
        f"{content['num_samples']:,} images, {mode}: trace {trace}, "
        f"{len(content['probes'])} Lanczos probes, {content['products']} products"
    )
    save_figure(figure, path.with_suffix(".png"))


def format_with_residual(value, residual):
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
        label = f"{name} = {format_with_residual(content[key], content[f'{key}_residual'])}"
        axis.axvline(content[key], color=colour, ls="--", lw=1.2, label=label)
    axis.set(yscale="log", ylim=(floor, None), xlabel="eigenvalue λ", ylabel="density of eigenvalues (per unit of λ)")
    axis.grid(alpha=0.3)
    legend_above(axis, 2)


def _draw_layer_traces(axis, content):
    names = list(content["layer_traces"])
    kinds = np.array([_layer_kind(name) for name in names])
    traces = np.array([content["layer_traces"][name]["trace"] for name in names])
    errors = np.array([content["layer_traces"][name]["standard_error"] or 0.0 for name in names])
    depth = np.arange(1, len(names) + 1)
    for kind, colour, marker in zip(dict.fromkeys(kinds), (TRAIN, TEST, VALIDATION, "#cc79a7"), "os^D", strict=False):
        here = kinds == kind
        axis.errorbar(depth[here], traces[here], errors[here], color=colour, marker=marker, ms=4, ls="none", label=kind)
    axis.set(xlabel="layer with parameters (1 = nearest the input)", ylabel="trace of the layer's block (± s.e.)")
    tick_whole_numbers(axis.xaxis)
    if len(names) <= MOST_NAMES:
        axis.set_xticks(depth, [printable(name) for name in names], rotation=90, fontsize="x-small")
        axis.set_xlabel("layer with parameters, from the input on")
    axis.grid(alpha=0.3)
    legend_above(axis, 4)


def _layer_kind(name):
    """What a layer with parameters is, from its name."""
    for word, kind in (("norm", "normalization"), ("activation", "activation"), ("classifier", "classifier")):
        if word in name:
            return kind
    return "normalization" if name.endswith("shortcut.1") else "convolution or linear"


def draw_hessian_over_training(run):
    """hessian_over_training.png: trace, outermost eigenvalues, loss and gradient norm of the measured epochs."""
    contents = [read_json(path) for path in run.measurements("hessian")]
    epochs = [content["epoch"] for content in contents]
    figure, axes = new_figure(1, 3, figsize=(15, 4.6))
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
    figure.suptitle(f"{printable(run.path.name)}\ncurvature over training, {contents[-1]['num_samples']:,} images")
    finish_over_training(figure, axes[0], run.path / "hessian_over_training.png")

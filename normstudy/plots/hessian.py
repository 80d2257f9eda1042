"""Pictures of curvature: spectral density, trace of each layer, and curvature over training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

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
from normstudy.storage import RunDirectory, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SPECTRUM_WIDTH = 1 / 300  # s.d. of the Gaussian drawn for a Ritz value, as a fraction of the range of eigenvalues
MOST_NAMES = 45  # layers up to which their names are written below the axis; more layers are numbered
EXTREMES = (("max_eigen", "λ_max", TEST), ("min_eigen", "λ_min", VALIDATION))  # key in the JSON file, name, colour


def spectral_density(probes: Iterable[Mapping[str, Any]], points: np.ndarray, width: float) -> np.ndarray:
    """Return each Lanczos probe's estimate of the density of eigenvalues at `points` (P,): (probes, P).

    Each node of a probe becomes a Gaussian of standard deviation `width`, scaled by the node's weight. The density of
    a probe integrates to 1.
    """
    curves = []
    for probe in probes:
        nodes, weights = np.array(probe["nodes"]), np.array(probe["weights"])
        distances = (points[None] - nodes[:, None]) / width
        curves.append(weights @ np.exp(-0.5 * distances**2) / (width * math.sqrt(2 * math.pi)))
    return np.array(curves)


def draw_hessian(path: Path) -> None:
    """Draw hessian.png next to the JSON file `path`, from that file only: spectral density and trace of each layer."""
    content = read_json(path)
    below = 1.5 if len(content["layer_traces"]) <= MOST_NAMES else 0.7  # inches, for the names or numbers of the layers
    height = 4.7 + below
    figure, [[density, traces]] = new_figure(1, 2, figsize=(14, height))
    figure.subplots_adjust(left=0.065, right=0.98, bottom=below / height, top=1 - 1.3 / height, wspace=0.2)
    _draw_density(density, content)
    _draw_layer_traces(traces, content)
    figure.suptitle(_title(content))
    save_figure(figure, path.with_suffix(".png"))


def _title(content: Mapping[str, Any]) -> str:
    """Return the title: the run, the measured matrix, and the settings of the measurement."""
    settings = content["settings"]
    matrix = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix"}[settings["curvature"]]
    has_statistics = settings["bn_mode"] == "train" and content.get("has_batch_statistics", True)
    mode = "batch statistics" if has_statistics else "eval mode"
    error = content["trace_standard_error"]
    trace = f"{content['trace']:.4g}"
    if error is not None:
        samples = content.get("trace_samples", len(content["probes"]) + settings["trace_probes"])
        trace += f" ± {error:.3g} (s.e. over {samples} probes)"
    return (
        f"{printable(content['run'])}, epoch {content['epoch']}\n{matrix} of the training loss, "
        f"{content['num_samples']:,} images, {mode}\ntrace {trace}, "
        f"{len(content['probes'])} Lanczos probes, {content['products']} matrix-vector products"
    )


def format_with_residual(value: float, residual: float) -> str:
    """Format a Ritz value with its residual, rounded to the digits that the residual supports: 45 (residual 11)."""
    if residual > 0 and math.isfinite(residual):
        value = round(value, 1 - math.floor(math.log10(residual)))
    size = f"{residual:.1g}" if not 1 <= residual < 1e6 else f"{residual:.0f}"
    return f"{value + 0.0:.4g} (residual {size})"  # + 0.0 turns the −0 that rounding may leave into 0


def _draw_density(panel: Axes, content: Mapping[str, Any]) -> None:
    low, high = content["min_eigen"], content["max_eigen"]
    span = (high - low) or abs(high) or 1.0
    width = span * SPECTRUM_WIDTH
    points = np.linspace(low - 0.05 * span, high + 0.05 * span, 4000)
    curves = spectral_density(content["probes"], points, width)
    floor = 1e-3 / content["dimension"] / span  # a thousandth of one eigenvalue, spread over the whole range
    mean = np.maximum(curves.mean(0), floor)
    panel.fill_between(points, floor, mean, color=TRAIN, alpha=0.2, lw=0)
    panel.plot(points, mean, color=TRAIN, lw=1.2, label=f"density (Gaussians of s.d. {width:.2g} at Ritz values)")
    for index, probe in enumerate(content["probes"]):
        label = "Ritz values" if index == 0 else None
        panel.plot(probe["nodes"], np.full(len(probe["nodes"]), floor * 2), "|", color="black", ms=7, label=label)
    for key, name, colour in EXTREMES:
        label = f"{name} = {format_with_residual(content[key], content[f'{key}_residual'])}"
        panel.axvline(content[key], color=colour, ls="--", lw=1.2, label=label)
    panel.set(yscale="log", ylim=(floor, None), xlabel="eigenvalue λ", ylabel="density of eigenvalues (per unit of λ)")
    panel.grid(alpha=0.3)
    legend_above(panel, 2)


def _draw_layer_traces(panel: Axes, content: Mapping[str, Any]) -> None:
    names = list(content["layer_traces"])
    kinds = np.array([_layer_kind(name) for name in names])
    traces = np.array([content["layer_traces"][name]["trace"] for name in names])
    errors = np.array([content["layer_traces"][name]["standard_error"] or 0.0 for name in names])
    depth = np.arange(1, len(names) + 1)
    for kind, colour, marker in zip(dict.fromkeys(kinds), (TRAIN, TEST, VALIDATION, "#cc79a7"), "os^D", strict=False):
        of_kind = kinds == kind
        values = depth[of_kind], traces[of_kind], errors[of_kind]
        panel.errorbar(*values, color=colour, marker=marker, ms=4, ls="none", label=kind)
    panel.set(xlabel="layer with parameters (1 = nearest the input)", ylabel="trace of the diagonal block (± s.e.)")
    tick_whole_numbers(panel.xaxis)
    if len(names) <= MOST_NAMES:
        panel.set_xticks(depth, [printable(name) for name in names], rotation=90, fontsize="x-small")
        panel.set_xlabel("layer with parameters, in order from the input")
    panel.grid(alpha=0.3)
    legend_above(panel, 4)


def _layer_kind(name: str) -> str:
    """Return the kind of a layer with parameters, inferred from its name."""
    for word, kind in (("norm", "normalization"), ("activation", "activation"), ("classifier", "classifier")):
        if word in name:
            return kind
    return "normalization" if name.endswith("shortcut.1") else "convolution or linear"


def draw_hessian_over_training(run: RunDirectory) -> None:
    """Draw hessian_over_training.png: trace, extreme eigenvalues, loss and gradient norm at the measured epochs."""
    contents = [read_json(path) for path in run.measurements("hessian")]
    epochs = [content["epoch"] for content in contents]
    figure, [[trace, eigenvalues, descent]] = new_figure(1, 3, figsize=(15, 4.6))
    figure.subplots_adjust(left=0.06, right=0.98, bottom=0.13, top=0.84)
    traces = [content["trace"] for content in contents]
    errors = [content["trace_standard_error"] or 0.0 for content in contents]
    trace.errorbar(epochs, traces, errors, color=TRAIN, marker="o", ms=4, label="trace ± s.e.")
    for key, name, colour in EXTREMES:
        values = [content[key] for content in contents]
        residuals = [content[f"{key}_residual"] for content in contents]
        eigenvalues.errorbar(epochs, values, residuals, color=colour, marker="o", ms=4, label=f"{name} ± residual")
    for key, name, colour in (("loss", "loss (nats per image)", TRAIN), ("gradient_norm", "gradient norm", TEST)):
        descent.plot(epochs, [content[key] for content in contents], color=colour, marker="o", ms=4, label=name)
    trace.set(xlabel="epoch", ylabel="trace")
    eigenvalues.set(xlabel="epoch", ylabel="eigenvalue")
    descent.set(xlabel="epoch", ylabel="loss, gradient norm (measured images)", yscale="log")
    figure.suptitle(f"{printable(run.path.name)}\ncurvature over training, {contents[-1]['num_samples']:,} images")
    finish_over_training(figure, (trace, eigenvalues, descent), run.path / "hessian_over_training.png")

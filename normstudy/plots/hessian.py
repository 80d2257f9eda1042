"""Pictures of curvature: spectral density, trace of each layer, and curvature over training."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from normstudy.cli import RunError
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
from normstudy.storage import RunDirectory, read_csv, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NARROWEST = 1 / 1000  # s.d. of the narrowest Gaussian drawn for a Ritz value, as a fraction of the range of eigenvalues
SPACING = 0.75  # s.d. of other Gaussians, as a fraction of the distance to the next Ritz value
SINGLE = 16  # a Ritz value of weight below this / dimension stands for one eigenvalue
MOST_NAMES = 45  # layers up to which their names are written below the axis; more layers are numbered
EXTREMES = (("max_eigen", "λ_max", TEST), ("min_eigen", "λ_min", VALIDATION))  # key in the JSON file, name, colour


def spectral_density(
    probes: Iterable[Mapping[str, Any]], points: np.ndarray, narrowest: float, dimension: int | None = None
) -> np.ndarray:
    """Return each Lanczos probe's estimate of the density of eigenvalues at `points` (P,): (probes, P).

    Each node of a probe becomes a Gaussian, scaled by the node's weight. Its standard deviation follows the distance to
    the next node, so that the curve shows a density and not the nodes. The density of a probe integrates to 1.

    narrowest: the smallest standard deviation. dimension: number of eigenvalues; if given, nodes that stand for a
    single eigenvalue are drawn with the smallest standard deviation.
    """
    curves = []
    for probe in probes:
        nodes, weights = np.array(probe["nodes"]), np.array(probe["weights"])
        gaps = np.concatenate([[np.inf], np.diff(nodes), [np.inf]])
        nearest = np.minimum(gaps[:-1], gaps[1:])
        widths = np.maximum(narrowest, np.where(np.isfinite(nearest), SPACING * nearest, narrowest))
        if dimension is not None:
            widths[weights * dimension < SINGLE] = narrowest
        distances = (points[None] - nodes[:, None]) / widths[:, None]
        curves.append((weights / widths) @ np.exp(-0.5 * distances**2) / math.sqrt(2 * math.pi))
    return np.array(curves)


def draw_hessian(path: Path) -> None:
    """Draw hessian.png next to the JSON file `path`, from that file only: spectral density and trace of each layer."""
    content = read_json(path)
    below = 1.5 if len(content["layer_traces"]) <= MOST_NAMES else 0.7  # inches, for the names or numbers of the layers
    height = 5.0 + below
    figure, [[density, traces]] = new_figure(1, 2, figsize=(14, height))
    figure.subplots_adjust(left=0.065, right=0.98, bottom=below / height, top=1 - 1.6 / height)
    _draw_density(density, content)
    _draw_layer_traces(traces, content)
    figure.suptitle(_title(content))
    save_figure(figure, path.with_suffix(".png"))


def _title(content: Mapping[str, Any]) -> str:
    """Return the title: the run, the measured matrix, and the settings of the measurement."""
    settings = content["settings"]
    mode = "eval mode"
    if settings["bn_mode"] == "train" and content.get("has_batch_statistics", True):
        mode = f"statistics of batches of {content.get('statistics_size') or settings['batch_size']}"
    error, total = content["trace_standard_error"], content.get("trace_total_error")
    trace = f"{content['trace']:.4g}"
    samples = content.get("trace_samples", len(content["probes"]) + settings["trace_probes"])
    if total is not None:
        trace += f" ± {total:.3g} (s.e. over {samples} probes and {content['image_blocks']} blocks of images)"
    elif error is not None:
        trace += f" ± {error:.3g} (s.e. over {samples} probes)"
    return (
        f"{printable(content['run'])}, epoch {content['epoch']}\n{_matrix_name(settings)} of the training loss, "
        f"{content['num_samples']:,} images, {mode}\ntrace {trace}, "
        f"{len(content['probes'])} Lanczos probes, {content['products']} matrix-vector products"
    )


def _matrix_name(settings: Mapping[str, Any]) -> str:
    """Return the name of the measured matrix, such as `filter-scaled Hessian`."""
    names = {"hessian": "Hessian", "ggn": "Gauss-Newton matrix", "empirical_fisher": "empirical Fisher matrix"}
    scale = settings.get("scale", "none")
    return ("" if scale == "none" else f"{scale}-scaled ") + names[settings["curvature"]]


def format_with_residual(value: float, residual: float) -> str:
    """Format a Ritz value with its residual, rounded to the digits that the residual supports: 45 (residual 11)."""
    if residual > 0 and math.isfinite(residual):
        value = round(value, 1 - math.floor(math.log10(residual)))
    size = f"{residual:.1g}" if not 1 <= residual < 1e6 else f"{residual:.0f}"
    return f"{value + 0.0:.4g} (residual {size})"  # + 0.0 turns the −0 that rounding may leave into 0


def _draw_density(panel: Axes, content: Mapping[str, Any]) -> None:
    low, high = content["min_eigen"], content["max_eigen"]
    span = (high - low) or abs(high) or 1.0
    points = np.linspace(low - 0.05 * span, high + 0.05 * span, 8000)
    curves = spectral_density(content["probes"], points, NARROWEST * span, content["dimension"])
    floor = 1e-3 / content["dimension"] / span  # a thousandth of one eigenvalue, spread over the whole range
    mean = np.maximum(curves.mean(0), floor)
    panel.fill_between(points, floor, mean, color=TRAIN, alpha=0.2, lw=0)
    panel.plot(points, mean, color=TRAIN, lw=1.2, label="density (Gaussians as wide as the spacing of Ritz values)")
    for index, probe in enumerate(content["probes"]):
        label = "Ritz values" if index == 0 else None
        panel.plot(probe["nodes"], np.full(len(probe["nodes"]), floor * 2), "|", color="black", ms=7, label=label)
    for key, name, colour in EXTREMES:
        label = f"{name} = {format_with_residual(content[key], content[f'{key}_residual'])}"
        panel.axvline(content[key], color=colour, ls="--", lw=1.2, label=label)
    if content.get("max_eigen_cross_fitted") is not None:
        label = f"λ_max cross-fitted to other images = {content['max_eigen_cross_fitted']:.4g}"
        panel.axvline(content["max_eigen_cross_fitted"], color=TEST, ls=":", lw=1.2, label=label)
    panel.set(yscale="log", ylim=(floor, None), xlabel="eigenvalue λ", ylabel="density of eigenvalues (per unit of λ)")
    panel.grid(alpha=0.3)
    legend_above(panel, 2)


def _draw_layer_traces(panel: Axes, content: Mapping[str, Any]) -> None:
    names = list(content["layer_traces"])
    kinds = np.array([_layer_kind(name) for name in names])
    traces = np.array([content["layer_traces"][name]["trace"] for name in names])
    errors = np.array([_error_of(content["layer_traces"][name]) for name in names])
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


def _error_of(estimate: Mapping[str, float | None]) -> float:
    """Return the total error of an estimate if it is known, or else its standard error over probes, or 0."""
    total = estimate.get("total_error")
    return (estimate["standard_error"] if total is None else total) or 0.0


def _layer_kind(name: str) -> str:
    """Return the kind of a layer with parameters, inferred from its name."""
    for word, kind in (("norm", "normalization"), ("activation", "activation"), ("classifier", "classifier")):
        if word in name:
            return kind
    return "normalization" if name.endswith("shortcut.1") else "convolution or linear"


def draw_hessian_over_training(run: RunDirectory, measurement: str) -> None:
    """Draw <measurement>_over_training.png: trace, extreme eigenvalues, loss and gradient norm at the measured epochs.

    For SGD and a Hessian as training sees it (batch statistics, no scale), a fourth panel shows λ_max times the
    learning rate η. Gradient descent becomes unstable at λ_max η = 2, with momentum β at 2(1 + β) (Cohen 2021).
    """
    contents = [read_json(path) for path in run.measurements(measurement)]
    epochs = [content["epoch"] for content in contents]
    settings = contents[-1]["settings"]
    has_statistics = contents[-1].get("has_batch_statistics", True)
    is_of_training = settings["bn_mode"] == "train" or not has_statistics
    has_edge = is_of_training and settings["curvature"] == "hessian" and settings.get("scale", "none") == "none"
    rates = _learning_rates(run, epochs) if has_edge else None
    figure, [[trace, eigenvalues, descent, *rest]] = new_figure(
        1, 4 if rates else 3, figsize=(20 if rates else 15, 4.6)
    )
    figure.subplots_adjust(left=0.05, right=0.98, bottom=0.13, top=0.8)
    traces = [content["trace"] for content in contents]
    has_total = all(content.get("trace_total_error") is not None for content in contents)
    key = "trace_total_error" if has_total else "trace_standard_error"
    errors = [content[key] or 0.0 for content in contents]
    label = f"trace ± s.e. over probes{' and images' if has_total else ''}"
    trace.errorbar(epochs, traces, errors, color=TRAIN, marker="o", ms=4, label=label)
    for key, name, colour in EXTREMES:
        values = [content[key] for content in contents]
        residuals = [content[f"{key}_residual"] for content in contents]
        eigenvalues.errorbar(epochs, values, residuals, color=colour, marker="o", ms=4, label=f"{name} ± residual")
    for key, name, colour in (("loss", "loss (nats per image)", TRAIN), ("gradient_norm", "gradient norm", TEST)):
        descent.plot(epochs, [content[key] for content in contents], color=colour, marker="o", ms=4, label=name)
    trace.set(xlabel="epoch", ylabel="trace")
    eigenvalues.set(xlabel="epoch", ylabel="eigenvalue")
    descent.set(xlabel="epoch", ylabel="loss, gradient norm (measured images)", yscale="log")
    if rates:
        _draw_edge_of_stability(rest[0], run, epochs, [content["max_eigen"] for content in contents], rates)
    figure.suptitle(
        f"{printable(run.path.name)}\n{_matrix_name(settings)} over training, {contents[-1]['num_samples']:,} images"
    )
    finish_over_training(figure, (trace, eigenvalues, descent, *rest), run.path / f"{measurement}_over_training.png")


def _learning_rates(run: RunDirectory, epochs: Sequence[int]) -> list[float] | None:
    """Return the learning rate of SGD after each epoch (before the first: its own), or None if it is unknown."""
    try:
        if read_json(run.config).get("optimizer", "sgd") != "sgd":
            return None
        by_epoch = {int(row["epoch"]): float(row["learning_rate"]) for row in read_csv(run.metrics)}
        return [by_epoch[max(1, epoch)] for epoch in epochs]
    except (RunError, OSError, KeyError, ValueError):
        return None


def _draw_edge_of_stability(
    panel: Axes, run: RunDirectory, epochs: Sequence[int], largest: Sequence[float], rates: Sequence[float]
) -> None:
    momentum = float(read_json(run.config).get("momentum", 0.0))
    values = [value * rate for value, rate in zip(largest, rates, strict=True)]
    panel.plot(epochs, values, color=TEST, marker="o", ms=4, label="λ_max η")
    panel.axhline(2, color="black", ls="--", lw=1.2, label="2: edge of stability")
    if momentum:
        panel.axhline(2 * (1 + momentum), color="black", ls=":", lw=1.2, label=f"{2 * (1 + momentum):g}: with momentum")
    panel.set(xlabel="epoch", ylabel="λ_max times the learning rate η", yscale="log")

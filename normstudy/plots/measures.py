"""Pictures of generalization measures: margins, noise, sharpness and the loss along a step, and over training."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normstudy.plots.style import TEST, TRAIN, VALIDATION, finish_over_training, new_figure, printable, save_figure
from normstudy.storage import RunDirectory, read_json

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NOISES = (("pac_bayes_sigma", "noise σ", TRAIN), ("pac_bayes_magnitude_sigma", "noise σ·|w|", TEST))
BALLS = (("l2", "L2 ball", TRAIN), ("linf", "L∞ ball", TEST))
# Panels over training: title, keys in the JSON file.
OVER_TRAINING = (
    ("margin (10th percentile)", ("margin_10",)),
    ("norm of the weights", ("l2_norm", "distance_from_init")),
    ("noise that costs 10 points of accuracy", ("pac_bayes_sigma", "pac_bayes_magnitude_sigma")),
    ("adaptive sharpness (nats)", ("adaptive_sharpness_l2", "adaptive_sharpness_linf")),
    ("gradients", ("gradient_norm", "gradient_noise_scale", "empirical_fisher_trace")),
    ("along a step", ("loss_range", "gradient_predictiveness", "effective_smoothness")),
)
COLOURS = (TRAIN, TEST, VALIDATION)


def draw_measures(path: Path) -> None:
    """Draw measures.png next to the JSON file `path`, from that file only, with a panel for each group it has."""
    content = read_json(path)
    panels = [
        (key, draw)
        for key, draw in (
            ("margins", _draw_margins),
            ("noise_curves", _draw_noise),
            ("sharpness_curves", _draw_sharpness),
            ("path", _draw_path),
        )
        if key in content
    ]
    rows, columns = (2, 2) if len(panels) > 2 else (1, max(1, len(panels)))
    figure, grid = new_figure(rows, columns, figsize=(6 * columns, 4.2 * rows + 0.6))
    edges = {"left": 0.17 / columns, "right": 1 - 0.16 / columns, "bottom": 0.13 / rows, "top": 1 - 0.24 / rows}
    figure.subplots_adjust(**edges)
    axes = [panel for row in grid for panel in row]
    for panel in axes[len(panels) :]:
        panel.axis("off")
    for panel, (key, draw) in zip(axes, panels, strict=False):
        draw(panel, content[key], content)
        panel.grid(alpha=0.3)
    if not panels and "l2_norm" in content:
        axes[0].text(0.5, 0.5, f"‖w‖ = {content['l2_norm']:.4g}", ha="center", transform=axes[0].transAxes)
    images = f"{content['num_samples']:,} training images"
    figure.suptitle(f"{printable(content['run'])}, epoch {content['epoch']}\n{images}")
    save_figure(figure, path.with_suffix(".png"))


def _draw_margins(panel: Axes, margins: list[float], content: Mapping[str, Any]) -> None:
    percentile = content["margin_10"]
    panel.hist(margins, bins=40, color=TRAIN, alpha=0.7)
    panel.axvline(percentile, color="black", ls="--", lw=1.2, label=f"10th percentile: {percentile:.3g}")
    panel.set(xlabel="margin (logit of the label minus the largest other)", ylabel="images")
    panel.legend(loc="upper left")


def _draw_noise(panel: Axes, curves: Mapping[str, list[list[float]]], content: Mapping[str, Any]) -> None:
    other = panel.twinx()
    for name, label, colour in NOISES:
        if not curves[name]:
            continue
        sigmas, accuracies, losses = zip(*curves[name], strict=True)
        found = content[name]
        words = "undefined" if found is None else f"{found:.3g}"
        panel.plot(sigmas, accuracies, color=colour, marker="o", ms=3, label=f"{label}: {words}")
        other.plot(sigmas, losses, color=colour, ls=":", lw=1.2)
        if found is not None:
            panel.axvline(found, color=colour, ls="--", lw=1)
    panel.set(xlabel="σ", ylabel="train accuracy", xscale="log", ylim=(0, 1.02))
    every_loss = [loss for name, _, _ in NOISES for _, _, loss in curves[name]]
    is_wide = every_loss and max(every_loss) > 5 * min(every_loss) > 0
    other.set(ylabel="loss (nats, dotted)", yscale="log" if is_wide else "linear")
    if panel.get_legend_handles_labels()[0]:
        panel.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncol=2, fontsize="small", frameon=False)


def _draw_sharpness(panel: Axes, curves: Mapping[str, list[list[float]]], content: Mapping[str, Any]) -> None:
    for ball, label, colour in BALLS:
        radii, rises = zip(*curves[ball], strict=True)
        relative = [0.0, *(radius / max(radii) for radius in radii)]
        panel.plot(relative, [0.0, *rises], color=colour, marker="o", ms=4, label=f"{label}, ρ = {max(radii):g}")
    panel.set(xlabel="radius / ρ", ylabel="largest rise of the loss found (nats)", ylim=(0, None))
    panel.legend(loc="upper left")


def _draw_path(panel: Axes, path: Mapping[str, list[float]], content: Mapping[str, Any]) -> None:
    factors = [0.0, *path["factors"]]
    losses = [math.nan if loss is None else loss for loss in (*path["start_loss"], *path["losses"])]
    distances = [0.0, *(math.nan if each is None else each for each in path["gradient_distances"])]
    panel.plot(factors, losses, color=TRAIN, marker="o", ms=3)
    other = panel.twinx()
    other.plot(factors, distances, color=TEST, marker="s", ms=3)
    panel.set(xlabel=f"step along −gradient, in learning rates of {content['learning_rate']:.3g}")
    panel.set_ylabel("loss (nats)", color=TRAIN)
    other.set_ylabel("distance of the gradient from that at 0", color=TEST)


def draw_measures_over_training(run: RunDirectory, measurement: str) -> None:
    """Draw <measurement>_over_training.png: the measures at each measured epoch."""
    contents = [read_json(path) for path in run.measurements(measurement)]
    epochs = [content["epoch"] for content in contents]
    groups = [(title, keys) for title, keys in OVER_TRAINING if any(key in each for key in keys for each in contents)]
    figure, [panels] = new_figure(1, len(groups), figsize=(5 * len(groups), 4.6))
    figure.subplots_adjust(left=0.32 / len(groups), right=1 - 0.06 / len(groups), bottom=0.12, top=0.82)
    for panel, (title, keys) in zip(panels, groups, strict=True):
        is_logarithmic = title != OVER_TRAINING[0][0]
        for key, colour in zip(keys, COLOURS, strict=False):
            values = [content.get(key) for content in contents]
            defined = [math.nan if each is None or (is_logarithmic and each <= 0) else each for each in values]
            panel.plot(epochs, defined, color=colour, marker="o", ms=4, label=key)
        panel.set(xlabel="epoch", ylabel=title, yscale="log" if is_logarithmic else "linear")
    figure.suptitle(
        f"{printable(run.path.name)}\ngeneralization measures over training, {contents[-1]['num_samples']:,} images"
    )
    finish_over_training(figure, panels, run.path / f"{measurement}_over_training.png")

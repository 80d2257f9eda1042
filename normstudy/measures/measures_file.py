"""Generalization measures of a run: the content of measures.json for one checkpoint."""

import argparse
import time
from collections.abc import Callable
from typing import Any

import torch

from config import peak_learning_rate
from models import build_from_config
from normstudy.cli import RunError, format_duration, progress_bar
from normstudy.measures import adaptive_sharpness, weight_noise
from normstudy.measures.adaptive_sharpness import sharpness_measures
from normstudy.measures.checkpoints import Checkpoint
from normstudy.measures.distance_from_init import distance_from_init
from normstudy.measures.generalization import ALPHA, effective_dimension
from normstudy.measures.gradient_path import BLOCKS, FACTORS, path_measures
from normstudy.measures.gradient_statistics import gradient_measures
from normstudy.measures.margins import margin_measures, margins
from normstudy.measures.measure_runs import Measurement
from normstudy.measures.network_loss import NetworkLoss
from normstudy.measures.simple_measures import simple_measures
from normstudy.measures.weight_noise import noise_measures
from normstudy.plots import draw_measures, draw_measures_over_training
from normstudy.storage import USUAL_MATRIX, read_json, read_torch

EXTREMES = 3  # about as many of the steps are taken again without each block of images
SIGMAS = 10  # about as many σ are tried in each of the two searches
CURVES = len(adaptive_sharpness.RADII) * len(adaptive_sharpness.PARTS)


def measure_generalization(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, Any]:
    """Compute the content of measures.json for one checkpoint. Raises RunError if the network cannot be measured."""
    start = time.perf_counter()
    subset = checkpoint.training_subset(args)
    dtype = getattr(torch, args.dtype)
    try:
        network = NetworkLoss(
            checkpoint.model, [(x.to(dtype), y) for x, y in checkpoint.batches(subset.images, args.batch_size)]
        )
    except ValueError as error:
        raise RunError(f"{checkpoint.run.path}: {error}") from error
    chosen = args.measures.split(",")
    content: dict[str, Any] = {"learning_rate": peak_learning_rate(checkpoint.config)}
    timings = _timings(network)
    seconds = _seconds(timings, len(network), chosen)
    work = f"{', '.join(chosen)}, about {format_duration(seconds)}"
    print(f"{checkpoint.run.path.name} epoch {checkpoint.epoch}: {work}", flush=True)
    with progress_bar(round(seconds), "measures", unit="s of work") as bar:

        def generator() -> torch.Generator:
            return torch.Generator().manual_seed(args.seed)  # a fresh one, so that a group does not depend on others

        def advancing(seconds: float) -> Callable[[], object]:
            def advance() -> None:
                checkpoint.pause()
                bar.update(seconds)

            return advance

        forward, backward, single = timings
        if "margin" in chosen:
            content |= margin_measures(network, generator()) | {"margins": margins(network).tolist()}
        if "weights" in chosen:
            content["distance_from_init"] = distance_from_init(checkpoint.model, _initial_model(checkpoint))
        if "noise" in chosen:
            measures, searches = noise_measures(network, generator(), advancing(forward))
            curves = {
                name: [[sigma, found[0].mean().item(), found[1]] for sigma, found in sorted(search.tried.items())]
                for name, search in searches.items()
            }
            content |= measures | {"noise_curves": curves, "noise_draws": weight_noise.DRAWS}
        if "sharpness" in chosen:
            measures, rises = sharpness_measures(network, generator(), advancing(backward))
            content |= measures | {
                "sharpness_curves": {
                    ball: [[radius, rise] for radius, rise in curve.items()] for ball, curve in rises.items()
                },
                "sharpness_radii": dict(adaptive_sharpness.RADII),
                "sharpness_steps": adaptive_sharpness.STEPS,
            }
        if "gradients" in chosen:
            content |= gradient_measures(network, advancing(single))
            measures, path = path_measures(network, content["learning_rate"], advancing(backward))
            content |= measures | {"path": path}
        for group in chosen:
            content |= simple_measures(network, group)
    content |= _effective_dimension(checkpoint)
    content |= subset.describe()
    return content | {"seconds": time.perf_counter() - start}


def _timings(network: NetworkLoss) -> tuple[float, float, float]:
    """Return the seconds of a forward pass and of a gradient over all images, and of the gradient of one image."""
    inputs, labels = network.batches[0]
    few = NetworkLoss(network.model, [(inputs[:16], labels[:16])], checks=False)
    seconds = []
    for function in (few.logits, few.gradient):
        function()
        begun = time.perf_counter()
        function()
        seconds.append((time.perf_counter() - begun) * len(network) / len(few))
    return seconds[0], seconds[1], 3 * seconds[1] / len(network)


def _seconds(timings: tuple[float, float, float], images: int, chosen: list[str]) -> float:
    """Return about how many seconds the chosen groups take."""
    forward, backward, single = timings
    seconds = {
        "noise": 2 * SIGMAS * weight_noise.DRAWS * forward,
        "sharpness": CURVES * (adaptive_sharpness.STEPS + 1) * backward,
        "gradients": images * single + (1 + len(FACTORS) + (1 + EXTREMES) * (BLOCKS - 1)) * backward,
    }
    return sum(seconds.get(name, forward) for name in chosen)


def _initial_model(checkpoint: Checkpoint) -> torch.nn.Module | None:
    """Return the network as it was before training, or None if that checkpoint is missing."""
    path = checkpoint.run.checkpoint(0)
    if not path.exists():
        return None
    model = build_from_config(checkpoint.config, len(checkpoint.dataset.classes))
    model.load_state_dict(read_torch(path))
    return model


def _effective_dimension(checkpoint: Checkpoint) -> dict[str, Any]:
    """Return the effective dimension, from the Hessian that was measured at the same checkpoint; None without one."""
    path = checkpoint.target.with_name(checkpoint.target.name.replace("measures", "hessian", 1))
    names = ("effective_dimension", "effective_dimension_standard_error")
    found: dict[str, Any] = {**dict.fromkeys(names), "effective_dimension_alpha": ALPHA}
    if path.exists():
        content = read_json(path)
        is_usual = all(content["settings"].get(name, usual) == usual for name, usual in USUAL_MATRIX.items())
        if is_usual and (content["epoch"], content["checkpoint_sha256"]) == (checkpoint.epoch, checkpoint.sha256):
            found |= zip(names, effective_dimension(content["probes"], content["dimension"]), strict=True)
    return found


MEASURES = Measurement("measures", measure_generalization, draw_measures, draw_measures_over_training)

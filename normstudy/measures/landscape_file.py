"""Landscape of a run: the content of landscape.json, or of landscape-to-….json, for one checkpoint."""

import argparse
import dataclasses
import math
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from config import GROUPED_NORMS, Config
from normstudy.cli import RunError, progress_bar
from normstudy.measures.checkpoints import Checkpoint, epoch_of
from normstudy.measures.landscape import MOST_PRODUCTS, Landscape, Point, barriers
from normstudy.measures.measure_runs import Measurement
from normstudy.measures.run_selection import find_checkpoints, finished_config
from normstudy.plots import draw_landscape
from normstudy.storage import RunDirectory, identity_hash, read_json, read_torch, recorded_digest

RISE = 2.0  # nats: the sharpest direction is followed to where its curvature predicts this rise of the loss
PRODUCT = 3  # a product with the Hessian takes about as long as this many evaluations with a gradient each
KINDS = ("stored", "reestimated")


def name_other_run(args: argparse.Namespace) -> None:
    """Add what identifies the run of --to to the settings. Raises RunError if it is not a finished run."""
    args.to_identity = args.to_checkpoint = None
    if args.to is not None:
        run = RunDirectory(args.to)
        args.to_identity = identity_hash(finished_config(run))
        [path] = find_checkpoints(run, "last")
        args.to_checkpoint = recorded_digest(run, path)


def measure_landscape(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, Any]:
    """Compute the content of landscape.json for one checkpoint. Raises RunError if it cannot be measured."""
    start = time.perf_counter()
    subset = checkpoint.training_subset(args)
    dtype = getattr(torch, args.dtype)
    batches = [(images.to(dtype), labels) for images, labels in checkpoint.batches(subset.images, args.batch_size)]
    other = None if args.to is None else _other_end(checkpoint, args.to)
    with progress_bar(1, "landscape", unit="evaluation") as bar:

        def advance() -> None:
            checkpoint.pause()
            bar.update()

        try:
            landscape = Landscape(checkpoint.model, batches, advance=advance)
        except ValueError as error:
            raise RunError(f"{checkpoint.run.path}: {error}") from error
        content = _around(landscape, args, bar) if other is None else _line(landscape, args, bar, *other)
    return content | {
        "has_running_statistics": landscape.has_running_statistics,
        **subset.describe(),
        "seconds": time.perf_counter() - start,
    }


def _around(landscape: Landscape, args: argparse.Namespace, bar: Any) -> dict[str, Any]:
    """Return the losses along random directions and along the sharpest one."""
    generator = torch.Generator().manual_seed(args.seed)
    distances = np.linspace(-args.distance, args.distance, 2 * args.points + 1).tolist()
    evaluations = (1 + landscape.has_running_statistics) * ((args.directions + 1) * len(distances) + 1)
    expected = 24 * PRODUCT
    bar.total = evaluations + expected
    losses, accuracies = landscape.here()

    def expect(products: int) -> None:
        landscape.advance()
        bar.update(PRODUCT - 1)
        bar.total = evaluations + PRODUCT * max(24, min(products + 1, MOST_PRODUCTS))

    sharpest = landscape.sharpest_direction(generator, expect)
    reach = math.sqrt(2 * RISE / sharpest.eigenvalue) if sharpest.eigenvalue > 0 else math.inf
    shorter = [min(1.0, reach / args.distance) * each for each in distances]
    content = {
        "loss": losses,
        "accuracy": accuracies,
        "distances": distances,
        "eigenvector": {
            "distances": shorter,
            "losses": _by_kind(landscape.along(sharpest.direction, shorter)),
            "eigenvalue": sharpest.eigenvalue,
            "eigenvalue_residual": sharpest.residual,
            "slope": sharpest.slope,
        },
    }
    directions = [landscape.random_direction(generator) for _ in range(args.directions)]
    content["random"] = [_by_kind(landscape.along(direction, distances)) for direction in directions]
    return content


def _line(
    landscape: Landscape, args: argparse.Namespace, bar: Any, end: dict[str, torch.Tensor], to: dict[str, Any]
) -> dict[str, Any]:
    """Return the losses and accuracies along the line to another network."""
    shares = np.linspace(0, 1, 2 * args.points + 1).tolist()
    bar.total = (1 + landscape.has_running_statistics) * len(shares)
    try:
        losses, accuracies = zip(*landscape.between(end, shares), strict=True)
    except ValueError as error:
        raise RunError(f"{args.to}: {error}") from error
    return {
        "to": to,
        "shares": shares,
        "losses": _by_kind(losses),
        "accuracies": _by_kind(accuracies),
        "barrier": barriers(shares, losses),
    }


def _by_kind(points: Sequence[Point]) -> dict[str, list[float] | None]:
    """Return {kind of running statistics: values}, with None for a kind that the network does not have."""
    return {kind: None if points[0][kind] is None else [point[kind] for point in points] for kind in KINDS}  # type: ignore[misc]


def _other_end(checkpoint: Checkpoint, path: str) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the last weights of another run, and its name and epoch.

    Raises RunError if it has another network or other images than this run.
    """
    run, ours = RunDirectory(path), checkpoint.config
    config = finished_config(run)
    [last] = find_checkpoints(run, "last")
    is_same = run.path.resolve() == checkpoint.run.path.resolve()
    if is_same and epoch_of(last) == checkpoint.epoch:
        raise RunError(f"{checkpoint.run.path} epoch {checkpoint.epoch} is both ends of the line")
    different = [name for name in _network_settings(ours) if getattr(ours, name) != getattr(config, name)]
    if different:
        values = ", ".join(f"{name}={getattr(config, name)}, here {getattr(ours, name)}" for name in different)
        raise RunError(f"{run.path} has another network ({values}), so there is no line between the two")
    theirs = [read_json(each.config).get("data", {}).get("fingerprint") for each in (run, checkpoint.run)]
    if theirs[0] != theirs[1]:
        raise RunError(
            f"{run.path} was trained on other images than {checkpoint.run.path}, so their losses cannot be compared "
            "(the images of Synthetic depend on --seed)"
        )
    state = read_torch(last, recorded_digest(run, last))
    return state, {"run": run.path.resolve().name, "epoch": epoch_of(last)}


def _network_settings(config: Config) -> list[str]:
    """Return the names of the settings that determine the network."""
    names = [field.name for field in dataclasses.fields(config) if field.metadata["group"] == "network"]
    return [name for name in names if name != "p_grouping" or config.norm_type in GROUPED_NORMS]


LANDSCAPE = Measurement("landscape", measure_landscape, draw_landscape)

"""The loss and the gradient along a training step (Santurkar 2018)."""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from normstudy.measures.network_loss import NetworkLoss, norm

FACTORS = tuple(0.5 * 2 ** (index / 2) for index in range(7))  # of the learning rate: from ½ to 4
BLOCKS = 6  # the jackknife for the standard errors leaves out one block of images at a time
NAMES = ("loss_range", "gradient_predictiveness", "effective_smoothness")


class Path(NamedTuple):
    """Losses, changes of the gradient, and lengths moved, one for each step along −g."""

    losses: list[float]
    distances: list[float]
    lengths: list[float]

    def measures(self) -> list[float]:
        """Return loss_range, gradient_predictiveness and effective_smoothness; NaN if one is not defined."""
        if not all(map(math.isfinite, (*self.losses, *self.distances))) or not min(self.lengths) > 0:
            return [math.nan] * len(NAMES)
        smoothness = max(distance / length for distance, length in zip(self.distances, self.lengths, strict=True))
        return [max(self.losses) - min(self.losses), max(self.distances), smoothness]

    def extremes(self) -> list[int]:
        """Return the steps on which the measures depend."""
        ratios = [distance / length for distance, length in zip(self.distances, self.lengths, strict=True)]
        losses = self.losses
        found = {losses.index(min(losses)), losses.index(max(losses)), self.distances.index(max(self.distances))}
        return sorted(found | {ratios.index(max(ratios))})


def path_measures(
    network: NetworkLoss, learning_rate: float, advance: Callable[[], object] = lambda: None
) -> tuple[dict[str, float | None], dict[str, list[float]]]:
    """Return loss_range, gradient_predictiveness and effective_smoothness with standard errors, and the path.

    The steps are η·[½, 4] along −g from the weights, with the images fixed and batch statistics where the norm has
    them, as in training. loss_range: largest minus smallest loss. gradient_predictiveness: the largest of
    ‖∇L(w) − ∇L(w − ηg)‖. effective_smoothness: the largest of this norm divided by η‖g‖. All are None if the gradient
    is zero or a loss is not finite. Standard errors are those of the jackknife over 6 blocks of images, each with its
    own g, at the steps that gave the measures; None with fewer than two images in a block. `advance` is called after
    each gradient, about 8 + 6 · 4 times.
    """
    start, path = _path(network, [factor * learning_rate for factor in FACTORS], advance)
    values = path.measures()
    names = [f"{name}_standard_error" for name in NAMES]
    measures: dict[str, float | None] = dict.fromkeys((*NAMES, *names))
    if all(map(math.isfinite, values)):
        measures |= dict(zip(NAMES, values, strict=True))
        rates = [FACTORS[index] * learning_rate for index in path.extremes()]
        measures |= dict(zip(names, _errors(network, rates, advance), strict=True))
    curves = {"losses": path.losses, "gradient_distances": path.distances, "start_loss": [start]}
    return measures, {"factors": list(FACTORS), **curves}


def _path(network: NetworkLoss, rates: Sequence[float], advance: Callable[[], object]) -> tuple[float, Path]:
    """Return the loss at the weights, and the Path of these steps."""
    start, gradient = network.gradient(batch_statistics=True)
    advance()
    length = norm(gradient)
    path = Path([], [], [rate * length for rate in rates])
    for rate in rates:
        with network.moved([-rate * each for each in gradient]):
            loss, there = network.gradient(batch_statistics=True)
        advance()
        path.losses.append(loss.item())
        path.distances.append(norm(a - b for a, b in zip(gradient, there, strict=True)))
    return start.item(), path


def _blocks(labels: torch.Tensor) -> torch.Tensor:
    """Return the block of each image, (N,). Every class is dealt out evenly, whatever its number of images."""
    blocks = torch.empty_like(labels)
    blocks[labels.argsort(stable=True)] = torch.arange(len(labels), device=labels.device) % BLOCKS
    return blocks


def _errors(network: NetworkLoss, rates: Sequence[float], advance: Callable[[], object]) -> list[float | None]:
    """Return the jackknife's standard errors of the measures over blocks of images."""
    smallest = min(len(labels) for _, labels in network.batches)
    if smallest < 2 * BLOCKS:
        return [None] * len(NAMES)
    left_out = []
    for block in range(BLOCKS):
        batches = []
        for inputs, labels in network.batches:
            kept = _blocks(labels) != block
            batches.append((inputs[kept], labels[kept]))
        _, path = _path(NetworkLoss(network.model, batches, checks=False), rates, advance)
        left_out.append(path.measures())
    values = torch.tensor(left_out, dtype=torch.float64)
    errors = ((BLOCKS - 1) ** 2 / BLOCKS * values.var(0)).sqrt().tolist()
    return [error if math.isfinite(error) else None for error in errors]

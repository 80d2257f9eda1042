"""All generalization measures of a trained network. Each group has its own file in this folder."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import get_args

import torch
from torch import nn

from normstudy.measures.adaptive_sharpness import sharpness_measures
from normstudy.measures.distance_from_init import distance_from_init
from normstudy.measures.gradient_path import path_measures
from normstudy.measures.gradient_statistics import gradient_measures
from normstudy.measures.margins import margin_measures
from normstudy.measures.network_loss import NetworkLoss
from normstudy.measures.simple_measures import Group, simple_measures
from normstudy.measures.weight_noise import noise_measures

ALPHA = 1.0  # of the effective dimension: eigenvalues well above it count as 1


def generalization_measures(
    model: nn.Module,
    initial_model: nn.Module | None,
    batches: Iterable[tuple[torch.Tensor, torch.Tensor]],
    generator: torch.Generator,
    *,
    learning_rate: float,
) -> dict[str, float | None]:
    """Return the measures of docs/measuring.md, with their standard errors where they are estimates.

    batches: (inputs, labels) of the training images, class-balanced and unaugmented, as a training step sees them:
    the measures along a step use the batch statistics of each. learning_rate: the peak rate of training. A measure that
    is not defined is None. effective_dimension is not among them, because it follows from a measured spectrum (see
    `effective_dimension`).

    Raises ValueError if the model's outputs are not a function of each image alone, or for models without convolutions
    and linear layers.
    """
    network = NetworkLoss(model, batches)
    noise, _ = noise_measures(network, generator)
    sharpness, _ = sharpness_measures(network, generator)
    path, _ = path_measures(network, learning_rate)
    measures = {"distance_from_init": distance_from_init(model, initial_model), **margin_measures(network, generator)}
    measures |= noise | sharpness | gradient_measures(network) | path
    for group in get_args(Group):
        measures |= simple_measures(network, group)
    return {name: None if value is None or not math.isfinite(value) else value for name, value in measures.items()}


def effective_dimension(probes: Sequence[Mapping[str, Sequence[float]]], dimension: int) -> tuple[float, float | None]:
    """Return Σ λ/(λ+ALPHA) over the positive eigenvalues, from the Lanczos probes of hessian.json.

    With it comes its standard error over probes, or None for a single one.
    probes: {"nodes": eigenvalues of a quadrature, "weights": their weights, which sum to 1} for each probe.
    """
    sums = [
        sum(
            weight * node / (node + ALPHA)
            for node, weight in zip(probe["nodes"], probe["weights"], strict=True)
            if node > 0
        )
        for probe in probes
    ]
    values = dimension * torch.tensor(sums, dtype=torch.float64)
    return values.mean().item(), (values.std() / len(sums) ** 0.5).item() if len(sums) > 1 else None

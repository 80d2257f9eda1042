"""All generalization measures of a trained network. Each group has its own file in this folder."""

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import nn

from normstudy.measures.adaptive_sharpness import sharpness_measures
from normstudy.measures.gradient_path import path_measures
from normstudy.measures.gradient_statistics import gradient_measures
from normstudy.measures.margins import margin_measures
from normstudy.measures.network_loss import NetworkLoss
from normstudy.measures.weight_noise import noise_measures
from normstudy.measures.weight_norms import weight_measures

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
    return {
        **weight_measures(model, initial_model),
        **margin_measures(network, generator),
        **noise,
        **sharpness,
        **gradient_measures(network),
        **path,
    }


def effective_dimension(probes: Sequence[Mapping[str, Sequence[float]]], dimension: int, alpha: float = ALPHA) -> float:
    """Return Σ λ/(λ+α) over the positive eigenvalues, from the Lanczos probes of hessian.json.

    probes: {"nodes": eigenvalues of a quadrature, "weights": their weights, which sum to 1} for each probe.
    """
    sums = [
        sum(
            weight * node / (node + alpha)
            for node, weight in zip(probe["nodes"], probe["weights"], strict=True)
            if node > 0
        )
        for probe in probes
    ]
    return dimension * sum(sums) / len(sums)

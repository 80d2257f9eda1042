"""Norms of the weights, and their distance from the start of training."""

import torch
from torch import nn

from normstudy.measures.network_loss import norm, weights_of


@torch.no_grad()
def weight_measures(model: nn.Module, initial_model: nn.Module | None) -> dict[str, float | None]:
    """Return l2_norm, ‖w‖₂, and distance_from_init, ‖w − w₀‖₂, which is None without the initial model.

    Raises ValueError if the two models have other weights.
    """
    weights = weights_of(model)
    measures: dict[str, float | None] = {"l2_norm": norm(weights), "distance_from_init": None}
    if initial_model is not None:
        initial = weights_of(initial_model)
        if [each.shape for each in weights] != [each.shape for each in initial]:
            raise ValueError("the initial model has weights of other shapes")
        pairs = zip(weights, initial, strict=True)
        measures["distance_from_init"] = norm(each - first.to(each) for each, first in pairs)
    return measures

"""The distance of the weights from the start of training."""

import torch
from torch import nn

from normstudy.measures.network_loss import norm, weights_of


@torch.no_grad()
def distance_from_init(model: nn.Module, initial_model: nn.Module | None) -> float | None:
    """Return ‖w − w₀‖₂ over all weights of convolutions and linear layers; None without the initial model.

    Raises ValueError if the two models have other weights.
    """
    if initial_model is None:
        return None
    weights, initial = weights_of(model), weights_of(initial_model)
    if [each.shape for each in weights] != [each.shape for each in initial]:
        raise ValueError("the initial model has weights of other shapes")
    return norm(each - first.to(each) for each, first in zip(weights, initial, strict=True))

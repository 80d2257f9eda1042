"""Measures that are a function of the network alone. docs/adding.md shows how to add one."""

from collections.abc import Callable
from typing import Literal

import torch

from normstudy.measures.network_loss import NetworkLoss, mean_and_error, norm

Group = Literal["margin", "weights", "noise", "sharpness", "gradients"]
Value = float | None | tuple[float | None, float | None]  # a value, or a value and its standard error
Function = Callable[[NetworkLoss], Value]

_FUNCTIONS: dict[Group, list[Function]] = {}


def in_group(group: Group) -> Callable[[Function], Function]:
    """Add the decorated function to a group of --measures. Its name is the measure's, as in storage/measure_columns."""

    def add(function: Function) -> Function:
        _FUNCTIONS.setdefault(group, []).append(function)
        return function

    return add


def simple_measures(network: NetworkLoss, group: Group) -> dict[str, float | None]:
    """Return the measures of this file that belong to a group, with their standard errors."""
    measures: dict[str, float | None] = {}
    for function in _FUNCTIONS.get(group, []):
        name, value = function.__name__, function(network)
        if isinstance(value, tuple):
            measures[name], measures[f"{name}_standard_error"] = value
        else:
            measures[name] = value
    return measures


@in_group("weights")
def l2_norm(network: NetworkLoss) -> Value:
    """Return the norm of all weights, ‖w‖₂."""
    return norm(each.detach() for each in network.weights)


@in_group("margin")
def cross_entropy(network: NetworkLoss) -> Value:
    """Return the mean cross-entropy in nats."""
    return mean_and_error(network.losses())


@in_group("margin")
def output_entropy(network: NetworkLoss) -> Value:
    """Return the mean entropy of the predicted probabilities in nats."""
    return mean_and_error(torch.special.entr(network.logits().softmax(1)).sum(1))

"""The loss and the gradient along a training step (Santurkar 2018)."""

from collections.abc import Callable

import torch

from normstudy.measures.network_loss import NetworkLoss, norm

FACTORS = tuple(0.5 * 2 ** (index / 2) for index in range(7))  # of the learning rate: from ½ to 4


def path_measures(
    network: NetworkLoss, learning_rate: float, advance: Callable[[], object] = lambda: None
) -> tuple[dict[str, float | None], dict[str, list[float]]]:
    """Return loss_range, gradient_predictiveness and effective_smoothness, and the values along the step.

    The steps are η·[½, 4] along −g from the weights, with the images fixed and batch statistics where the norm has
    them, as in training. loss_range: largest minus smallest loss. gradient_predictiveness: the largest of
    ‖∇L(w) − ∇L(w − ηg)‖. effective_smoothness: the largest of this norm divided by η‖g‖. All are None if the gradient
    is zero or a loss is not finite. `advance` is called after each of the 8 gradients.
    """
    start, gradient = network.gradient(batch_statistics=True)
    advance()
    length = norm(gradient)
    losses, distances, moves = [], [], []
    for factor in FACTORS:
        rate = factor * learning_rate
        with network.moved([-rate * each for each in gradient]):
            loss, there = network.gradient(batch_statistics=True)
        advance()
        losses.append(loss.item())
        distances.append(norm(a - b for a, b in zip(gradient, there, strict=True)))
        moves.append(rate * length)
    curves = {"factors": list(FACTORS), "losses": losses, "gradient_distances": distances, "start_loss": [start.item()]}
    names = ("loss_range", "gradient_predictiveness", "effective_smoothness")
    if not length > 0 or not torch.tensor([*losses, *distances]).isfinite().all():
        return dict.fromkeys(names), curves
    smoothness = max(distance / move for distance, move in zip(distances, moves, strict=True))
    return dict(zip(names, (max(losses) - min(losses), max(distances), smoothness), strict=True)), curves

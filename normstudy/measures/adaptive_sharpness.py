"""Adaptive sharpness: how much the loss rises near the weights, relative to their own size (Kwon 2021)."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch

from normstudy.measures.network_loss import NetworkLoss, norm

Ball = Literal["l2", "linf"]
# The largest radii, in steps of 2 and 2.5, at which the loss of none of several norms rose by more than chance, ln 10,
# in VGGs trained to a loss of 0.1 on 2,000 images of CIFAR-10. Smaller ones have larger relative errors.
RADII: dict[Ball, float] = {"l2": 1.0, "linf": 0.002}
PARTS = (0.5, 1.0)  # of the radius, for the picture; the measure is that of the whole radius
STEPS = 10
STEP_SIZE = 0.25  # of the radius, halved over the steps
START = 1e-3  # of the radius: the length of the random start, from which even a stationary point is left


class Ascent:
    """Normalized gradient ascent of the loss over u = δ/|w| in a ball, elementwise, with δ added to the weights w."""

    def __init__(self, network: NetworkLoss, ball: Ball, radius: float, generator: torch.Generator) -> None:
        self.network, self.ball, self.radius = network, ball, radius
        self.sizes = [weight.detach().abs() for weight in network.weights]
        random = [torch.randn(each.shape, generator=generator).to(each) for each in self.sizes]
        self.u = self._projected([START * each for each in self._directed(random, radius)])

    def _directed(self, gradient: Sequence[torch.Tensor], length: float) -> list[torch.Tensor]:
        """Return the steepest step of this length: along the gradient (l2) or along its signs (linf)."""
        if self.ball == "linf":
            return [length * each.sign() for each in gradient]
        size = norm(gradient)
        return [each * (length / size if size > 0 else 0.0) for each in gradient]

    def _projected(self, u: list[torch.Tensor]) -> list[torch.Tensor]:
        """Return the closest point of the ball."""
        if self.ball == "linf":
            return [each.clamp(-self.radius, self.radius) for each in u]
        size = norm(u)
        return [each * (self.radius / size) for each in u] if size > self.radius else u

    def delta(self) -> list[torch.Tensor]:
        """Return the step δ of the weights."""
        return [each * size for each, size in zip(self.u, self.sizes, strict=True)]

    def ascend(self, steps: int, advance: Callable[[], object]) -> tuple[float, list[torch.Tensor]]:
        """Return the largest loss on the way, and its δ."""
        best, found = -float("inf"), self.delta()
        for index in range(steps + 1):
            with self.network.moved(self.delta()):
                loss, gradient = self.network.gradient()
            advance()
            if loss.item() > best:
                best, found = loss.item(), self.delta()
            if index < steps:
                rise = [each * size for each, size in zip(gradient, self.sizes, strict=True)]
                length = self.radius * STEP_SIZE * (1 - index / (2 * steps))
                moves = self._directed(rise, length if self.ball == "l2" else 2 * length)
                self.u = self._projected([each + move for each, move in zip(self.u, moves, strict=True)])
        return best, found


def sharpness(
    network: NetworkLoss,
    ball: Ball,
    radius: float,
    generator: torch.Generator,
    advance: Callable[[], object] = lambda: None,
) -> tuple[float, float]:
    """Return (rise, its standard error over images): the largest rise of the mean loss found within ‖δ/|w|‖ ≤ radius.

    It is a lower bound of the largest rise, and at least 0.
    """
    _, delta = Ascent(network, ball, radius, generator).ascend(STEPS, advance)
    before = network.losses()
    with network.moved(delta):
        rises = network.losses() - before
    return max(rises.mean().item(), 0.0), (rises.std() / len(rises) ** 0.5).item()


def sharpness_measures(
    network: NetworkLoss, generator: torch.Generator, advance: Callable[[], object] = lambda: None
) -> tuple[dict[str, float | None], dict[str, dict[float, float]]]:
    """Return adaptive_sharpness_l2 and _linf with their standard errors over images, and {ball: {radius: rise}}.

    Radius, steps and start are fixed (RADII, STEPS, START), so that networks compare. `advance` is called after each of
    the 4 · (STEPS + 1) gradients.
    """
    measures: dict[str, float | None] = {}
    curves: dict[str, dict[float, float]] = {}
    for ball, radius in RADII.items():
        name = f"adaptive_sharpness_{ball}"
        curves[ball] = {}
        for part in PARTS:
            rise, error = sharpness(network, ball, part * radius, generator, advance)
            curves[ball][part * radius] = rise
            measures[name], measures[f"{name}_standard_error"] = rise, error
    return measures, curves

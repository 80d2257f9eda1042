"""The loss along lines through the weights: random directions, the sharpest direction, and the line to another network.

Each loss is computed twice: with the running statistics as they are, and with those that the moved network has on the
same images. The two differ because moved weights change the statistics.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import nn

from normstudy.curvature import eigenpairs, has_running_statistics, hessian_matvec, parameter_scales, unwrap
from normstudy.measures.network_loss import Batches, NetworkLoss

TOLERANCE = 1e-2  # of the eigenvalue: the residual at which the search for the sharpest direction ends
MOST_PRODUCTS = 60
Point = dict[str, float | None]  # {"stored": …, "reestimated": …}: a value with each kind of running statistics


class SharpestDirection(NamedTuple):
    """The top eigenvector u of the filter-scaled Hessian D H D as a direction D u, with ‖u‖ = 1.

    Moving by x along D u changes the filters by x in total, in units of their norms. `slope` and `eigenvalue` are the
    first two derivatives of the loss along it, and `residual` bounds the error of the eigenvalue.
    """

    direction: list[torch.Tensor]
    slope: float
    eigenvalue: float
    residual: float


class Landscape:
    """The mean loss and the accuracy of a network, with either kind of running statistics, over one set of images.

    With re-estimated statistics, all images are one batch, whose statistics are those that running statistics of these
    images would have. Networks without running statistics have no such values (None).
    """

    def __init__(
        self, model: nn.Module, batches: Batches, checks: bool = True, advance: Callable[[], object] = lambda: None
    ) -> None:
        self.model, self.advance = unwrap(model), advance
        self.stored = NetworkLoss(self.model, batches, checks)
        inputs, labels = (torch.cat(each) for each in zip(*self.stored.batches, strict=True))
        self.whole = NetworkLoss(self.model, [(inputs, labels)], checks=False)
        self.has_running_statistics = has_running_statistics(self.model)
        self.parameters = [each for each in self.model.parameters() if each.requires_grad]

    def here(self) -> tuple[Point, Point]:
        """Return the mean loss and the accuracy at the present weights."""
        losses: Point = {"stored": None, "reestimated": None}
        accuracies = dict(losses)
        for name, network in (("stored", self.stored), ("reestimated", self.whole)):
            if name == "stored" or self.has_running_statistics:
                logits = network.logits(batch_statistics=name == "reestimated")
                losses[name] = nn.functional.cross_entropy(logits, network.labels).item()
                accuracies[name] = (logits.argmax(1) == network.labels).double().mean().item()
                self.advance()
        return losses, accuracies

    def along(self, direction: Sequence[torch.Tensor], distances: Sequence[float]) -> list[Point]:
        """Return the mean loss at each distance along a direction, which has one tensor for each parameter."""
        found = []
        for distance in distances:
            with self.stored.moved([distance * each for each in direction], self.parameters):
                found.append(self.here()[0])
        return found

    def random_direction(self, generator: torch.Generator) -> list[torch.Tensor]:
        """Return a filter-normalized Gaussian direction (Li 2018): each filter has the same norm as in the network.

        A step of length x then changes each filter by x times its norm. Biases and the parameters of norms stay as they
        are.
        """
        weights = {id(each) for each in self.stored.weights}
        steps = [torch.randn(each.shape, generator=generator, dtype=each.dtype).to(each) for each in self.parameters]
        sizes = self._split(parameter_scales(self.model, "filter"))
        norms = self._split(parameter_scales(self.model, "filter", at=steps))
        return [
            step * size / norm if id(parameter) in weights else torch.zeros_like(step)
            for parameter, step, size, norm in zip(self.parameters, steps, sizes, norms, strict=True)
        ]

    def sharpest_direction(self, generator: torch.Generator, expect: Callable[[int], object]) -> SharpestDirection:
        """Compute the SharpestDirection, with the running statistics as they are.

        `expect` is called with the number of products so far. Raises ArithmeticError if a derivative is not finite.
        """
        matvec, dimension = hessian_matvec(self.model, self.stored.batches, scale="filter", checks=False)
        dtype, device = self.parameters[0].dtype, self.parameters[0].device
        values, vectors, residuals = eigenpairs(
            *(matvec, dimension, 1, generator),
            tolerance=TOLERANCE,
            max_products=MOST_PRODUCTS,
            dtype=dtype,
            device=device,
            expect=expect,
        )
        direction = self._split(vectors[0] * parameter_scales(self.model, "filter"))
        _, gradient = self.stored.gradient(self.parameters)
        pairs = zip(gradient, direction, strict=True)
        slope = sum((each.double() * step.double()).sum().item() for each, step in pairs)
        return SharpestDirection(direction, slope, values[0].item(), residuals[0].item())

    def _split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        parts = vector.split([each.numel() for each in self.parameters])
        return [part.view_as(each) for part, each in zip(parts, self.parameters, strict=True)]

    def between(self, end: Mapping[str, torch.Tensor], shares: Sequence[float]) -> Iterator[tuple[Point, Point]]:
        """Yield the mean loss and the accuracy at (1 − t) · this network + t · the other, for each share t.

        `end` is the other's state_dict; running statistics are interpolated as well. The network is restored at the
        end. Raises ValueError if the two have other tensors.
        """
        start = {name: each.detach().clone() for name, each in self.model.state_dict().items()}
        if {name: each.shape for name, each in start.items()} != {name: each.shape for name, each in end.items()}:
            raise ValueError("the two networks have different parameters or running statistics")
        try:
            for share in shares:
                self.model.load_state_dict({name: _between(start[name], end[name], share) for name in start})
                yield self.here()
        finally:
            self.model.load_state_dict(start)


def barriers(shares: Sequence[float], losses: Sequence[Point]) -> Point:
    """Return the largest excess of the loss over the straight line between the losses at the two ends (Frankle 2020).

    It is None where there are no re-estimated losses, or where a loss is not finite.
    """
    found: Point = {}
    for kind in ("stored", "reestimated"):
        values = [math.nan if (value := each[kind]) is None else value for each in losses]
        chord = [(1 - share) * values[0] + share * values[-1] for share in shares]
        excess = [value - line for value, line in zip(values, chord, strict=True)]
        found[kind] = max(excess) if all(map(math.isfinite, excess)) else None
    return found


def _between(start: torch.Tensor, end: torch.Tensor, share: float) -> torch.Tensor:
    if not start.is_floating_point():
        return start if share < 0.5 else end.to(start)
    return torch.lerp(start, end.to(start), share)

"""SGD with momentum and weight decay."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch.optim.sgd import sgd


class SGD:
    """Stochastic gradient descent with momentum and an L2 penalty on every parameter, as in torch.optim.SGD.

    v ← momentum · v + gradient + weight_decay · w, then w ← w − rate · v. The arithmetic is torch's. Its class is not
    used, because the first instance imports torch's compiler, which takes seconds.
    """

    def __init__(self, parameters: Iterable[torch.Tensor], momentum: float, weight_decay: float) -> None:
        self.parameters = list(parameters)
        self.momentum, self.weight_decay = momentum, weight_decay
        self.velocities = [torch.zeros_like(parameter) if momentum else None for parameter in self.parameters]

    def gradients(self) -> list[torch.Tensor]:
        """Return the gradient of each parameter. Raises ValueError if one has none."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if len(gradients) < len(self.parameters):
            raise ValueError("some parameters have no gradient")
        return gradients

    @torch.no_grad()
    def step(self, rate: float | torch.Tensor) -> None:
        """Update the parameters; `rate` is a number, or a zero-dimensional tensor on their device."""
        sgd(
            self.parameters,
            self.gradients(),
            self.velocities,
            lr=rate,
            momentum=self.momentum,
            weight_decay=self.weight_decay,
            dampening=0.0,
            nesterov=False,
            maximize=False,
            fused=self.parameters[0].device.type != "mps",
        )

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        for parameter in self.parameters:
            parameter.grad = None

    def tensors(self) -> list[torch.Tensor]:
        """Return the velocities; there are none without momentum."""
        return [velocity for velocity in self.velocities if velocity is not None]

    def state_dict(self) -> dict[str, Any]:
        return {"velocities": self.velocities}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy the state that state_dict() returned. Raises ValueError if it belongs to other parameters."""
        velocities = state["velocities"]
        shapes = [[None if v is None else v.shape for v in each] for each in (self.velocities, velocities)]
        if shapes[0] != shapes[1]:
            raise ValueError("the optimizer's state belongs to other parameters")
        for own, loaded in zip(self.velocities, velocities, strict=True):
            if own is not None:
                own.copy_(loaded)

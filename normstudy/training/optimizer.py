"""The optimizers of torch.optim. The learning rate is given at each step, and the state exists from the start."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from config import Config
from models import weight_names

STATE_NAMES = {"sgd": ("momentum_buffer",), "adamw": ("step", "exp_avg", "exp_avg_sq")}
TINY = torch.finfo(torch.float32).tiny
EARLIER_NAME = {"velocities": "momentum_buffer"}  # states of the version that had its own SGD


class Optimizer:
    """torch.optim.SGD or torch.optim.AdamW, as the Config says.

    The state of torch's optimizers appears in their first step. Here it exists from the start, filled with zeros, which
    gives the same steps, so that all processes of a run can receive it from the first one.
    """

    def __init__(self, config: Config, model: nn.Module) -> None:
        named = dict(model.named_parameters())
        decayed = weight_names(model) if config.weight_decay_on == "weights" else list(named)
        rest = [name for name in named if name not in set(decayed)]
        groups: list[dict[str, Any]] = [
            {"params": [named[name] for name in names], "weight_decay": decay}
            for names, decay in ((decayed, config.weight_decay), (rest, 0.0))
            if names
        ]
        self.parameters = list(named.values())
        device = self.parameters[0].device
        is_fused = device.type != "mps"
        self.inner: torch.optim.Optimizer
        if config.optimizer == "sgd":
            self.inner = torch.optim.SGD(
                groups, lr=1.0, momentum=config.momentum, nesterov=config.nesterov, fused=is_fused
            )
        else:
            is_graphed = device.type == "cuda"
            self.inner = torch.optim.AdamW(groups, lr=1.0, fused=is_fused, capturable=is_graphed)
        has_state = config.optimizer != "sgd" or config.momentum > 0
        self.state_names = STATE_NAMES[config.optimizer] if has_state else ()
        for parameter in self.parameters:
            for name in self.state_names:
                scalar = torch.zeros((), device=device)
                self.inner.state[parameter][name] = scalar if name == "step" else torch.zeros_like(parameter)

    def gradients(self) -> list[torch.Tensor]:
        """Return the gradient of each parameter. Raises ValueError if one has none."""
        gradients = [parameter.grad for parameter in self.parameters if parameter.grad is not None]
        if len(gradients) < len(self.parameters):
            raise ValueError("some parameters have no gradient")
        return gradients

    @torch.no_grad()
    def clip(self, max_norm: float | None) -> None:
        """Scale the gradient of all parameters down to an L2 norm of at most `max_norm`; None does nothing."""
        if max_norm is not None:
            gradients = self.gradients()
            # In units of the largest entry: squares of entries above 1e19 overflow, and the update would be 0.
            largest = torch.stack(torch._foreach_norm(gradients, math.inf)).max().clamp(min=TINY)
            length = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(torch._foreach_div(gradients, largest))))
            torch._foreach_mul_(gradients, (max_norm / largest / length.clamp(min=TINY)).clamp(max=1))

    def step(self, rate: float | torch.Tensor) -> None:
        """Update the parameters; `rate` is a number, or a zero-dimensional tensor on their device."""
        for group in self.inner.param_groups:
            group["lr"] = rate
        self.inner.step()

    def zero_grad(self) -> None:
        """Set all gradients to None."""
        self.inner.zero_grad(set_to_none=True)

    def tensors(self) -> list[torch.Tensor]:
        """Return the tensors of the state."""
        return [tensor for tensors in self.state_dict().values() for tensor in tensors]

    def state_dict(self) -> dict[str, list[torch.Tensor]]:
        """Return {name of torch's state: its tensor for each parameter}."""
        return {name: [self.inner.state[each][name] for each in self.parameters] for name in self.state_names}

    @torch.no_grad()
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Copy the state that state_dict() returned. Raises ValueError if it belongs to other parameters."""
        loaded = {
            EARLIER_NAME.get(name, name): tensors
            for name, tensors in state.items()
            if any(tensor is not None for tensor in tensors)
        }
        own = self.state_dict()
        if {name: [each.shape for each in tensors] for name, tensors in own.items()} != {
            name: [each.shape for each in tensors] for name, tensors in loaded.items()
        }:
            raise ValueError("the optimizer's state belongs to other parameters")
        for name, tensors in own.items():
            for tensor, value in zip(tensors, loaded[name], strict=True):
                tensor.copy_(value)

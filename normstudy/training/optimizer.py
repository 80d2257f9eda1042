"""SGD with momentum and weight decay."""

import torch
from torch.optim.sgd import sgd


class SGD:
    """Stochastic gradient descent with momentum and an L2 penalty on every parameter, as torch.optim.SGD takes it.

    v ← momentum · v + gradient + weight_decay · w, then w ← w − rate · v. The arithmetic is torch's; its class is
    not used, because the first one that is made imports torch's compiler, which takes seconds.
    """

    def __init__(self, parameters, momentum, weight_decay):
        self.parameters = list(parameters)
        self.settings = {"momentum": momentum, "weight_decay": weight_decay}
        self.velocities = [torch.zeros_like(parameter) if momentum else None for parameter in self.parameters]

    @torch.no_grad()
    def step(self, rate):
        """Moves the parameters along their gradients; rate is a number or a zero-dimensional tensor beside them."""
        gradients = [parameter.grad for parameter in self.parameters]
        is_fused = self.parameters[0].device.type != "mps"
        fixed = {"dampening": 0.0, "nesterov": False, "maximize": False, "fused": is_fused}
        sgd(self.parameters, gradients, self.velocities, lr=rate, **self.settings, **fixed)

    def zero_grad(self):
        for parameter in self.parameters:
            parameter.grad = None

    def tensors(self):
        """The velocities that there are."""
        return [velocity for velocity in self.velocities if velocity is not None]

    def state_dict(self):
        return {"velocities": self.velocities}

    def load_state_dict(self, state):
        """Takes back what state_dict() gave. Raises ValueError where it is of other parameters."""
        velocities = state["velocities"]
        shapes = [[None if v is None else v.shape for v in each] for each in (self.velocities, velocities)]
        if shapes[0] != shapes[1]:
            raise ValueError("the optimizer's state is of other parameters")
        for own, loaded in zip(self.velocities, velocities, strict=True):
            if own is not None:
                own.copy_(loaded)

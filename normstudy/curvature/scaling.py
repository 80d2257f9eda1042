"""Scales D of the parameters, for the spectrum of D H D.

The Hessian itself depends on the size of weights that a norm makes irrelevant: doubling all filters in front of a batch
norm leaves the function unchanged and divides these rows of the Hessian by 2 and their diagonal blocks by 4. With
the scales here, D H D does not change.
"""

import torch
from torch import nn

from .model_state import trainable_parameters, unwrap

SCALES = ("none", "filter", "element")
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def parameter_scales(model: nn.Module, scale: str) -> torch.Tensor:
    """Return the scale of each trainable parameter, (dimension,), in the order of model.parameters().

    Args:
        model: The model.
        scale: "none" gives ones; "element" gives |w|; "filter" gives the norm of the output filter that a weight of a
            convolution or linear layer belongs to, and |w| for any other parameter.

    Raises:
        ValueError: If `scale` is unknown.
    """
    if scale not in SCALES:
        raise ValueError(f"scale {scale!r} is not one of {', '.join(SCALES)}")
    model = unwrap(model)
    outputs: dict[int, int] = {}  # {id of a weight: dimension of its output filters}
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):
            outputs[id(module.weight)] = 1 if isinstance(module, TRANSPOSED) else 0
    parts = []
    for parameter in trainable_parameters(model).values():
        values = parameter.detach()
        if scale == "none":
            values = torch.ones_like(values)
        elif scale == "filter" and id(parameter) in outputs:
            others = [axis for axis in range(values.dim()) if axis != outputs[id(parameter)]]
            values = torch.linalg.vector_norm(values, dim=others, keepdim=True).expand_as(values)
        parts.append(values.abs().reshape(-1))
    return torch.cat(parts)

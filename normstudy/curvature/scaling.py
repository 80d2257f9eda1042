"""Scales D of the parameters, for the spectrum of D H D.

The Hessian itself depends on the size of weights that a norm makes irrelevant: doubling all filters in front of a batch
norm leaves the function unchanged and divides these rows of the Hessian by 2 and their diagonal blocks by 4. With
the scales here, D H D does not change.
"""

from collections.abc import Iterable

import torch
from torch import nn

from .model_state import trainable_parameters, unwrap

SCALES = ("none", "filter", "element")
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


def parameter_scales(model: nn.Module, scale: str, at: Iterable[torch.Tensor] | None = None) -> torch.Tensor:
    """Return the scale of each trainable parameter, (dimension,), in the order of model.parameters().

    Args:
        model: The model.
        scale: "none" gives ones; "element" gives |w|; "filter" gives the norm of the output filter that a weight of a
            convolution or linear layer belongs to, and |w| for any other parameter (also the weights of attention and
            recurrent layers, embeddings, and the tensors behind parametrizations).
        at: Tensors of the parameters' shapes whose scales to return, in place of the parameters' own.

    Raises:
        ValueError: If `scale` is unknown.
    """
    if scale not in SCALES:
        raise ValueError(f"scale {scale!r} is not one of {', '.join(SCALES)}")
    model = unwrap(model)
    groups: dict[int, int] = {}  # {id of a weight: groups of a transposed convolution, 0 for other layers}
    for module in model.modules():
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear):  # reading module.weight runs its parametrization
            weight = module._parameters.get("weight")
            groups[id(weight)] = module.groups if isinstance(module, TRANSPOSED) else 0
    parts = []
    parameters = list(trainable_parameters(model).values())
    for parameter, values in zip(parameters, parameters if at is None else at, strict=True):
        values = values.detach()
        if scale == "none":
            values = torch.ones_like(values)
        elif scale == "filter" and id(parameter) in groups:
            values = _filter_norms(values, groups[id(parameter)])
        parts.append(values.abs().reshape(-1))
    return torch.cat(parts)


def _filter_norms(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the norm of the filter of each entry, in the shape of the weight or with its first dimension divided.

    A weight is (outputs, …), or (inputs, outputs of a group, …) for a transposed convolution.
    """
    if not groups:
        axes = list(range(1, weight.dim()))
    else:
        weight = weight.unflatten(0, (groups, -1))
        axes = [1, *range(3, weight.dim())]
    return torch.linalg.vector_norm(weight, dim=axes, keepdim=True).expand_as(weight)

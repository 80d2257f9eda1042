"""The loss that curvature is measured of: the mean cross-entropy of a model over batches."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Literal

import torch
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from .model_copy import derivative_copy, jvp_is_differentiable
from .precision import full_float32

BNMode = Literal["eval", "train"]
Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


class Objective:
    """The mean cross-entropy of a model over batches, as a function of its trainable parameters.

    Batches are (images, labels), in any iterable that can be walked repeatedly; an iterator is kept as a list.
    forward_mode: whether forward-mode derivatives are taken; False: two backward passes.
    Raises ValueError for another loss, a model without trainable parameters, and batches that are no pairs.
    """

    def __init__(
        self, model: nn.Module, batches: Batches, loss: str, bn_mode: str, *, forward_mode: bool = True
    ) -> None:
        if loss != "cross_entropy":
            raise ValueError(f"loss {loss!r} is not cross_entropy")
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no trainable parameters")
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.dimension = sum(self.sizes)
        if isinstance(batches, (tuple, list)) and any(isinstance(each, torch.Tensor) for each in batches):
            raise ValueError("batches are a list of pairs: [(images, labels)]")
        self.batches = list(batches) if isinstance(batches, Iterator) else batches
        self.model = derivative_copy(model, bn_mode, forward_mode=forward_mode)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self.names = [names[id(parameter)] for parameter in self.parameters]
        self.jvp_is_differentiable = jvp_is_differentiable(self.model)

    def logits(self, images: torch.Tensor, parameters: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """The model's outputs (N, classes) with these parameters, or its own."""
        parameters = self.parameters if parameters is None else parameters
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(self.model, dict(zip(self.names, parameters, strict=True)), (images,))

    def summed_loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """The cross-entropy of a batch, summed over its samples."""
        return F.cross_entropy(self.logits(images), labels, reduction="sum")

    def gradient_graph(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """The gradient of the summed loss in each parameter, with its graph; None if the loss does not depend on it."""
        loss = self.summed_loss(images, labels)
        return torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)

    def mean_over_samples(
        self, function: Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """function(images, labels), sums over a batch's samples, over all batches and divided by all samples.

        Raises ValueError for no batches, images that are not floating-point numbers, and labels that are.
        """
        total: list[torch.Tensor] | None = None
        samples = 0
        reference = self.parameters[0]
        with full_float32(), torch.enable_grad():
            for images, labels in self.batches:
                if not images.is_floating_point() or labels.is_floating_point():
                    raise ValueError("images are floating-point numbers, scaled as in training, labels are whole ones")
                images = images.to(reference.device, reference.dtype)
                values = function(images, labels.to(reference.device, torch.int64))
                samples += len(labels)
                total = values if total is None else list(torch._foreach_add(total, values))
        if total is None:
            raise ValueError("there are no batches")
        return [value / samples for value in total]

    def split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """A flat vector (dimension,) as one tensor for each parameter, laid out like it. Raises ValueError."""
        if vector.shape != (self.dimension,):
            raise ValueError(f"the vector has shape {tuple(vector.shape)}, not ({self.dimension},)")
        parts = vector.detach().to(self.parameters[0]).split(self.sizes)
        return [
            torch.empty_like(parameter).copy_(part.view(parameter.shape))
            for parameter, part in zip(self.parameters, parts, strict=True)
        ]


def layer_sizes(model: nn.Module) -> dict[str, int]:
    """{layer: trainable parameters}, in the order of model.parameters(); parameters of the model itself by name."""
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = name.rpartition(".")[0] or name
            sizes[layer] = sizes.get(layer, 0) + parameter.numel()
    return sizes


def flatten(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """All tensors as one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def gradients_or_zeros(
    output: torch.Tensor | Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    weights: torch.Tensor | Sequence[torch.Tensor] | None = None,
    keep_graph: bool = False,
) -> list[torch.Tensor]:
    """The gradient of output (weighted) in each parameter; zeros if it does not depend on it."""
    gradients = torch.autograd.grad(output, parameters, weights, retain_graph=keep_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]

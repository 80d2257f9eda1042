"""The loss whose curvature is computed: the mean cross-entropy of a model over batches."""

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

    Args:
        model: Module that maps images to logits (N, classes).
        batches: Iterable of (images, labels) that can be iterated repeatedly. An iterator is stored as a list.
        loss: "cross_entropy".
        bn_mode: "eval" or "train", as in `derivative_copy`.
        forward_mode: Whether forward-mode derivatives are differentiated again. If False, derivatives are computed by
            two backward passes.

    Raises:
        ValueError: If `loss` or `bn_mode` is unknown, if the model has no trainable parameters, or if `batches` is a
            single pair of tensors.
    """

    def __init__(
        self, model: nn.Module, batches: Batches, loss: str, bn_mode: str, *, forward_mode: bool = True
    ) -> None:
        if loss != "cross_entropy":
            raise ValueError(f"loss {loss!r} is not supported; use cross_entropy")
        self.parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise ValueError("the model has no trainable parameters")
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.dimension = sum(self.sizes)
        if isinstance(batches, (tuple, list)) and any(isinstance(each, torch.Tensor) for each in batches):
            raise ValueError("batches must be a list of pairs; write a single batch as [(images, labels)]")
        self.batches = list(batches) if isinstance(batches, Iterator) else batches
        self.model = derivative_copy(model, bn_mode, forward_mode=forward_mode)
        names = {id(parameter): name for name, parameter in self.model.named_parameters()}
        self.names = [names[id(parameter)] for parameter in self.parameters]
        self.jvp_is_differentiable = jvp_is_differentiable(self.model)

    def logits(self, images: torch.Tensor, parameters: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Return the model's outputs (N, classes) with the given parameters, or with its own if there are none."""
        parameters = self.parameters if parameters is None else parameters
        with sdpa_kernel(SDPBackend.MATH):
            return functional_call(self.model, dict(zip(self.names, parameters, strict=True)), (images,))

    def summed_loss(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the cross-entropy of a batch, summed over its samples."""
        return F.cross_entropy(self.logits(images), labels, reduction="sum")

    def gradient_graph(self, images: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        """Return the gradient of the summed loss for each parameter, with its graph; None for an unused parameter."""
        loss = self.summed_loss(images, labels)
        return torch.autograd.grad(loss, self.parameters, create_graph=True, allow_unused=True)

    def mean_over_samples(
        self, function: Callable[[torch.Tensor, torch.Tensor], list[torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Return the mean over all samples of quantities that `function` sums over the samples of a batch.

        Images are moved to the device and dtype of the first trainable parameter, labels to its device as int64.

        Args:
            function: Maps (images, labels) to a list of tensors, each summed over the samples of the batch.

        Raises:
            ValueError: If there are no batches, if images are not floating point, or if labels are.
        """
        total: list[torch.Tensor] | None = None
        samples = 0
        reference = self.parameters[0]
        with full_float32(), torch.enable_grad():
            for images, labels in self.batches:
                if not images.is_floating_point() or labels.is_floating_point():
                    raise ValueError("images must be floating-point, scaled as in training; labels must be integers")
                images = images.to(reference.device, reference.dtype)
                values = function(images, labels.to(reference.device, torch.int64))
                samples += len(labels)
                total = values if total is None else list(torch._foreach_add(total, values))
        if total is None:
            raise ValueError("there are no batches, or their iterator is used up; pass a list of (images, labels)")
        return [value / samples for value in total]

    def split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Split a flat vector (dimension,) into one tensor per parameter, with its shape, dtype and memory layout.

        Raises ValueError if the vector has another shape.
        """
        if vector.shape != (self.dimension,):
            raise ValueError(f"the vector has shape {tuple(vector.shape)}; it must have shape ({self.dimension},)")
        parts = vector.detach().to(self.parameters[0]).split(self.sizes)
        return [
            torch.empty_like(parameter).copy_(part.view(parameter.shape))
            for parameter, part in zip(self.parameters, parts, strict=True)
        ]


def layer_sizes(model: nn.Module) -> dict[str, int]:
    """Count the trainable parameters of each layer.

    The result can be passed to `spectrum` as `blocks`, which then estimates the trace of each layer.

    Returns:
        {layer: number of trainable parameters}, in the order of model.parameters(). Parameters that belong to the
        model itself are listed under their own names.
    """
    sizes: dict[str, int] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = name.rpartition(".")[0] or name
            sizes[layer] = sizes.get(layer, 0) + parameter.numel()
    return sizes


def flatten(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Concatenate tensors into one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def gradients_or_zeros(
    output: torch.Tensor | Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    weights: torch.Tensor | Sequence[torch.Tensor] | None = None,
    keep_graph: bool = False,
) -> list[torch.Tensor]:
    """Return the gradient of the (weighted) output for each parameter; zeros for parameters that it does not use."""
    gradients = torch.autograd.grad(output, parameters, weights, retain_graph=keep_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]

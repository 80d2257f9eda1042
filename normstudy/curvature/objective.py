"""The loss whose curvature is computed: the mean loss of a model over batches, as a function of its parameters."""

import contextlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .batches import Batch, Batches, as_arguments, as_pair, map_tensors, move, repeatable
from .losses import Loss, LossLike
from .model_state import BN_MODES, in_mode, trainable_parameters, unwrap
from .precision import full_float32, timed_convolutions

Outputs = Callable[[Any], torch.Tensor]


class ModelFunction:
    """The outputs of a module as a function of its inputs and parameters.

    Args:
        module: The module.
        parameters: The parameters by which its outputs are differentiated.
        outputs: Function that picks the tensor of outputs from what the module returns. Defaults to the result itself.

    Raises:
        ValueError: If a parameter does not belong to the module.
    """

    def __init__(self, module: nn.Module, parameters: Sequence[nn.Parameter], outputs: Outputs | None) -> None:
        self.module = module
        self.parameters = list(parameters)
        self.pick = outputs
        names = {id(parameter): name for name, parameter in module.named_parameters()}
        if not all(id(parameter) in names for parameter in parameters):
            raise ValueError("the module lacks a parameter")
        self.names = [names[id(parameter)] for parameter in parameters]

    def __call__(self, inputs: Any, parameters: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Return the outputs with the given parameters in place of the module's own."""
        args, kwargs = as_arguments(map_tensors(torch.Tensor.clone, inputs))  # a model may change its inputs
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels cannot be differentiated twice
            if parameters is None:
                result = self.module(*args, **kwargs)
            else:
                with self.replaced(dict(zip(map(id, self.parameters), parameters, strict=True))):
                    result = self.module(*args, **kwargs)
        return result if self.pick is None else self.pick(result)

    @contextlib.contextmanager
    def replaced(self, tensors: Mapping[int, torch.Tensor]) -> Iterator[None]:
        """Replace parameters and buffers, {id: tensor in its place}, inside a `with` block.

        A tensor or module that is registered under several names is replaced everywhere. (torch.func.functional_call
        leaves a module that has two names with the wrong tensors.)
        """
        before = [(each, dict(each._parameters), dict(each._buffers)) for each in self.module.modules()]
        try:
            for each, parameters, buffers in before:
                for own, values in ((each._parameters, parameters), (each._buffers, buffers)):
                    own.update({name: tensors.get(id(value), value) for name, value in values.items()})  # type: ignore
            yield
        finally:
            for each, parameters, buffers in before:
                each._parameters.update(parameters)
                each._buffers.update(buffers)


class Objective:
    """The mean loss of a model over batches, as a function of its trainable parameters.

    Args: as for `hessian_matvec`.

    Raises:
        ValueError: If `loss` or `bn_mode` is unknown, if the model cannot be measured (see `trainable_parameters`), or
            if `batches` is a single batch.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Batches,
        loss: LossLike = "cross_entropy",
        *,
        bn_mode: str = "eval",
        outputs: Outputs | None = None,
    ) -> None:
        if bn_mode not in BN_MODES:
            raise ValueError(f"bn_mode {bn_mode!r} is neither eval nor train")
        self.model = unwrap(model)
        self.parameters = list(trainable_parameters(self.model).values())
        self.sizes = [parameter.numel() for parameter in self.parameters]
        self.dimension = sum(self.sizes)
        self.batches = repeatable(batches)
        self.loss = Loss(loss, self.parameters[0])
        self.bn_mode = bn_mode
        self.outputs = outputs
        self.function = ModelFunction(self.model, self.parameters, outputs)

    @contextlib.contextmanager
    def evaluation(self) -> Iterator[None]:
        """Evaluate and differentiate the model itself inside a `with` block, in full precision and in its mode.

        The states of random numbers, which the model or a loader may draw, are restored afterwards.
        """
        device = self.parameters[0].device
        devices = [device] if device.type == "cuda" else []
        with (
            torch.random.fork_rng(devices),
            full_float32(),
            timed_convolutions(),
            torch.inference_mode(False),
            torch.enable_grad(),
            in_mode(self.model, self.bn_mode),
        ):
            yield

    def fingerprint(self) -> torch.Tensor:
        """Return norms of all parameters and buffers, which change with their values."""
        state = [*self.model.parameters(), *self.model.buffers()]
        norms = torch._foreach_norm([each.detach() for each in state if each.is_floating_point()])
        return torch.stack([norm.float() for norm in norms])

    def prepare(self, batch: Any) -> Batch:
        """Return (inputs, targets) on the model's device, with its dtype. Raises ValueError if they are no pair."""
        inputs, targets = as_pair(batch)
        return move(inputs, self.parameters[0]), self.loss.prepare(targets)

    def mean(
        self, function: Callable[[Any, Any], tuple[list[torch.Tensor], float | torch.Tensor]]
    ) -> list[torch.Tensor]:
        """Return the means over all batches of quantities that `function` sums over a batch.

        Args:
            function: Maps (inputs, targets) to a list of sums over the batch, and the number that divides them in the
                mean (see `Loss.count`).

        Raises:
            ValueError: If there are no batches.
        """
        total: list[torch.Tensor] | None = None
        count: float | torch.Tensor = 0
        present = trainable_parameters(self.model).values()
        if len(present) != len(self.parameters) or any(
            p is not q for p, q in zip(present, self.parameters, strict=True)
        ):
            raise RuntimeError("the model's parameters were replaced by other tensors; call hessian_matvec again")
        with self.evaluation():
            for batch in self.batches:
                values, weight = function(*self.prepare(batch))
                count = count + weight
                total = values if total is None else list(torch._foreach_add(total, values))
        if total is None:
            raise ValueError("there are no batches, or their iterator is used up; pass a list of (inputs, targets)")
        return [self.loss.mean(value, count) for value in total]

    def split(self, vector: torch.Tensor) -> list[torch.Tensor]:
        """Split a flat vector (dimension,) into one tensor per parameter, with its shape, dtype and memory layout.

        Raises ValueError if the vector has another shape, or is complex.
        """
        if vector.is_complex():
            raise ValueError("the vector is complex; multiply its real and its imaginary part")
        if vector.shape != (self.dimension,):
            raise ValueError(f"the vector has shape {tuple(vector.shape)}; it must have shape ({self.dimension},)")
        with torch.inference_mode(False):
            parts = vector.detach().to(self.parameters[0]).split(self.sizes)
            return [
                torch.empty_like(parameter, requires_grad=False).copy_(part.view(parameter.shape))
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
    for name, parameter in trainable_parameters(unwrap(model)).items():
        layer = name.rpartition(".")[0] or name
        sizes[layer] = sizes.get(layer, 0) + parameter.numel()
    return sizes


def flatten(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    """Concatenate tensors into one vector."""
    return torch.cat([tensor.reshape(-1) for tensor in tensors])

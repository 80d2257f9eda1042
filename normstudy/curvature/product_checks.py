"""Checks of products: with one vector on a few samples, and against finite differences."""

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch.overrides import TorchFunctionMode

from .batches import Batch, move, tensors_in
from .losses import Loss
from .objective import Objective, flatten
from .ways import DoubleBackward, Way, backward_product

EQUAL = {torch.float32: 1e-2, torch.float64: 1e-6}  # relative difference of two ways that count as equal
REPEATED = {torch.float32: 1e-4, torch.float64: 1e-9}  # the same of one way, computed twice
STEP = 1e-9  # of finite differences in float64, relative to the parameters: so short that hardly a ReLU switches
SLOPE = 1e-3  # relative error of a finite difference


class LowPrecision(TorchFunctionMode):
    """Record the functions whose results depend on parameters and have a lower precision than `dtype`."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.itemsize = dtype.itemsize
        self.found: dict[str, torch.dtype] = {}

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for tensor in tensors_in(result):
            if tensor.is_floating_point() and tensor.requires_grad and tensor.dtype.itemsize < self.itemsize:
                self.found.setdefault(getattr(function, "__name__", str(function)), tensor.dtype)
        return result


class Smooth:
    """A quadratic function of the outputs, in place of the loss."""

    def __init__(self, outputs: torch.Tensor, generator: torch.Generator) -> None:
        self.scale = outputs.abs().max().clamp(min=1e-6)
        self.slopes = torch.randn(outputs.shape, generator=generator).to(outputs) / self.scale

    def total(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        return (self.slopes * outputs).sum() + (outputs / self.scale).square().sum() / 2

    def count(self, outputs: torch.Tensor, targets: Any) -> float:
        return 1


class Comparison:
    """Products of few samples with one random vector, by the plain way and by others."""

    def __init__(self, objective: Objective, few: Batch, outputs: torch.Tensor, plain: Way) -> None:
        self.few, self.plain = few, plain
        self.names = objective.function.names
        self.dtype = objective.parameters[0].dtype
        generator = torch.Generator().manual_seed(0)
        self.loss = Smooth(outputs, generator)
        self.tangents = objective.split(torch.randn(objective.dimension, generator=generator))

    def product(self, way: Way) -> list[torch.Tensor]:
        """Return the product by a way, one tensor per parameter."""
        smooth = type(way)(self.loss, way.function, way.parameters, way.curvature)
        return smooth.product(*self.few, self.tangents)[0]

    def check_gradient(self) -> None:
        """Raise ValueError if no parameter has a gradient; warn of those that do not affect the outputs."""
        smooth = DoubleBackward(self.loss, self.plain.function, self.plain.parameters, self.plain.curvature)
        try:
            gradients, _ = smooth.gradient_graph(*self.few)
        except RuntimeError as error:
            if "does not require grad" not in str(error):
                raise
            gradients = (None,) * len(self.names)
        unused = [name for name, gradient in zip(self.names, gradients, strict=True) if gradient is None]
        if len(unused) == len(self.names):
            raise ValueError(
                f"the outputs do not depend on any trainable parameter ({unused[0]}, …): the model's forward is bound "
                "to another module (a copy of a wrapped or compiled model?), or runs without gradients"
            )
        if unused:
            names = ", ".join(unused[:4]) + (", …" if len(unused) > 4 else "")
            warn(f"{len(unused)} parameters do not affect the outputs, so their rows are zero: {names}")
        for name, gradient in zip(self.names, gradients, strict=True):
            if gradient is not None and gradient.layout != torch.strided:
                raise ValueError(f"the gradient of {name} is sparse, and cannot be differentiated again")

    def plain_product(self) -> list[torch.Tensor]:
        """Return the plain product. Raises ValueError if it fails, or if it differs when it is computed twice."""
        try:
            first, second = self.product(self.plain), self.product(self.plain)
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            raise ValueError(f"the model cannot be differentiated twice ({first_line(error)})") from error
        if not _distance(first, second) <= REPEATED[self.dtype]:
            raise ValueError(
                "the same product gives two results: the model is not deterministic in eval mode, for instance because "
                "F.dropout was called without training=self.training"
            )
        return first

    def agrees(self, way: Way, expected: list[torch.Tensor]) -> bool:
        """Return whether a way gives the plain product; if not, warn."""
        if way.function is self.plain.function:  # the same derivatives of the same module
            return True
        try:
            product = self.product(way)
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            warn(f"{way.name} fails ({first_line(error)}); using {self.plain.name}")
            return False
        if _distance(expected, product) <= EQUAL[self.dtype]:
            return True
        errors = {name: (p - q).norm().item() for name, p, q in zip(self.names, product, expected, strict=True)}
        warn(
            f"{way.name} differs from {self.plain.name} (most for {max(errors, key=errors.__getitem__)}), so a class "
            "of this model declares what it does not keep (has_differentiable_jvp, fold_into); using "
            f"{self.plain.name}, which is slower"
        )
        return False


def _distance(expected: list[torch.Tensor], product: list[torch.Tensor]) -> float:
    """Return the relative distance of two products."""
    size, difference = flatten(expected).norm(), (flatten(product) - flatten(expected)).norm()
    return (difference / size).item() if difference else 0.0


def check_derivative(objective: Objective, few: Batch, curvature: str) -> None:
    """Check in float64 that the derivatives of the model and of a loss function are what they claim to be.

    A custom autograd function, or a value that is detached from the graph, may have others. For a Hessian, second
    derivatives are compared with finite differences of first ones, otherwise first derivatives with those of values.
    Nothing is checked if the device or the model has no float64, or where the differences are too noisy.

    Raises:
        ValueError: If the derivatives differ from finite differences.
    """
    if objective.parameters[0].device.type == "mps":
        return
    parameters = [each.detach().double() for each in objective.parameters]
    state = {**dict(objective.model.named_parameters()), **dict(objective.model.named_buffers())}
    rest = {name: each.detach().double() for name, each in state.items() if each.is_floating_point()}
    inputs = move(few[0], parameters[0])

    def outputs_of(moved: list[torch.Tensor]) -> torch.Tensor:
        return objective.function(inputs, moved, {name: each.clone() for name, each in rest.items()})

    try:
        with LowPrecision(torch.float64) as low:
            outputs = outputs_of([each.requires_grad_() for each in parameters]).detach()
        if low.found:
            return
        smooth = Smooth(outputs, torch.Generator().manual_seed(1))
        order = 2 if curvature == "hessian" else 1
        error = _slope_error(lambda moved: smooth.total(outputs_of(moved), None), parameters, order)
    except (RuntimeError, TypeError, ValueError, NotImplementedError):  # the model computes only in its own dtype
        return
    if error is not None:
        what = "product is not the derivative of the gradient" if order == 2 else "gradient is wrong"
        raise ValueError(
            f"the {what}: it differs from finite differences by {error:.0%}. A custom autograd function has wrong "
            "derivatives, or a value is detached from the graph"
        )
    if objective.loss.own is None:
        loss, targets = Loss(objective.loss.given, parameters[0]), move(few[1], parameters[0])
        near = outputs / smooth.scale.clamp(min=1)  # not so far out that the loss is flat
        error = _slope_error(lambda moved: loss.total(moved[0], targets), [near], 1 if curvature[0] == "e" else 2)
        if error is not None:
            raise ValueError(f"the loss function has wrong derivatives: they differ from finite ones by {error:.0%}")


def _slope_error(
    function: Callable[[list[torch.Tensor]], torch.Tensor], arguments: list[torch.Tensor], order: int
) -> float | None:
    """Return the relative error of a derivative against central differences, or None if it is within their noise.

    The noise is the difference between two step lengths.

    Args:
        function: Scalar function.
        arguments: Its arguments, in float64.
        order: 1 compares the slope along a random direction, 2 that of the gradient.
    """
    generator = torch.Generator().manual_seed(2)
    tangents = [torch.randn(each.shape, generator=generator, dtype=torch.float64).to(each) for each in arguments]
    length = STEP * flatten(arguments).detach().norm().clamp(min=1e-3) / flatten(tangents).norm()

    def at(distance: float, has_graph: bool = False) -> tuple[torch.Tensor, list[torch.Tensor], list[torch.Tensor]]:
        pairs = zip(arguments, tangents, strict=True)
        moved = [(each.detach() + distance * length * tangent).requires_grad_() for each, tangent in pairs]
        value = function(moved)
        gradients = torch.autograd.grad(value, moved, create_graph=has_graph, materialize_grads=True)
        return value.detach(), list(gradients), moved

    _, gradients, moved = at(0, has_graph=order == 2)
    if order == 2:
        exact = flatten(backward_product(tuple(gradients), moved, tangents))
        values = [flatten(at(k)[1]) for k in (1, -1, 2, -2)]
    else:
        exact = torch.stack([(g * t).sum() for g, t in zip(gradients, tangents, strict=True)]).sum().reshape(1)
        values = [at(k)[0].reshape(1) for k in (1, -1, 2, -2)]
    near, far = (values[0] - values[1]) / (2 * length), (values[2] - values[3]) / (4 * length)
    size, difference = torch.maximum(exact.norm(), near.norm()), (exact - near).norm()
    return None if difference <= SLOPE * size + 10 * (near - far).norm() else (difference / size).item()


def warn(message: str) -> None:
    """Warn of something that makes a measurement slower or less informative, but not wrong."""
    warnings.warn(message, stacklevel=2)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device or the machine is out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().partition("\n")[0]

"""Checks of products: with one vector on a few samples, and against finite differences."""

import contextlib
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn
from torch.overrides import TorchFunctionMode

from .batches import Batch, move, tensors_in
from .losses import Loss
from .objective import Objective, flatten
from .ways import DoubleBackward, ForwardMode, Way, backward_product, gradients_or_zeros

EQUAL = {torch.float32: 1e-2, torch.float64: 1e-6}  # relative difference of two ways that count as equal
REPEATED = {torch.float32: 1e-4, torch.float64: 1e-9}  # the same of one way, computed twice
STEP = 1e-9  # of finite differences in float64, relative to the parameters: so short that hardly a ReLU switches
SLOPE = 1e-3  # relative error of a finite difference
NEARBY = 0.03  # relative distance from the parameters at which derivatives are checked
MASKED = 100  # outputs that exceed the median of those that are not 0 by this factor count relative to their own size
LARGER = 2.0**16  # factor of the tangents in the second product, which must be as much larger


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
            if tensor.grad_fn is not None and tensor.is_floating_point() and tensor.dtype.itemsize < self.itemsize:
                self.found.setdefault(getattr(function, "__name__", str(function)), tensor.dtype)
        return result


class InFloat64(TorchFunctionMode):
    """Turn conversions to float32, such as .float() and softmax(dtype=torch.float32), into those to float64."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: Iterable[Any] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if function is torch.Tensor.float:
            return torch.Tensor.double(*args, **(kwargs or {}))
        args = [torch.float64 if each is torch.float32 else each for each in args]
        kwargs = {name: torch.float64 if each is torch.float32 else each for name, each in (kwargs or {}).items()}
        return function(*args, **kwargs)


class Smooth:
    """A quadratic function of the outputs, in place of the loss. Masked (huge or infinite) outputs do not count."""

    def __init__(self, outputs: torch.Tensor, generator: torch.Generator) -> None:
        self.used = outputs.isfinite()
        sizes = torch.where(self.used, outputs.abs(), 0)
        typical = sizes[sizes > 0].median() if sizes.any() else sizes.new_zeros(())
        common = sizes[sizes <= MASKED * typical].max()
        self.scale = torch.where(sizes > MASKED * typical, sizes, common).clamp(min=1e-6)
        slopes = torch.randn(outputs.shape, generator=generator, device="cpu").to(outputs)
        self.slopes = torch.where(self.used, slopes / self.scale, 0)

    def total(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        used = torch.where(self.used, outputs, 0)
        return (self.slopes * used).sum() + (used / self.scale).square().sum() / 2

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
        self.tangents = objective.split(torch.randn(objective.dimension, generator=generator, device="cpu"))

    def product(self, way: Way, factor: float = 1.0) -> list[torch.Tensor]:
        """Return the product by a way, one tensor per parameter, computed with tangents that are `factor` larger."""
        smooth = type(way)(self.loss, way.function, way.parameters, way.curvature)
        products, _ = smooth.product(*self.few, [factor * tangent for tangent in self.tangents])
        return [each / factor for each in products]

    def check_gradient(self) -> None:
        """Raise ValueError if no parameter has a gradient; warn of those that do not affect the outputs."""
        smooth = DoubleBackward(self.loss, self.plain.function, self.plain.parameters, self.plain.curvature)
        try:
            gradients, _ = smooth.gradient_graph(*self.few)
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            if "does not require grad" not in str(error):
                raise ValueError(f"the model cannot be differentiated ({first_line(error)})") from error
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

    def repeated_product(self, way: Way) -> list[torch.Tensor]:
        """Return the product by a way. Raises ValueError if it fails, or if it differs when it is computed twice."""
        try:
            first, second = self.product(way), self.product(way, LARGER)
        except (RuntimeError, NotImplementedError) as error:
            if is_out_of_memory(error):
                raise
            hint = "; curvature=ggn needs first derivatives only" if self.plain.curvature == "hessian" else ""
            raise ValueError(f"the model cannot be differentiated twice ({first_line(error)}){hint}") from error
        if flatten(first).isnan().any():
            raise ValueError("a product is not a number: a derivative of the model is not finite on the first samples")
        if not _distance(first, second) <= REPEATED[self.dtype]:
            raise ValueError(
                "the same product gives two results, for a vector and a multiple of it: the model is not deterministic "
                "in eval mode (F.dropout without training=self.training?), or it clips gradients"
            )
        return first

    def agrees(self, way: Way, expected: list[torch.Tensor]) -> bool:
        """Return whether a way gives the plain product; if not, warn."""
        if isinstance(way, DoubleBackward) and way.function is self.plain.function:  # the same derivatives
            return True
        try:
            product = self.product(way)
        except (RuntimeError, NotImplementedError, TypeError, ValueError, AttributeError) as error:
            if is_out_of_memory(error):
                raise
            if way.function is not self.plain.function:
                warn(f"{way.name} fails ({first_line(error)}); using {self.plain.name}")
            return False
        if _distance(expected, product) <= EQUAL[self.dtype]:
            return True
        errors = {name: (p - q).norm().item() for name, p, q in zip(self.names, product, expected, strict=True)}
        reason = ""
        if way.function is not self.plain.function:
            reason = ", so a class of this model declares what it does not keep (has_differentiable_jvp, fold_into)"
        worst = max(errors, key=errors.__getitem__)
        warn(
            f"{way.name} differs from {self.plain.name} (most for {worst}){reason}; using {self.plain.name}, which is "
            "slower"
        )
        return False

    def has_adjoint_slopes(self, way: Way) -> bool:
        """Return whether the slopes Jv of forward mode are adjoint to the backward pass: ⟨u, Jv⟩ = ⟨Jᵀu, v⟩."""
        if not isinstance(way, DoubleBackward | ForwardMode):
            return True
        outputs, slopes = way.slopes(self.few[0], self.tangents)
        for weights in (self.loss.slopes, torch.where(self.loss.used, slopes, 0).detach() / self.loss.scale**2):
            back = gradients_or_zeros(outputs, way.parameters, weights, keep_graph=True)
            pairs = zip(back, self.tangents, strict=True)
            backward = torch.stack([(gradient * tangent).sum() for gradient, tangent in pairs]).sum()
            forward = torch.where(self.loss.used, slopes, 0).detach() * weights
            if not (backward - forward.sum()).abs() <= EQUAL[self.dtype] * forward.norm():
                return False
        return True


def _distance(expected: list[torch.Tensor], product: list[torch.Tensor]) -> float:
    """Return the relative distance of two products."""
    size, difference = flatten(expected).norm(), (flatten(product) - flatten(expected)).norm()
    return (difference / size).item() if difference else 0.0


def check_derivative(objective: Objective, few: Batch, curvature: str) -> None:
    """Check in float64 that the derivatives of the model and of a loss function are what they claim to be.

    A custom autograd function, or a value that is detached from the graph, may have others. For a Hessian, second
    derivatives are compared with finite differences of first ones, otherwise first derivatives with those of values,
    near the model's parameters and not at them, because trained networks rest on kinks (a ReLU of exactly 0).
    Where the differences are too noisy, nothing is found. A warning says when the model has no float64.

    Raises:
        ValueError: If the derivatives differ from finite differences.
    """
    if objective.parameters[0].device.type == "mps":
        return
    generator = torch.Generator().manual_seed(1)

    def random(like: torch.Tensor) -> torch.Tensor:
        return torch.randn(like.shape, generator=generator, dtype=torch.float64, device="cpu").to(like.device)

    whole = flatten([each.detach().double() for each in objective.parameters]).square().mean().sqrt().item() or 1.0
    parameters = []
    for each in objective.parameters:
        exact = each.detach().double()
        parameters.append(exact + NEARBY * (exact.square().mean().sqrt().item() or whole) * random(exact))
    tangents = [random(each) for each in parameters]
    for module in objective.model.modules():  # the row of the padding has no gradient by design
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.padding_idx is not None:
            for parameter, tangent in zip(objective.parameters, tangents, strict=True):
                if parameter is module.weight:
                    tangent[module.padding_idx] = 0
    state = [*objective.model.parameters(), *objective.model.buffers()]
    rest = {id(each): each.detach().double() for each in state if each.is_floating_point()}
    inputs = move(few[0], parameters[0])

    def replaced(moved: list[torch.Tensor]) -> contextlib.AbstractContextManager[None]:
        fresh = {key: each.clone() for key, each in rest.items()}
        return objective.function.replaced(fresh | dict(zip(map(id, objective.parameters), moved, strict=True)))

    order = 2 if curvature == "hessian" else 1
    loss_error = None
    try:
        moved = [each.requires_grad_() for each in parameters]
        with LowPrecision(torch.float64) as low, InFloat64(), replaced(moved):
            outputs = objective.function(inputs).detach()
        if low.found:
            raise TypeError(f"the model computes in {next(iter(low.found.values()))} inside")
        smooth = Smooth(outputs, generator)

        def value(_: list[torch.Tensor]) -> torch.Tensor:
            with InFloat64():
                outputs = objective.function(inputs)
            return smooth.total(outputs, None)

        error = _slope_error(value, moved, tangents, order, replaced)
        if objective.loss.own is None:
            loss, targets = Loss(objective.loss.given, parameters[0]), move(few[1], parameters[0])
            near = outputs / smooth.scale.clamp(min=1)  # not so far out that the loss is flat
            near = near + NEARBY * random(near)
            of_loss = 1 if curvature == "empirical_fisher" else 2
            loss_error = _slope_error(lambda args: loss.total(args[0], targets), [near], [random(near)], of_loss)
    except (RuntimeError, TypeError, ValueError, NotImplementedError, AttributeError) as reason:
        if is_out_of_memory(reason):
            raise
        warn(f"the derivatives could not be compared with finite differences in float64 ({first_line(reason)})")
        return
    if error is not None:
        what = "product is not the derivative of the gradient" if order == 2 else "gradient is wrong"
        raise ValueError(
            f"the {what}: it differs from finite differences by {error:.0%}. A custom autograd function has wrong "
            "derivatives, or a value is detached from the graph"
        )
    if loss_error is not None:
        raise ValueError(f"the loss function has wrong derivatives: they differ from finite ones by {loss_error:.0%}")


def _slope_error(
    function: Callable[[list[torch.Tensor]], torch.Tensor],
    arguments: list[torch.Tensor],
    tangents: list[torch.Tensor],
    order: int,
    replaced: Callable[[list[torch.Tensor]], contextlib.AbstractContextManager[None]] | None = None,
) -> float | None:
    """Return the relative error of a derivative against central differences, or None if it is within their noise.

    The noise is the difference between two step lengths.

    Args:
        function: Scalar function.
        arguments: Its arguments, in float64.
        tangents: The direction of the differences.
        order: 1 compares the slope along the direction, 2 that of the gradient.
        replaced: Gives a context in which a model has given arguments as parameters.
    """
    tiny = torch.finfo(torch.float64).tiny
    length = STEP * flatten(arguments).detach().norm() / flatten(tangents).norm().clamp(min=tiny)

    def at(distance: float) -> tuple[torch.Tensor, list[torch.Tensor]]:
        pairs = zip(arguments, tangents, strict=True)
        moved = [(each.detach() + distance * length * tangent).requires_grad_() for each, tangent in pairs]
        with contextlib.nullcontext() if replaced is None else replaced(moved):
            value = function(moved)
            gradients = torch.autograd.grad(
                value, moved, create_graph=order == 2 and not distance, materialize_grads=True
            )
            if order == 2 and not distance:
                gradients = tuple(backward_product(gradients, moved, tangents))
        return value.detach(), list(gradients)

    _, gradients = at(0)
    if order == 2:
        exact = flatten(gradients)
        values = [flatten(at(k)[1]) for k in (1, -1, 2, -2)]
    else:
        exact = torch.stack([(g * t).sum() for g, t in zip(gradients, tangents, strict=True)]).sum().reshape(1)
        values = [at(k)[0].reshape(1) for k in (1, -1, 2, -2)]
    near, far = (values[0] - values[1]) / (2 * length), (values[2] - values[3]) / (4 * length)
    size, difference = torch.maximum(exact.norm(), near.norm()), (exact - near).norm()
    is_right = not difference > SLOPE * size + 10 * (near - far).norm()  # also if one is not a number
    return None if is_right else (difference / size).item()


def warn(message: str) -> None:
    """Warn of something that makes a measurement slower or less informative, but not wrong."""
    warnings.warn(message, stacklevel=2)


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that a device or the machine is out of memory."""
    return isinstance(error, torch.OutOfMemoryError) or "allocate memory" in str(error)


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message."""
    return str(error).strip().partition("\n")[0]

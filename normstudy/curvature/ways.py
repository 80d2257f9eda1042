"""The ways to multiply one batch's curvature by a vector: the plain one for any model, and faster ones."""

import itertools
import warnings
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch
from torch.autograd import forward_ad

from .model_copy import derivative_copy, jvp_is_differentiable
from .objective import ModelFunction, Objective

CURVATURES = ("hessian", "ggn", "empirical_fisher")

Gradients = tuple[torch.Tensor | None, ...]  # None for a parameter that is not used
Sums = tuple[list[torch.Tensor], float | torch.Tensor]  # sums over a batch, and the number that divides them
Product = Callable[[Any, Any], Sums]  # of (inputs, targets) with a fixed vector


class Summed(Protocol):
    """The methods of a loss that a way calls."""

    def total(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        """Return the sum of all contributions of a batch."""
        ...

    def count(self, outputs: torch.Tensor, targets: Any) -> float | torch.Tensor:
        """Return the number that divides the sum in the mean."""
        ...


class Way:
    """A way to multiply by the curvature of a batch.

    Args:
        loss: The loss, or an object with its methods `total` and `count`.
        function: The model as a function of its parameters.
        parameters: The parameters.
        curvature: One of CURVATURES.
    """

    name: str

    def __init__(
        self,
        loss: Summed,
        function: ModelFunction,
        parameters: Sequence[torch.Tensor],
        curvature: str,
    ) -> None:
        self.loss, self.function, self.parameters = loss, function, parameters
        self.curvature = curvature

    def begin(self, tangents: list[torch.Tensor]) -> Product:
        """Return the product of a batch with these tangents, one per parameter, for one pass over the batches."""
        return lambda inputs, targets: self.product(inputs, targets, tangents)

    def product(self, inputs: Any, targets: Any, tangents: list[torch.Tensor]) -> Sums:
        """Return the products, one per parameter, summed over the batch."""
        raise NotImplementedError

    def outputs(self, inputs: Any, parameters: Sequence[torch.Tensor] | None = None) -> torch.Tensor:
        """Return the model's outputs with the given parameters, or with its own."""
        return self.function(inputs, parameters)

    def gradient_graph(self, inputs: Any, targets: Any) -> tuple[Gradients, float | torch.Tensor]:
        """Return the gradient of the summed loss with its graph, and the batch's count."""
        outputs = self.outputs(inputs)
        loss = self.loss.total(outputs, targets)
        gradients = torch.autograd.grad(loss, list(self.parameters), create_graph=True, allow_unused=True)
        return gradients, self.loss.count(outputs, targets)


class DoubleBackward(Way):
    """Differentiate backwards twice. This needs no assumption about the modules."""

    name = "two backward passes"

    def product(self, inputs: Any, targets: Any, tangents: list[torch.Tensor]) -> Sums:
        if self.curvature == "hessian":
            gradients, count = self.gradient_graph(inputs, targets)
            return backward_product(gradients, self.parameters, tangents), count
        outputs, slopes = self.slopes(inputs, tangents)
        weights = output_product(self.curvature, self.loss, outputs, targets, slopes)
        return gradients_or_zeros(outputs, self.parameters, weights), self.loss.count(outputs, targets)

    def slopes(self, inputs: Any, tangents: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs z and their slopes Jv along the tangents, of the same shape."""
        outputs = self.outputs(inputs)
        # J v is the derivative of Jᵀu, which is linear in u, by u.
        dummy = torch.zeros_like(outputs, requires_grad=True)
        pulled = torch.autograd.grad(outputs, list(self.parameters), dummy, create_graph=True, allow_unused=True)
        used = [(g, t) for g, t in zip(pulled, tangents, strict=True) if g is not None and g.requires_grad]
        if not used:
            return outputs, torch.zeros_like(outputs)
        (slopes,) = torch.autograd.grad([g for g, _ in used], dummy, [t for _, t in used], retain_graph=True)
        return outputs, slopes


class ForwardMode(Way):
    """Differentiate the directional derivative, which forward mode computes, backwards (Pearlmutter 1994)."""

    name = "forward mode"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        with warnings.catch_warnings(), forward_ad.dual_level():
            warnings.simplefilter("ignore", FutureWarning)  # raised by what PyTorch imports for the first dual tensor
            forward_ad.make_dual(torch.zeros(1, device="cpu"), torch.zeros(1, device="cpu"))

    def slopes(self, inputs: Any, tangents: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the outputs z and their slopes Jv along the tangents, of the same shape."""
        with forward_ad.dual_level():
            duals = [forward_ad.make_dual(p, t) for p, t in zip(self.parameters, tangents, strict=True)]
            outputs, slopes = forward_ad.unpack_dual(self.outputs(inputs, duals))
        return outputs, torch.zeros_like(outputs) if slopes is None else slopes

    def product(self, inputs: Any, targets: Any, tangents: list[torch.Tensor]) -> Sums:
        outputs, slopes = self.slopes(inputs, tangents)
        # Outside the dual level, because inside it the backward pass would carry tangents of its own.
        if self.curvature == "hessian":
            total = self.loss.total(outputs, targets)
            (gradient,) = torch.autograd.grad(total, outputs, create_graph=True)
            products = gradients_or_zeros((gradient * slopes).sum(), self.parameters)
        else:
            weights = output_product(self.curvature, self.loss, outputs, targets, slopes)
            products = gradients_or_zeros(outputs, self.parameters, weights)
        return products, self.loss.count(outputs, targets)


class KeptGraphs(DoubleBackward):
    """Keep the graph of each batch's gradient, and differentiate it backwards again for each product."""

    name = "kept graphs"

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.kept: list[tuple[Gradients, float | torch.Tensor]] = []

    def begin(self, tangents: list[torch.Tensor]) -> Product:
        numbers = itertools.count()

        def product(inputs: Any, targets: Any) -> Sums:
            number = next(numbers)
            if number == len(self.kept):
                self.kept.append(self.gradient_graph(inputs, targets))
            gradients, count = self.kept[number]
            return backward_product(gradients, self.parameters, tangents, keep_graph=True), count

        return product


def ways_of(objective: Objective, curvature: str, keep_graphs: bool) -> list[Way]:
    """Return the ways for a model, the fastest first, and the plain one, which is right for any model, last.

    A copy in another form (see `derivative_copy`) serves only models whose classes all declare what it needs.
    """
    loss, parameters, pick = objective.loss, objective.parameters, objective.outputs
    plain = DoubleBackward(loss, objective.function, parameters, curvature)
    ways: list[Way] = [plain]
    if keep_graphs:
        ways.insert(0, KeptGraphs(loss, objective.function, parameters, curvature))
    if jvp_is_differentiable(objective.model):
        copy = derivative_copy(objective.model, objective.bn_mode, forward_mode=not keep_graphs)
        try:
            function = ModelFunction(copy, parameters, pick)
        except ValueError:
            raise ValueError("a module from fold_into must contain the parameters that it folds, not copies") from None
        if keep_graphs:
            ways.insert(0, KeptGraphs(loss, function, parameters, curvature))
        elif jvp_is_differentiable(copy):
            ways.insert(0, ForwardMode(loss, function, parameters, curvature))
    elif curvature != "hessian":  # needs only first derivatives
        ways.insert(0, ForwardMode(loss, objective.function, parameters, curvature))
    return ways


def output_product(
    curvature: str, loss: Summed, outputs: torch.Tensor, targets: Any, slopes: torch.Tensor
) -> torch.Tensor:
    """Multiply slopes ż of the outputs by the curvature of the summed loss with respect to the outputs.

    That is ∂²ℓ/∂z² ż for "ggn", and ∂ℓ/∂z ⟨∂ℓ/∂z, ż⟩ of each sample for "empirical_fisher".
    """
    outputs = outputs.detach().requires_grad_()
    total = loss.total(outputs, targets)
    if curvature == "empirical_fisher":
        (gradient,) = torch.autograd.grad(total, outputs)
        directional = (gradient * slopes).reshape(len(outputs), -1).sum(1)
        return gradient * directional.view(-1, *[1] * (outputs.dim() - 1))
    (gradient,) = torch.autograd.grad(total, outputs, create_graph=True)
    if not gradient.requires_grad:  # the loss is linear in the outputs
        return torch.zeros_like(outputs)
    (product,) = torch.autograd.grad(gradient, outputs, slopes, materialize_grads=True)
    return product


def backward_product(
    gradients: Gradients, parameters: Sequence[torch.Tensor], tangents: list[torch.Tensor], keep_graph: bool = False
) -> list[torch.Tensor]:
    """Differentiate ⟨gradients, tangents⟩ for each parameter."""
    used = [(g, t) for g, t in zip(gradients, tangents, strict=True) if g is not None and g.requires_grad]
    if not used:  # the loss is linear in the parameters
        return [torch.zeros_like(each) for each in parameters]
    return gradients_or_zeros([g for g, _ in used], parameters, [t for _, t in used], keep_graph)


def gradients_or_zeros(
    output: torch.Tensor | Sequence[torch.Tensor],
    parameters: Sequence[torch.Tensor],
    weights: torch.Tensor | Sequence[torch.Tensor] | None = None,
    keep_graph: bool = False,
) -> list[torch.Tensor]:
    """Return the gradient of the (weighted) output for each parameter; zeros for parameters that it does not use."""
    gradients = torch.autograd.grad(output, list(parameters), weights, retain_graph=keep_graph, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]

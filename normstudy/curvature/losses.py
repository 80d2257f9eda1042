"""Losses, and the number that turns their sum over all batches into the mean that PyTorch would compute at once."""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from .batches import map_tensors, move, num_samples

NAMED: dict[str, type[nn.Module]] = {
    "cross_entropy": nn.CrossEntropyLoss,
    "mse": nn.MSELoss,
    "bce_with_logits": nn.BCEWithLogitsLoss,
}
LossLike = str | nn.Module | Callable[[torch.Tensor, Any], torch.Tensor]
CLASSIFICATION = (nn.CrossEntropyLoss, nn.NLLLoss)
PROBABILITY_ERROR = 1e-3  # largest deviation from 1 of the sum of values that count as probabilities


class Loss:
    """A loss as a sum of contributions and the number that divides it.

    Args:
        loss: A name in NAMED; a loss module of torch.nn with its options; or a function (outputs, targets) that
            returns the loss of each sample. The mean is the module's own, normalized over all batches: it divides by
            the weights of the targets that count (cross-entropy with class weights or `ignore_index`), or by the
            number of elements. With reduction="sum", the sum itself is the loss.
        reference: A parameter of the model, whose device and dtype the loss takes.

    Raises:
        ValueError: If the name is unknown, or if a module has reduction="none".
    """

    def __init__(self, loss: LossLike, reference: torch.Tensor) -> None:
        self.given = loss
        self.reference = reference
        self.own: nn.Module | None = None
        if isinstance(loss, str):
            if loss not in NAMED:
                raise ValueError(f"loss {loss!r} is not one of {', '.join(NAMED)}, a loss module or a function")
            loss = NAMED[loss]()
        if isinstance(loss, nn.Module) and hasattr(loss, "reduction"):
            if loss.reduction == "none":
                raise ValueError('the loss has reduction="none", so its mean is open; use "mean" or "sum"')
            self.own = copy.deepcopy(loss).to(reference)
            elementwise: Any = copy.deepcopy(self.own)
            elementwise.reduction = "none"
        self.elements: Callable[[torch.Tensor, Any], torch.Tensor] = loss if self.own is None else elementwise
        self.is_sum = self.own is not None and self.own.reduction == "sum"
        self.is_classification = isinstance(self.own, CLASSIFICATION)

    @property
    def ignored(self) -> int:
        """The label of targets that do not count."""
        return int(self.own.ignore_index)  # type: ignore[union-attr,arg-type]

    def prepare(self, targets: Any) -> Any:
        """Move targets to the device; labels become int64, and integer targets of other loss modules floats."""
        if self.own is None:
            return move(targets, self.reference)
        wanted = torch.int64 if self.is_classification else self.reference.dtype
        return map_tensors(
            lambda each: each if each.is_floating_point() else each.to(wanted), move(targets, self.reference)
        )

    def total(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        """Return the sum of all contributions of a batch, zero-dimensional."""
        return self.elements(outputs, targets).sum()

    def count(self, outputs: torch.Tensor, targets: Any) -> float | torch.Tensor:
        """Return the contribution of a batch to the number that divides the sum over all batches."""
        if self.is_classification and not targets.is_floating_point():
            counted = targets != self.ignored
            if self.own.weight is None:  # type: ignore[union-attr]
                return counted.sum()
            return (self.own.weight[targets.where(counted, 0)] * counted).sum()  # type: ignore[index,union-attr]
        if getattr(self.own, "reduction", "") == "batchmean":
            return num_samples(targets)
        with torch.no_grad():
            return self.elements(outputs, targets).numel()

    def mean(self, total: torch.Tensor, count: float | torch.Tensor) -> torch.Tensor:
        """Turn a sum over all batches into the loss, or into one of its derivatives."""
        return total if self.is_sum else total / count

    def check(self, outputs: Any, targets: Any) -> None:
        """Raise ValueError, which names the assumption, unless the outputs and targets of a batch fit the loss."""
        if not isinstance(outputs, torch.Tensor):
            raise ValueError(
                f"the model returns a {type(outputs).__name__}, not a tensor; pass outputs=function, which picks the "
                "tensor, such as outputs=lambda result: result.logits"
            )
        if not outputs.is_floating_point() or outputs.dim() == 0:
            raise ValueError(f"the model's outputs are {outputs.dtype} of shape {tuple(outputs.shape)}")
        samples = num_samples(targets)
        if self.own is None:
            self._check_function(outputs, targets, samples)
            return
        if not isinstance(targets, torch.Tensor):
            raise ValueError(f"targets are a {type(targets).__name__}; {self._name} takes a tensor")
        shapes = f"outputs have shape {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
        if len(outputs) != samples:
            raise ValueError(f"{shapes}: they differ in the number of samples")
        if self.is_classification:
            self._check_classes(outputs, targets, shapes)
        elif isinstance(self.own, nn.MSELoss | nn.BCEWithLogitsLoss | nn.BCELoss | nn.L1Loss | nn.HuberLoss):
            if outputs.shape != targets.shape:
                raise ValueError(f"{shapes}: {self._name} would broadcast them; give them the same shape")
            if not isinstance(self.own, nn.MSELoss | nn.L1Loss | nn.HuberLoss) and (
                targets.min() < 0 or targets.max() > 1
            ):
                raise ValueError(f"targets lie in {_range(targets)}; {self._name} takes probabilities from 0 to 1")

    @property
    def _name(self) -> str:
        return type(self.own).__name__

    def _check_classes(self, outputs: torch.Tensor, targets: torch.Tensor, shapes: str) -> None:
        if outputs.dim() < 2 or outputs.shape[1] < 2:
            raise ValueError(f"{shapes}: {self._name} needs at least two classes, in the second dimension of outputs")
        if targets.is_floating_point():
            if targets.shape != outputs.shape:
                raise ValueError(
                    f"{shapes}, with targets of {targets.dtype}: labels must be integers, and probabilities must have "
                    "the shape of the outputs"
                )
        else:
            wanted = (outputs.shape[0], *outputs.shape[2:])
            if targets.shape != wanted:
                hint = ""
                if outputs.dim() > 2 and targets.shape == outputs.shape[:-1]:
                    hint = "; the classes come last, so pass outputs=lambda result: result.movedim(-1, 1)"
                raise ValueError(f"{shapes}: {self._name} takes labels of shape {wanted}{hint}")
            self.check_labels(targets, outputs.shape[1])
        sums = outputs.detach().exp().sum(1) if isinstance(self.own, nn.NLLLoss) else outputs.detach().sum(1)
        is_normalized = bool(((sums - 1).abs() < PROBABILITY_ERROR).all())
        if isinstance(self.own, nn.NLLLoss) and not is_normalized:
            raise ValueError("the outputs are not log-probabilities, which NLLLoss takes; use cross_entropy for logits")
        if not isinstance(self.own, nn.NLLLoss) and is_normalized and bool((outputs >= 0).all()):
            raise ValueError(
                "the outputs are probabilities (not negative, with sum 1), but cross-entropy takes logits; leave out "
                "the softmax, or pass the loss that was used as a function of (outputs, targets)"
            )

    def check_labels(self, targets: Any, num_classes: int) -> None:
        """Raise ValueError unless the labels are from 0 to num_classes − 1, or `ignore_index`."""
        if self.is_classification and not targets.is_floating_point():
            labels = targets[targets != self.ignored]
            if len(labels) and (labels.min() < 0 or labels.max() >= num_classes):
                raise ValueError(f"labels are in {_range(labels)}, but the model has {num_classes} outputs")

    def _check_function(self, outputs: torch.Tensor, targets: Any, samples: int) -> None:
        losses = self.elements(outputs, targets)
        if not isinstance(losses, torch.Tensor) or losses.dim() == 0:
            raise ValueError(
                "the loss function returns a single number, so its mean over several batches is unknown; it must "
                "return the loss of each sample (reduction='none'), or be a loss module"
            )
        if losses.numel() % samples or len(losses) != samples:
            raise ValueError(f"the loss function returns shape {tuple(losses.shape)} for {samples} samples")

    def check_mean(self, outputs: torch.Tensor, targets: Any) -> None:
        """Raise ValueError unless sum and count give the value that the loss module itself computes."""
        if self.own is not None:
            mean = self.mean(self.total(outputs, targets), self.count(outputs, targets))
            own = self.own(outputs, targets)
            if not torch.allclose(mean, own, rtol=1e-3, equal_nan=True):
                raise ValueError(
                    f"the mean of {self._name} is unknown: it gives {own.item():.6g}, not {mean.item():.6g}"
                )


def _range(values: torch.Tensor) -> str:
    return f"[{values.min().item():g}, {values.max().item():g}]"

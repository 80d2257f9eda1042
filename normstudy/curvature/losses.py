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
ELEMENTWISE = (  # targets have the shape of the outputs
    *(nn.MSELoss, nn.L1Loss, nn.SmoothL1Loss, nn.HuberLoss, nn.BCELoss, nn.BCEWithLogitsLoss, nn.KLDivLoss),
    *(nn.PoissonNLLLoss, nn.SoftMarginLoss, nn.MultiLabelSoftMarginLoss),
)
PROBABILITY_TARGETS = (nn.BCELoss, nn.BCEWithLogitsLoss, nn.MultiLabelSoftMarginLoss)
LABELLED = (nn.MultiMarginLoss, nn.MultiLabelMarginLoss)  # one loss per sample, integer targets
PROBABILITY_ERROR = 1e-3  # largest deviation from 1 of the sum of values that count as probabilities


class Loss:
    """A loss as a sum of contributions and the number that divides it.

    Args:
        loss: A name in NAMED; a loss module of torch.nn with its options; or a function (or another module) that maps
            (outputs, targets) to the loss of each sample. The mean is the module's own, normalized over all batches: it
            divides by the weights of the targets that count (cross-entropy with class weights or `ignore_index`), or by
            the number of elements. With reduction="sum", the sum itself is the loss.
        reference: A parameter of the model, whose device and dtype the loss takes.

    Raises:
        ValueError: If the name is unknown, or if the mean of a module over several batches is.
    """

    def __init__(self, loss: LossLike, reference: torch.Tensor) -> None:
        self.given = loss
        self.reference = reference
        self.own: nn.Module | None = None
        self.dtype = reference.dtype if reference.device.type == "mps" else torch.float64
        if isinstance(loss, str):
            if loss not in NAMED:
                raise ValueError(f"loss {loss!r} is not one of {', '.join(NAMED)}, a loss module or a function")
            loss = NAMED[loss]()
        is_known = type(loss) in (*CLASSIFICATION, *ELEMENTWISE, *LABELLED)
        if getattr(loss, "reduction", "none") != "none" and not is_known:
            raise ValueError(
                f"{type(loss).__name__} is not one of the losses of torch.nn that take (outputs, targets), so its mean "
                "over several batches is unknown; set reduction='none', if it then returns the loss of each sample"
            )
        if is_known and loss.reduction == "none":  # type: ignore[union-attr]
            raise ValueError('the loss has reduction="none", so its mean is open; use "mean" or "sum"')
        if is_known:
            # In float64: with a loss near 0, softmax(z) − y has no digits left in float32.
            self.own = copy.deepcopy(loss).to(reference.device, self.dtype)  # type: ignore[union-attr]
            elementwise: Any = copy.deepcopy(self.own)
            elementwise.reduction = "none"
        self.function: Callable[[torch.Tensor, Any], torch.Tensor] = loss if self.own is None else elementwise
        self.is_sum = self.own is not None and self.own.reduction == "sum"
        self.is_classification = isinstance(self.own, CLASSIFICATION)

    @property
    def ignored(self) -> int:
        """The label of targets that do not count."""
        return int(self.own.ignore_index)  # type: ignore[union-attr,arg-type]

    def prepare(self, targets: Any) -> Any:
        """Move targets to the device; labels become int64, and integer targets of regression losses floats."""
        if self.own is None or isinstance(self.own, LABELLED):
            return move(targets, self.reference)
        wanted = torch.int64 if self.is_classification else self.reference.dtype
        return map_tensors(
            lambda each: each if each.is_floating_point() else each.to(wanted), move(targets, self.reference)
        )

    def elements(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        """Return the contributions of a batch; those of a loss module in float64."""
        if self.own is None:
            return self.function(outputs, targets)
        return self.function(*self._in_own_dtype(outputs, targets))

    def _in_own_dtype(self, outputs: torch.Tensor, targets: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return outputs.to(self.dtype), targets.to(self.dtype) if targets.is_floating_point() else targets

    def total(self, outputs: torch.Tensor, targets: Any) -> torch.Tensor:
        """Return the sum of all contributions of a batch, zero-dimensional. Raises ValueError if shapes do not fit."""
        self._check_shapes(outputs, targets)
        losses = self.elements(outputs, targets)
        if self.own is None:
            self._check_losses(losses, outputs, num_samples(targets))
        return losses.sum()

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
        self._check_shapes(outputs, targets)
        if isinstance(self.own, CLASSIFICATION):
            self._check_classes(outputs, targets)
        elif isinstance(self.own, PROBABILITY_TARGETS) and (targets.min() < 0 or targets.max() > 1):
            raise ValueError(f"targets lie in {_range(targets)}; {self._name} takes probabilities from 0 to 1")
        try:
            losses = self.elements(outputs, targets)
            of_constants = self.elements(outputs.detach(), targets)
        except (RuntimeError, TypeError, ValueError, LookupError, AttributeError) as error:
            reason = str(error).strip().partition("\n")[0]
            raise ValueError(
                f"the loss fails for outputs of shape {tuple(outputs.shape)} ({type(error).__name__}: {reason})"
            ) from error
        if self.own is None:
            self._check_losses(losses, outputs, num_samples(targets))
        if of_constants.requires_grad:
            raise ValueError(
                "the loss depends on parameters directly, not through the outputs alone; leave that term out (a "
                "penalty c‖w‖²/2 adds c to every eigenvalue)"
            )

    @property
    def _name(self) -> str:
        return type(self.own).__name__

    def _check_shapes(self, outputs: torch.Tensor, targets: Any) -> None:
        """Raise ValueError if the shapes do not fit, also where PyTorch would broadcast them."""
        if self.own is None:
            return
        if not isinstance(targets, torch.Tensor):
            raise ValueError(f"targets are a {type(targets).__name__}; {self._name} takes a tensor")
        shapes = f"outputs have shape {tuple(outputs.shape)} and targets {tuple(targets.shape)}"
        if len(outputs) != num_samples(targets):
            raise ValueError(f"{shapes}: they differ in the number of samples")
        if isinstance(self.own, ELEMENTWISE) and outputs.shape != targets.shape:
            raise ValueError(f"{shapes}: {self._name} would broadcast them; give them the same shape")
        if not isinstance(self.own, CLASSIFICATION):
            return
        if outputs.dim() < 2 or outputs.shape[1] < 2:
            raise ValueError(f"{shapes}: {self._name} needs at least two classes, in the second dimension of outputs")
        wanted = (outputs.shape[0], *outputs.shape[2:])
        if targets.is_floating_point() and targets.shape != outputs.shape:
            raise ValueError(
                f"{shapes}, with targets of {targets.dtype}: labels must be integers, and probabilities must have the "
                "shape of the outputs"
            )
        if not targets.is_floating_point() and targets.shape != wanted:
            hint = ""
            if outputs.dim() > 2 and targets.shape == outputs.shape[:-1]:
                hint = "; the classes come last, so pass outputs=lambda result: result.movedim(-1, 1)"
            raise ValueError(f"{shapes}: {self._name} takes labels of shape {wanted}{hint}")

    def _check_classes(self, outputs: torch.Tensor, targets: torch.Tensor) -> None:
        """Raise ValueError unless labels are in range, and outputs are logits (or log-probabilities, for NLLLoss)."""
        self.check_labels(targets, outputs.shape[1])
        is_nll = isinstance(self.own, nn.NLLLoss)
        sums = (outputs.detach().exp() if is_nll else outputs.detach()).sum(1)
        is_normalized = bool(((sums - 1).abs() < PROBABILITY_ERROR).all())
        if is_nll and not is_normalized:
            raise ValueError("the outputs are not log-probabilities, which NLLLoss takes; use cross_entropy for logits")
        if not is_nll and is_normalized and bool((outputs >= 0).all()):
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

    def _check_losses(self, losses: Any, outputs: torch.Tensor, samples: int) -> None:
        """Raise ValueError unless a function has returned the loss of each sample."""
        if not isinstance(losses, torch.Tensor) or losses.dim() == 0:
            raise ValueError(
                "the loss function returns a single number, so its mean over several batches is unknown; it must "
                "return the loss of each sample (reduction='none'), or be a loss module"
            )
        if len(losses) != samples or losses.numel() > max(outputs.numel(), samples):
            raise ValueError(
                f"the loss function returns shape {tuple(losses.shape)} for {samples} samples and outputs of shape "
                f"{tuple(outputs.shape)}; it must return the loss of each sample"
            )

    def check_mean(self, outputs: torch.Tensor, targets: Any) -> None:
        """Raise ValueError unless sum and count give the value that the loss module itself computes."""
        if self.own is not None:
            mean = self.mean(self.total(outputs, targets), self.count(outputs, targets))
            own = self.own(*self._in_own_dtype(outputs, targets))
            if not torch.allclose(mean, own, rtol=1e-3, equal_nan=True):
                raise ValueError(
                    f"the mean of {self._name} is unknown: it gives {own.item():.6g}, not {mean.item():.6g}"
                )


def _range(values: torch.Tensor) -> str:
    return f"[{values.min().item():g}, {values.max().item():g}]"

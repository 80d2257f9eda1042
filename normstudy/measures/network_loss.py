"""The outputs and the cross-entropy of a model over fixed images, at its weights and near them."""

import contextlib
from collections.abc import Iterable, Iterator, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.modules.conv import _ConvNd

from normstudy.curvature import full_float32, hessian_matvec, in_mode

Batches = Sequence[tuple[torch.Tensor, torch.Tensor]]  # (inputs, labels (N,) int64)


def weights_of(model: nn.Module) -> list[torch.Tensor]:
    """Return the raw weights of all convolutions and linear layers, each once.

    Raises ValueError if there are none, or if one is computed from other parameters or frozen: a step of it would then
    change nothing, or have no gradient.
    """
    layers = {name: module for name, module in model.named_modules() if isinstance(module, (_ConvNd, nn.Linear))}
    for name, layer in layers.items():
        if not isinstance(layer.weight, nn.Parameter) or not layer.weight.requires_grad:
            what = "is frozen" if isinstance(layer.weight, nn.Parameter) else "is computed from other parameters"
            raise ValueError(f"the weight of {name or 'the model'} {what}, so these measures are not defined for it")
    weights = list({id(layer.weight): layer.weight for layer in layers.values()}.values())
    if not weights:
        raise ValueError("the model has no convolution and no linear layer, whose weights these measures are about")
    return weights


class NetworkLoss:
    """The outputs and the mean cross-entropy of a model over batches, as functions of its weights.

    Everything is computed in eval mode and in full float32 (or float64, if the model is), unless `batch_statistics` is
    set. Then norms with running statistics use those of each batch. Raises ValueError, naming the assumption, if the
    curvature package's checks fail: outputs that vary from call to call or depend on other images of the batch, and the
    like. checks=False leaves them out, for a model that has passed them.
    """

    def __init__(
        self, model: nn.Module, batches: Iterable[tuple[torch.Tensor, torch.Tensor]], checks: bool = True
    ) -> None:
        self.model = model
        self.batches: Batches = list(batches)
        self.weights = weights_of(model)
        self.labels = torch.cat([labels for _, labels in self.batches]).cpu()
        if checks:
            hessian_matvec(model, self.batches, curvature="empirical_fisher")

    def __len__(self) -> int:
        return len(self.labels)

    @contextlib.contextmanager
    def evaluation(self, batch_statistics: bool = False) -> Iterator[None]:
        """Evaluate the model inside a `with` block; its buffers and its mode are restored afterwards."""
        with full_float32(), in_mode(self.model, "train" if batch_statistics else "eval"):
            yield

    @contextlib.contextmanager
    def moved(self, steps: Sequence[torch.Tensor], of: Sequence[torch.Tensor] | None = None) -> Iterator[None]:
        """Add a step to each tensor of `of` (default: the weights) inside a `with` block.

        They are restored to the bit afterwards.
        """
        of = self.weights if of is None else of
        before = [each.detach().clone() for each in of]
        try:
            with torch.no_grad():
                for each, step in zip(of, steps, strict=True):
                    each.add_(step)
            yield
        finally:
            with torch.no_grad():
                for each, old in zip(of, before, strict=True):
                    each.copy_(old)

    @torch.no_grad()
    def logits(self, batch_statistics: bool = False) -> torch.Tensor:
        """Return the outputs for all images, (m, C), in float64 on the CPU."""
        with self.evaluation(batch_statistics):
            return torch.cat([self.model(inputs).cpu().double() for inputs, _ in self.batches])

    def losses(self) -> torch.Tensor:
        """Return the cross-entropy of each image, (m,), in float64 on the CPU."""
        return F.cross_entropy(self.logits(), self.labels, reduction="none")

    def gradient(
        self, of: Sequence[torch.Tensor] | None = None, batch_statistics: bool = False
    ) -> tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the mean loss and its gradient by `of` (default: the weights)."""
        of = self.weights if of is None else of
        loss, total = torch.zeros((), dtype=torch.float64), [torch.zeros_like(each) for each in of]
        with self.evaluation(batch_statistics), torch.enable_grad():
            for inputs, labels in self.batches:
                part = F.cross_entropy(self.model(inputs), labels, reduction="sum") / len(self)
                loss += part.detach().cpu()
                for each, gradient in zip(total, torch.autograd.grad(part, list(of)), strict=True):
                    each += gradient
        return loss, total


def norm(tensors: Iterable[torch.Tensor]) -> float:
    """Return the L2 norm of all entries of some tensors."""
    return torch.stack([torch.linalg.vector_norm(each).cpu().double() for each in tensors]).norm().item()


def mean_and_error(values: torch.Tensor) -> tuple[float, float]:
    """Return the mean of values (n,) and its standard error; the error of a single value is NaN."""
    return values.mean().item(), (values.std() / len(values) ** 0.5).item()

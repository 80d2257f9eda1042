"""Hessian products of this project, PyHessian and curvlinops, and the plainest way to compute one."""

from collections.abc import Callable, Iterable, Sequence

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.common import DEVICE
from normstudy.curvature import hessian_matvec

CONTENDERS = ("ours", "ours, graphs kept", "pyhessian", "curvlinops")
Batches = list[tuple[torch.Tensor, torch.Tensor]]
Product = Callable[[torch.Tensor], torch.Tensor]


def split_like(vector: torch.Tensor, parameters: Sequence[torch.Tensor]) -> list[torch.Tensor]:
    parts = vector.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


def flat(tensors: Iterable[torch.Tensor]) -> torch.Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def product_of(name: str, model: nn.Module, batches: Batches) -> Product:
    """Return v ↦ Hv as one of CONTENDERS computes it. For all, the network is in eval mode and channels_last."""
    if name == "ours":
        return hessian_matvec(model, batches)[0]
    if name == "ours, graphs kept":
        return hessian_matvec(model, batches, keep_graphs=True)[0]
    if name == "pyhessian":
        import pyhessian

        peer = pyhessian.hessian(model, nn.CrossEntropyLoss(), dataloader=batches, cuda=DEVICE.type == "cuda")
        return lambda v: flat(peer.dataloader_hv_product(split_like(v, list(model.parameters())))[1])
    import curvlinops

    options = {"check_deterministic": False}
    operator = curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), batches, **options
    )
    return operator.__matmul__


def double_backward(model: nn.Module, batches: Batches, vector: torch.Tensor) -> torch.Tensor:
    """Compute Hv in the plainest way, for an exact answer in float64."""
    parameters, total = list(model.parameters()), torch.zeros_like(vector)
    for images, labels in batches:
        loss = F.cross_entropy(model(images), labels, reduction="sum")
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        total = total + flat(torch.autograd.grad(gradients, parameters, split_like(vector, parameters)))
    return total / sum(len(labels) for _, labels in batches)

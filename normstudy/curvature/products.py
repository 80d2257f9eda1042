"""Products of the Hessian or Gauss-Newton matrix of a model's loss with a vector."""

import contextlib
import itertools
import warnings

import torch
from torch import nn
from torch.autograd import forward_ad
from torch.nn import functional as F

from .krylov_space import Matvec
from .objective import Batches, Objective, flatten, gradients_or_zeros

CURVATURES = ("hessian", "ggn")


def hessian_matvec(
    model: nn.Module,
    batches: Batches,
    loss: str = "cross_entropy",
    *,
    curvature: str = "hessian",
    bn_mode: str = "eval",
    keep_graphs: bool = False,
) -> tuple[Matvec, int]:
    """(matvec, dimension): v ↦ Hv on flat vectors (dimension,), H of the mean loss over all samples of the batches.

    The vectors follow the trainable ones of model.parameters(). The result has the dtype and device of v; the
    arithmetic is the model's, float32 without TF32. The model is read at every product and never changed: mode,
    buffers, gradients and hooks stay. batches: an iterable of (images, labels); a generator is kept as a list.
    curvature="ggn": the generalized Gauss-Newton matrix Jᵀ H_out J (Schraudolph 2002) in place of the Hessian.
    bn_mode="train": norms with running statistics use those of each batch instead.
    keep_graphs=True: the first product keeps the graph of each batch's gradient for the next ones, which take three
    quarters of the arithmetic; bytes_per_sample gives the memory. The model must then stay as it is (RuntimeError),
    and the batches come in the same order. For Hessians only.
    Raises ValueError for other names, for graphs of a Gauss-Newton matrix, for no batches, for images that are not
    floating-point numbers, and for a vector of another length.

    A product is one forward pass with tangents and one backward pass through both (Pearlmutter 1994): H v is the
    gradient of the directional derivative ⟨∇L, v⟩, which forward mode gives. The convolutions of a product cost
    8/3 of those of a gradient; with a kept graph of the gradient, ⟨∇L, v⟩ is differentiated backwards, which costs
    6/3. A model with a class that does not declare a differentiable JVP (see model_copy) is differentiated backwards
    twice.
    """
    if curvature not in CURVATURES:
        raise ValueError(f"curvature {curvature!r} is none of {', '.join(CURVATURES)}")
    if curvature == "ggn" and keep_graphs:
        raise ValueError("keep_graphs is for Hessians only")
    objective = Objective(model, batches, loss, bn_mode)
    backward = Objective(model, (), loss, bn_mode, forward_mode=False)
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", FutureWarning)  # from what PyTorch loads at the first dual tensor
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))
    kept: list[tuple[torch.Tensor | None, ...]] = []

    def matvec(vector: torch.Tensor) -> torch.Tensor:
        tangents = objective.split(vector)
        batch_numbers = itertools.count()

        def forward_product(images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
            with forward_ad.dual_level():
                duals = [forward_ad.make_dual(p, t) for p, t in zip(objective.parameters, tangents, strict=True)]
                logits, slopes = forward_ad.unpack_dual(objective.logits(images, duals))
                slopes = torch.zeros_like(logits) if slopes is None else slopes
                probabilities = torch.softmax(logits, 1)
                if curvature == "hessian":
                    # ⟨∇L, v⟩ of the sum over samples: ⟨softmax(z) − y, ż⟩.
                    output = ((probabilities - F.one_hot(labels, logits.shape[1])) * slopes).sum()
                    weights = None
                else:
                    # H_out ż of each sample: p ⊙ ż − p ⟨p, ż⟩.
                    weighted = (probabilities * slopes).detach()
                    output, weights = logits, weighted - probabilities.detach() * weighted.sum(1, keepdim=True)
            # Outside the level: inside, the backward pass would carry tangents of its own.
            return gradients_or_zeros(output, objective.parameters, weights)

        def backward_product(gradients: tuple[torch.Tensor | None, ...], keep_graph: bool) -> list[torch.Tensor]:
            used = [(g, t) for g, t in zip(gradients, tangents, strict=True) if g is not None and g.requires_grad]
            return gradients_or_zeros([g for g, _ in used], backward.parameters, [t for _, t in used], keep_graph)

        def product(images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
            if keep_graphs:
                number = next(batch_numbers)
                if number == len(kept):
                    kept.append(backward.gradient_graph(images, labels))
                return backward_product(kept[number], keep_graph=True)
            if curvature == "hessian" and not objective.jvp_is_differentiable:
                return backward_product(backward.gradient_graph(images, labels), keep_graph=False)
            return forward_product(images, labels)

        return flatten(objective.mean_over_samples(product)).to(vector)

    return matvec, objective.dimension


def loss_and_gradient(
    model: nn.Module, batches: Batches, loss: str = "cross_entropy", *, bn_mode: str = "eval"
) -> tuple[float, torch.Tensor]:
    """(mean loss over all samples, its flat gradient (dimension,)) of what hessian_matvec differentiates twice."""
    objective = Objective(model, batches, loss, bn_mode)

    def both(images: torch.Tensor, labels: torch.Tensor) -> list[torch.Tensor]:
        total = objective.summed_loss(images, labels)
        return [total.detach(), *gradients_or_zeros(total, objective.parameters)]

    mean, *gradient = objective.mean_over_samples(both)
    return mean.item(), flatten(gradient)


def bytes_per_sample(
    model: nn.Module,
    batch: tuple[torch.Tensor, torch.Tensor],
    *,
    curvature: str = "hessian",
    bn_mode: str = "eval",
    keep_graphs: bool = False,
) -> float:
    """Bytes that a product keeps for its backward pass, for each sample of a batch (images, labels) of four or more.

    With keep_graphs=True they are what stays after the product. Gradients and temporary tensors of the widest layers
    come on top.
    """
    images, labels = batch
    kept = []
    for samples in (2, 4):
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            with contextlib.suppress(RuntimeError):  # a tangent known to be zero has no memory
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        matvec, dimension = hessian_matvec(
            model,
            [(images[:samples], labels[:samples])],
            curvature=curvature,
            bn_mode=bn_mode,
            keep_graphs=keep_graphs,
        )
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            matvec(torch.zeros(dimension))
        kept.append(sum(storages.values()))
    return (kept[1] - kept[0]) / 2

"""Products of the Hessian or Gauss-Newton matrix of a model's loss with a vector.

References:
    B. A. Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 6 (1994).
    N. N. Schraudolph, "Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent", Neural Computation 14
    (2002).
"""

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
    """Return a function v ↦ Hv, where H is the Hessian of the mean loss over all samples of the batches.

    A product is one forward pass with tangents and one backward pass through both (Pearlmutter 1994): H v is the
    gradient of the directional derivative ⟨∇L, v⟩, which forward mode computes. A model with a class that does not
    declare a differentiable JVP (see `model_copy`) is differentiated by two backward passes instead.

    The convolutions of a product cost 8/3 of those of a gradient. With a kept graph of the gradient, ⟨∇L, v⟩ is
    differentiated backwards, which costs 6/3.

    The model is read at every product and never changed: its mode, buffers, gradients and hooks stay as they are.

    Args:
        model: Module that maps images to logits (N, classes).
        batches: Iterable of (images, labels) that can be iterated repeatedly; a generator is stored as a list. Images
            are floating-point tensors, scaled as in training. Labels (N,) are integers.
        loss: "cross_entropy".
        curvature: "hessian", or "ggn" for the generalized Gauss-Newton matrix Jᵀ H_out J (Schraudolph 2002).
        bn_mode: "eval" uses running statistics. With "train", norms that keep them use the statistics of each batch
            instead.
        keep_graphs: Whether the first product keeps the graph of each batch's gradient. Later products then take
            three quarters of the arithmetic; `bytes_per_sample` gives the memory. The model must not change in the
            meantime, and the batches must come in the same order. Applies only to the Hessian.

    Returns:
        (matvec, dimension). `matvec` maps a vector (dimension,) to a vector of the same shape, dtype and device. Its
        entries follow the trainable parameters in the order of model.parameters(). The arithmetic uses the model's
        dtype; float32 is computed without TF32.

    Raises:
        ValueError: If `loss`, `curvature` or `bn_mode` is unknown, if `keep_graphs` is combined with "ggn", if the
            model has no trainable parameters, or if `batches` is a single pair. `matvec` raises it if there are no
            batches, if images are not floating point or labels are, or if the vector has another shape.
        RuntimeError: `matvec` raises it if the model was changed after its graphs were kept.
    """
    if curvature not in CURVATURES:
        raise ValueError(f"curvature {curvature!r} is not one of {', '.join(CURVATURES)}")
    if curvature == "ggn" and keep_graphs:
        raise ValueError("keep_graphs applies only to curvature=hessian, not to ggn")
    objective = Objective(model, batches, loss, bn_mode)
    backward = Objective(model, (), loss, bn_mode, forward_mode=False)
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore", FutureWarning)  # raised by what PyTorch imports for the first dual tensor
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
                    # ⟨∇L, v⟩ for the loss summed over samples: ⟨softmax(z) − y, ż⟩.
                    output = ((probabilities - F.one_hot(labels, logits.shape[1])) * slopes).sum()
                    weights = None
                else:
                    # H_out ż for each sample: p ⊙ ż − p ⟨p, ż⟩.
                    weighted = (probabilities * slopes).detach()
                    output, weights = logits, weighted - probabilities.detach() * weighted.sum(1, keepdim=True)
            # Outside the dual level, because inside it the backward pass would carry tangents of its own.
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
    """Compute the mean loss over all samples and its gradient.

    This is the function that `hessian_matvec` differentiates twice; the arguments and errors are the same.

    Returns:
        (loss, gradient), with the flat gradient (dimension,) in the order of model.parameters().
    """
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
    """Measure the memory that a product of `hessian_matvec` keeps for its backward pass, in bytes per sample.

    With keep_graphs=True, this memory stays allocated after the product. Gradients and temporary tensors of the widest
    layers are not included.

    Args:
        model: As in `hessian_matvec`.
        batch: One batch (images, labels) of at least four samples.
        curvature: As in `hessian_matvec`.
        bn_mode: As in `hessian_matvec`.
        keep_graphs: As in `hessian_matvec`.
    """
    images, labels = batch
    kept = []
    for samples in (2, 4):
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            with contextlib.suppress(RuntimeError):  # a tangent known to be zero has no storage
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

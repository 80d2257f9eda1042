"""Products of the Hessian, Gauss-Newton or empirical Fisher matrix of a model's loss with a vector.

References:
    B. A. Pearlmutter, "Fast Exact Multiplication by the Hessian", Neural Computation 6 (1994).
    N. N. Schraudolph, "Fast Curvature Matrix-Vector Products for Second-Order Gradient Descent", Neural Computation 14
    (2002).
"""

import contextlib

import torch
from torch import nn

from .batches import Batch, Batches, as_pair, num_samples, take
from .checks import check_loss, choose_way
from .krylov_space import Matvec
from .losses import LossLike
from .objective import Objective, Outputs, flatten
from .scaling import parameter_scales
from .ways import CURVATURES, gradients_or_zeros, ways_of

FEWEST_SAMPLES = 4  # the memory per sample cannot be measured with fewer


def hessian_matvec(
    model: nn.Module,
    batches: Batches,
    loss: LossLike = "cross_entropy",
    *,
    curvature: str = "hessian",
    bn_mode: str = "eval",
    scale: str = "none",
    keep_graphs: bool = False,
    outputs: Outputs | None = None,
    checks: bool = True,
) -> tuple[Matvec, int]:
    """Return a function v ↦ Hv, where H is the Hessian of the mean loss over all samples of the batches.

    For models whose classes declare it (see `model_copy`), a product is one forward pass with tangents and one
    backward pass through both (Pearlmutter 1994): Hv is the gradient of the directional derivative ⟨∇L, v⟩, which
    forward mode computes. Its convolutions cost 8/3 of those of a gradient. With a kept graph of the gradient,
    ⟨∇L, v⟩ is differentiated backwards, which costs 6/3. All other models are differentiated by two backward passes.

    Before the first product, the assumptions are checked on four samples and two passes over the batches (see
    `checks`).

    The model is read at every product and never changed: its mode, buffers, gradients and hooks stay as they are.
    Wrappers of torch.compile, DataParallel and DistributedDataParallel are removed first.

    Args:
        model: Module whose trainable parameters are the variables.
        batches: Iterable of pairs (inputs, targets) that can be iterated repeatedly; a generator is stored as a list.
            Inputs are a tensor, a tuple of tensors (the arguments of the model) or a dict (its keywords), prepared as
            in training. Floating-point tensors are converted to the model's dtype.
        loss: "cross_entropy" (targets are labels (N,), or (N, …) for outputs (N, classes, …)), "mse",
            "bce_with_logits", a loss module of torch.nn with its options, or a function (outputs, targets) that returns
            the loss of each sample. The mean is the loss's own, normalized over all batches (see `Loss`).
        curvature: "hessian"; "ggn" for the generalized Gauss-Newton matrix Jᵀ H_out J (Schraudolph 2002), which is
            positive semidefinite if the loss is convex in the outputs; or "empirical_fisher" for the mean of
            ∇ℓ_i ∇ℓ_iᵀ over samples.
        bn_mode: "eval" uses running statistics. With "train", norms that keep them use the statistics of each batch
            instead, so all batches must have the same size.
        scale: "filter" or "element" for the matrix D H D, with the scales D of the present parameters (see
            `parameter_scales`).
        keep_graphs: Whether the first product keeps the graph of each batch's gradient. Later products then take
            three quarters of the arithmetic; `bytes_per_sample` gives the memory. The model must not change in the
            meantime, and the batches must come in the same order. Applies only to the Hessian.
        outputs: Function that picks the tensor of outputs from what the model returns. Defaults to the result itself.
        checks: Whether to check the assumptions. Without it, wrong inputs may give wrong numbers.

    Returns:
        (matvec, dimension). `matvec` maps a vector (dimension,) to a vector of the same shape, dtype and device. Its
        entries follow the trainable parameters in the order of model.parameters(). The arithmetic uses the model's
        dtype; float32 is computed without TF32 or autocast.

    Raises:
        ValueError: If an argument is unknown or does not apply, or if a check finds that an assumption is violated.
            `matvec` raises it if there are no batches, or if the vector has another shape.
        RuntimeError: `matvec` raises it if the model was changed after its graphs were kept, or if its parameters were
            replaced by other tensors.
    """
    if curvature not in CURVATURES:
        raise ValueError(f"curvature {curvature!r} is not one of {', '.join(CURVATURES)}")
    if curvature != "hessian" and keep_graphs:
        raise ValueError(f"keep_graphs applies only to curvature=hessian, not to {curvature}")
    if curvature == "empirical_fisher" and bn_mode == "train":
        raise ValueError("with batch statistics, samples have no gradients of their own; use bn_mode=eval")
    objective = Objective(model, batches, loss, bn_mode=bn_mode, outputs=outputs)
    ways = ways_of(objective, curvature, keep_graphs)
    way = choose_way(objective, ways) if checks else ways[0]
    scales = None if scale == "none" else parameter_scales(model, scale)
    kept_state: list[torch.Tensor] = []

    def matvec(vector: torch.Tensor) -> torch.Tensor:
        if keep_graphs:
            state = objective.fingerprint()
            if kept_state and not torch.equal(kept_state[0], state):
                raise RuntimeError("the model has changed since its graphs were kept; call hessian_matvec again")
            kept_state[:] = [state]
        if not vector.is_floating_point() and not vector.is_complex():
            vector = vector.to(objective.parameters[0].dtype)
        tangents = objective.split(vector)
        if scales is None:
            return flatten(objective.mean(way.begin(tangents))).to(vector)
        parts = objective.split(scales)
        products = objective.mean(way.begin([s * t for s, t in zip(parts, tangents, strict=True)]))
        return flatten(s * p for s, p in zip(parts, products, strict=True)).to(vector)

    return matvec, objective.dimension


def loss_and_gradient(
    model: nn.Module,
    batches: Batches,
    loss: LossLike = "cross_entropy",
    *,
    bn_mode: str = "eval",
    outputs: Outputs | None = None,
) -> tuple[float, torch.Tensor]:
    """Compute the mean loss over all samples and its gradient.

    This is the function that `hessian_matvec` differentiates twice; the arguments and errors are the same.

    Returns:
        (loss, gradient), with the flat gradient (dimension,) in the order of model.parameters().
    """
    objective = Objective(model, batches, loss, bn_mode=bn_mode, outputs=outputs)

    def both(inputs: object, targets: object) -> tuple[list[torch.Tensor], float | torch.Tensor]:
        result = check_loss(objective, (inputs, targets))
        total = objective.loss.total(result, targets)
        gradient = gradients_or_zeros(total, objective.parameters)
        return [total.detach(), *gradient], objective.loss.count(result, targets)

    mean, *gradient = objective.mean(both)
    return mean.item(), flatten(gradient)


def bytes_per_sample(
    model: nn.Module,
    batch: Batch,
    loss: LossLike = "cross_entropy",
    *,
    curvature: str = "hessian",
    bn_mode: str = "eval",
    keep_graphs: bool = False,
    outputs: Outputs | None = None,
) -> float:
    """Measure the memory that a product of `hessian_matvec` keeps for its backward pass, in bytes per sample.

    With keep_graphs=True, this memory stays allocated after the product. Gradients and temporary tensors of the widest
    layers are not included.

    Args:
        model: As in `hessian_matvec`.
        batch: One batch (inputs, targets) of at least four samples.
        loss: As in `hessian_matvec`.
        curvature: As in `hessian_matvec`.
        bn_mode: As in `hessian_matvec`.
        keep_graphs: As in `hessian_matvec`.
        outputs: As in `hessian_matvec`.

    Raises:
        ValueError: If the batch has fewer than four samples, or cannot be divided into samples.
    """
    samples = num_samples(as_pair(batch)[1])
    if samples < FEWEST_SAMPLES or num_samples(take(batch, slice(0, 2))[1]) != 2:
        raise ValueError(
            f"a batch of {samples} is too small to measure the memory of a sample, or has tensors without a row for "
            f"each sample; {FEWEST_SAMPLES} samples are enough"
        )
    kept = []
    for count in (2, 4):
        storages: dict[int, int] = {}

        def keep(tensor: torch.Tensor, storages: dict[int, int] = storages) -> torch.Tensor:
            with contextlib.suppress(RuntimeError):  # a tangent known to be zero has no storage
                storage = tensor.untyped_storage()
                storages[storage.data_ptr()] = storage.nbytes()
            return tensor.detach()

        matvec, dimension = hessian_matvec(
            model,
            [take(batch, slice(0, count))],
            loss,
            curvature=curvature,
            bn_mode=bn_mode,
            keep_graphs=keep_graphs,
            outputs=outputs,
            checks=False,
        )
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            matvec(torch.zeros(dimension, device="cpu"))
        kept.append(sum(storages.values()))
    return (kept[1] - kept[0]) / 2

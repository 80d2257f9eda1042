"""Checks of the assumptions behind a product, on four samples and two passes over the batches.

A violated assumption is a ValueError that names it. A faster way that differs from two backward passes is not used, and
a warning says so. Comparisons of products replace the loss with a smooth function of the outputs, because a fitted
network's cross-entropy is so flat that rounding would dominate.
"""

from collections.abc import Sequence

import torch

from .batches import Batch, as_pair, digests, num_samples, take, tensors_in
from .model_state import has_running_statistics
from .objective import Objective
from .product_checks import Comparison, LowPrecision, check_derivative, first_line, is_out_of_memory, warn
from .ways import ForwardMode, KeptGraphs, Way

SAMPLES = 4
ALONE = 1e-3  # relative difference of a sample's outputs in two batches


def choose_way(objective: Objective, ways: Sequence[Way]) -> Way:
    """Check the assumptions of a measurement, and return the first way that equals the last, the plain one.

    Raises ValueError if an assumption is violated.
    """
    plain = ways[-1]
    with objective.evaluation():
        few = check_batches(objective, is_ordered=objective.bn_mode == "train" or isinstance(ways[0], KeptGraphs))
        if objective.bn_mode == "train" and not has_running_statistics(objective.model):
            warn("no layer of this model has buffers named running_…, so bn_mode=train changes nothing")
        outputs = check_loss(objective, few).detach()
        _check_precision(objective, few)
        objective.loss.check_mean(outputs, few[1])
        if plain.curvature == "empirical_fisher":
            _check_losses_of_samples(objective, few, outputs)
        comparison = Comparison(objective, few, outputs, plain)
        comparison.check_gradient()
        way = _first_right_way(comparison, ways)
        if objective.bn_mode == "eval":
            _check_samples_are_independent(objective, few, outputs)
        check_derivative(objective, few, plain.curvature)
        return way


def _first_right_way(comparison: Comparison, ways: Sequence[Way]) -> Way:
    """Return the first way that gives the product of the last, the plain one.

    Without second derivatives, of which a Gauss-Newton matrix needs none, forward mode is compared with its adjoint.
    """
    plain = ways[-1]
    try:
        expected = comparison.repeated_product(plain)
        if plain.curvature != "hessian" and not comparison.has_adjoint_slopes(plain):
            raise ValueError("the backward pass of a custom autograd function cannot be differentiated")
    except ValueError:
        if not isinstance(ways[0], ForwardMode) or plain.curvature == "hessian":
            raise
        try:
            comparison.repeated_product(ways[0])
            is_right = comparison.has_adjoint_slopes(ways[0])
        except (ValueError, RuntimeError, NotImplementedError):
            is_right = False
        if not is_right:
            raise
        return ways[0]
    return next((way for way in ways[:-1] if comparison.agrees(way, expected)), plain)


def check_batches(objective: Objective, is_ordered: bool) -> Batch:
    """Check the form of all batches, their labels, their sizes and that two passes give the same; return few samples.

    Args:
        objective: The objective. With bn_mode="train", all batches must have the same size.
        is_ordered: Whether the order of samples matters.
    """
    batches, loss = objective.batches, objective.loss
    is_constant = isinstance(batches, tuple | list)
    passes: list[list[bytes]] = []
    few: Batch | None = None
    sizes: list[int] = []
    labels: list[torch.Tensor] = []
    for number in range(1 if is_constant else 2):
        passes.append([])
        for batch in batches:
            pair = as_pair(batch)
            if not is_constant:
                passes[-1] += digests(pair)
            if number == 0:
                sizes.append(num_samples(pair[1]))
                targets = loss.prepare(pair[1])
                if isinstance(targets, torch.Tensor) and loss.is_classification and not targets.is_floating_point():
                    counted = targets[targets != loss.ignored]
                    if not len(counted):
                        continue
                    labels += [counted.min(), counted.max()]
                if few is None or num_samples(few[1]) < 2:
                    few = _few_samples(objective, pair)
    if not sizes:
        raise ValueError("there are no batches, or their iterator is used up; pass a list of (inputs, targets)")
    if few is None:
        raise ValueError(f"all targets are ignored: they equal ignore_index={loss.ignored}")
    if not is_constant and (passes[0] != passes[1] if is_ordered else sorted(passes[0]) != sorted(passes[1])):
        if sorted(passes[0]) == sorted(passes[1]):
            raise ValueError(
                "the batches come in another order in each pass, which changes batch statistics and does not fit kept "
                "graphs; use shuffle=False"
            )
        raise ValueError(
            "two passes over the batches give different samples, so the operator would change between products; turn "
            "off augmentation and random subsets"
        )
    if objective.bn_mode == "train" and len(set(sizes)) > 1:
        divisor = largest_divisor(sum(sizes), max(sizes))
        raise ValueError(
            f"batches have {min(sizes)} to {max(sizes)} samples, but batch statistics depend on the size: with "
            f"bn_mode=train, all must be equal. {sum(sizes)} samples divide into batches of {divisor}"
        )
    if labels:
        loss.check_labels(torch.stack(labels), check_loss(objective, few).shape[1])
    return few


def _few_samples(objective: Objective, pair: Batch) -> Batch:
    """Return SAMPLES samples of a batch, or the whole batch if it cannot be divided."""
    few, whole = objective.prepare(take(pair, slice(0, SAMPLES))), objective.prepare(pair)
    loss = objective.loss
    if loss.is_classification and not few[1].is_floating_point() and not (few[1] != loss.ignored).any():
        return whole
    try:
        check_loss(objective, few)
    except ValueError:  # for instance because a mask (T, T) was taken for one row per sample
        return whole
    return few


def largest_divisor(number: int, limit: int) -> int:
    """Return the largest divisor of a number that is at most `limit`."""
    return next(divisor for divisor in range(min(number, limit), 0, -1) if number % divisor == 0)


def check_loss(objective: Objective, batch: Batch) -> torch.Tensor:
    """Return the outputs of the model for a prepared batch, after a check that they fit the targets and the loss.

    Raises ValueError if they do not, or if the model fails.
    """
    inputs, targets = batch
    try:
        outputs = objective.function(inputs)
    except (RuntimeError, TypeError, ValueError, LookupError, AttributeError, AssertionError) as error:
        if is_out_of_memory(error):
            raise
        shapes = ", ".join(f"{each.dtype} {tuple(each.shape)}" for each in tensors_in(inputs))
        hint = ""
        if any(each.dtype == torch.uint8 for each in tensors_in(inputs)):
            hint = "; images must be floating-point, scaled as in training"
        reason = first_line(error)
        raise ValueError(f"the model fails on inputs {shapes} ({type(error).__name__}: {reason}){hint}") from error
    objective.loss.check(outputs, targets)
    return outputs


def _check_precision(objective: Objective, few: Batch) -> None:
    """Raise ValueError if the model computes in a lower precision than that of its parameters."""
    dtype = objective.parameters[0].dtype
    with LowPrecision(dtype) as low:
        outputs = objective.function(few[0])
    for name, lower in low.found.items():
        raise ValueError(
            f"the model computes in {lower} inside ({name}), although its parameters are {dtype}; turn off the "
            "autocast in its forward, or convert the model to that precision if it is float32"
        )
    if outputs.isnan().any() or not objective.loss.total(outputs, few[1]).isfinite():
        raise ValueError("the outputs or the loss of the first samples are not finite")


def _check_samples_are_independent(objective: Objective, few: Batch, outputs: torch.Tensor) -> None:
    """Raise ValueError if the outputs or the loss of a sample depend on the other samples of the batch."""
    samples = num_samples(few[1])
    rows = slice(0, samples // 2), slice(samples // 2, samples)
    halves = [take(few, each) for each in rows]
    if samples < 2 or num_samples(halves[0][1]) == samples:
        return
    try:
        parts = [objective.function(half[0]).detach() for half in halves]
    except (RuntimeError, TypeError, ValueError, LookupError) as error:
        if is_out_of_memory(error):
            raise
        return  # the inputs cannot be divided into samples
    if sum(map(len, parts)) != len(outputs):  # the first dimension of the outputs is not that of samples
        return
    finite = outputs.isfinite()
    scale = outputs[finite].abs().median() if finite.any() else outputs.new_ones(())
    difference = torch.where(finite, torch.cat(parts) - outputs, 0)
    if (difference.abs() > ALONE * (outputs.abs() + 10 * scale)).any():
        raise ValueError(
            "the outputs of a sample depend on the other samples of its batch, in eval mode (a batch norm without "
            "running statistics?), so the result would depend on the batch size; bn_mode=train takes batches as they "
            "are"
        )
    losses = objective.loss.elements(outputs, few[1])
    halved = [objective.loss.elements(outputs[each], half[1]) for each, half in zip(rows, halves, strict=True)]
    if (torch.cat(halved) - losses).abs().max() > ALONE * losses.abs().max():
        raise ValueError(
            "the loss of a sample depends on the other samples of its batch (or is divided by their number), so it has "
            "no mean over several batches"
        )


def _check_losses_of_samples(objective: Objective, few: Batch, outputs: torch.Tensor) -> None:
    losses = objective.loss.elements(outputs, few[1])
    if losses.numel() != num_samples(few[1]):
        raise ValueError(
            f"the empirical Fisher matrix needs one loss per sample, but the losses have shape {tuple(losses.shape)}"
        )

"""Statistics of activations and gradients: the arithmetic of the probes.

Inputs x are a batch of N samples: maps (N, C, H, W), tokens (N, T, C) or vectors (N, C). Statistics are
zero-dimensional tensors on the device of x and off the graph. Nothing here waits for a device other than the CPU.
"""

import math
from collections.abc import Sequence

import torch
from torch.nn import functional as F

from normstudy.kernels.devices import is_bf16_emulated
from normstudy.kernels.moments import statistics_dtype, to_statistics_dtype
from normstudy.kernels.switch import form_of

POSITIONS_AT_ONCE = 2**15
STACKED_ENTRIES = 2**24  # maximum number of entries in a stack of Gram matrices
SQUARINGS, PRODUCTS = 8, 16  # together the 4096th power of the matrix of cosines


def _rows(x: torch.Tensor) -> torch.Tensor:
    """Reshape maps to (N, H·W, C) and vectors to (N, 1, C), as views if possible; leave tokens (N, T, C) unchanged."""
    if x.dim() == 4:
        return x.permute(0, 2, 3, 1).flatten(1, 2)
    return x if x.dim() == 3 else x.unsqueeze(1)


def channel_variance(x: torch.Tensor) -> torch.Tensor:
    """Return the population variance of each channel over samples and positions: (C,)."""
    x = x.detach()
    if form_of(x, "channel_variance") == "plain":
        return to_statistics_dtype(_rows(x)).var((0, 1), correction=0)
    # The statistics of batch normalization read x once. On the CPU, their sums keep five digits over POSITIONS_AT_ONCE
    # positions and three over eight times as many, so parts are taken together (law of total variance).
    x = x if x.dim() == 4 else _rows(x).flatten(0, 1)
    if x.device.type != "cpu":
        return torch.batch_norm_update_stats(x, None, None, 0.0)[1]
    parts = x.split(max(1, POSITIONS_AT_ONCE // math.prod(x.shape[2:])))
    unused = torch.zeros(x.shape[1], dtype=statistics_dtype(x))  # its dtype is that of the results
    means, variances = zip(*[torch.batch_norm_update_stats(part, unused, unused, 0.0) for part in parts], strict=True)
    shares = torch.tensor([len(part) / len(x) for part in parts], dtype=unused.dtype)
    mean = shares @ torch.stack(means)
    return shares @ (torch.stack(variances) + (torch.stack(means) - mean).square())


def frobenius_norm(x: torch.Tensor) -> torch.Tensor:
    """Return the root of the sum of squares of all entries of x.

    Each sample is summed first: in float32, a sum over all entries at once is off by 7e-4 for 17 million entries.
    """
    x = x.detach()
    norms = torch.linalg.vector_norm(_rows(x).flatten(1), dim=1, dtype=statistics_dtype(x))
    return torch.linalg.vector_norm(norms)


def gram_matrix(x: torch.Tensor) -> torch.Tensor:
    """Return the inner products of every two samples of x, flattened: (N, N)."""
    samples = _rows(x.detach()).flatten(1)
    return (samples @ samples.T).to(statistics_dtype(x))


def gram_statistics(grams: Sequence[torch.Tensor]) -> dict[str, torch.Tensor]:
    """Return the statistics that follow from the Gram matrices (N, N) of S activations: (S,) each.

    activation_norm: mean over samples of the L2 norm. cosine_similarity: mean over ordered pairs i≠j of cos(x_i, x_j)
    of flattened samples; NaN for a single sample. stable_rank: ‖U‖_F²/‖U‖₂² of the matrix U of unit-length samples. An
    all-zero sample has cosine 0 with every other and adds nothing to U; if all are zero, the stable rank is 0. For
    half-precision input, products are rounded to half precision, which leaves about three digits.
    """
    at_once = max(1, STACKED_ENTRIES // grams[0].numel())
    parts = [_gram_statistics(torch.stack(list(grams[i : i + at_once]))) for i in range(0, len(grams), at_once)]
    return {key: torch.cat([part[key] for part in parts]) for key in parts[0]}


def _gram_statistics(grams: torch.Tensor) -> dict[str, torch.Tensor]:
    tiny = torch.finfo(grams.dtype).tiny
    norms = grams.diagonal(dim1=1, dim2=2).clamp_min(0).sqrt()
    inverse = torch.where(norms > 0, 1 / norms.clamp_min(tiny), 0)
    cosines = grams * inverse[:, :, None] * inverse[:, None, :]
    frobenius = _traces(cosines)
    samples = grams.shape[1]
    pairs = samples * (samples - 1)
    mean_cosine = (cosines.sum((1, 2)) - frobenius) / pairs if pairs else torch.full_like(frobenius, torch.nan)
    return {
        "activation_norm": norms.mean(1),
        "cosine_similarity": mean_cosine,
        "stable_rank": frobenius / largest_eigenvalues(cosines).clamp_min(tiny),
    }


def _traces(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.diagonal(dim1=1, dim2=2).sum(1)


def largest_eigenvalues(matrices: torch.Tensor) -> torch.Tensor:
    """Return the largest eigenvalue of each positive semidefinite matrix of cosines (S, N, N): (S,).

    Eight squarings give the 256th power P of the matrix, and 16 products with P leave the leading direction. Its
    Rayleigh quotient is too small by a relative error below 1e-3, even if the second eigenvalue is as close as it can
    be. The squarings are in bfloat16: the quotient depends only on the square of the direction's error. Unlike a
    decomposition, this does not wait for the device.
    """
    if form_of(matrices, "largest_eigenvalues") == "plain":
        return torch.linalg.eigvalsh(matrices)[:, -1]
    # A matrix of trace 1 has an eigenvalue of 1/N or more, so its fourth power does not underflow.
    power = _with_trace_one(matrices)
    is_rough = matrices.dtype == torch.float32 and not is_bf16_emulated(matrices.device)
    rough = torch.bfloat16 if is_rough else matrices.dtype
    for _ in range(SQUARINGS // 2):
        power = power.to(rough)
        power = power @ power
        power = _with_trace_one((power @ power).to(matrices.dtype))
    # The largest column is the closest to the leading direction and cannot be orthogonal to it.
    largest = power.diagonal(dim1=1, dim2=2).argmax(1)
    direction = power.gather(2, largest[:, None, None].expand(-1, power.shape[1], 1))
    for _ in range(PRODUCTS // 4):
        direction = _unit(direction)
        for _ in range(4):
            direction = power @ direction
    direction = _unit(direction)
    return (direction * (matrices @ direction)).sum((1, 2))


def _with_trace_one(matrices: torch.Tensor) -> torch.Tensor:
    """Scale matrices (S, N, N) to trace 1; those of trace 0 stay zero."""
    return matrices / _traces(matrices).clamp_min(torch.finfo(matrices.dtype).tiny)[:, None, None]


def _unit(vectors: torch.Tensor) -> torch.Tensor:
    """Scale vectors (S, N, 1) to length 1; zero vectors stay zero."""
    return F.normalize(vectors, dim=1, eps=torch.finfo(vectors.dtype).tiny)


def norms_and_angles(before: list[torch.Tensor], after: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the norm of each weight before a step, and the angle in radians by which the step turned it: (W,) each.

    The angle is 0 if either weight is all zeros, and NaN if either is not finite.

    It is atan2 of the components of the new weight b orthogonal and parallel to the old one, a. They follow from the
    update d = b − a, which float32 holds exactly, so small angles keep their digits: arccos of the cosine gives 0 below
    1e-3. The error is about 1e-7 · ‖a‖/‖b‖ of the size of the update.
    """
    updates = torch._foreach_sub(after, before)
    norms, new_norms = frobenius_norms(before), frobenius_norms(after)
    along = torch.stack([_rows(each).sum((1, 2)).sum() for each in torch._foreach_mul(before, updates)]) / norms
    parts = zip(updates, before, (along / norms).unbind(), strict=True)
    orthogonal = frobenius_norms([torch.addcmul(d, a, factor, value=-1) for d, a, factor in parts])
    angles = torch.atan2(orthogonal, norms + along)
    return norms, torch.where((norms == 0) | (new_norms == 0), 0, angles)


def frobenius_norms(tensors: list[torch.Tensor]) -> torch.Tensor:
    """Return the frobenius_norm of each tensor: (T,)."""
    if form_of(tensors[0], "frobenius_norm") == "device":
        return torch.stack(torch._foreach_norm(tensors))
    return torch.stack([frobenius_norm(each) for each in tensors])

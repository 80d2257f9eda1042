"""Moments of feature maps and x · scale + shift: the arithmetic of norms. x is (N, C, H, W), best in channels_last.

Both differentiate twice, in forward and in reverse mode.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional as F

from normstudy.kernels.switch import form_of

CACHED_ELEMENTS = 2**18  # handled at a time on a CPU: a megabyte of float32, which its second-level cache holds


def statistics_dtype(x: torch.Tensor) -> torch.dtype:
    """The dtype that statistics of x are computed in: float32 for half-precision input."""
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def to_statistics_dtype(x: torch.Tensor) -> torch.Tensor:
    """x in the dtype of its statistics."""
    return x.to(statistics_dtype(x))


def map_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The population variance and the mean over H,W of each sample and channel of x (N, C, H, W): (N, C) each.

    They are float32 for half-precision x.
    """
    if form_of(x, "map_moments") == "plain":
        return torch.var_mean(to_statistics_dtype(x), (2, 3), correction=0)
    return _MapMoments.apply(x)


def scale_shift(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """x · scale + shift, in the dtype of x; scale and shift are (N, C) or (1, C), in any dtype."""
    if form_of(x, "scale_shift") == "plain":
        return x * _broadcast(scale, x) + _broadcast(shift, x)
    return _ScaleShift.apply(x, scale, shift)


def pooled_variance(variances: torch.Tensor, means: torch.Tensor, dim: int) -> torch.Tensor:
    """The variance of equally large parts taken together (law of total variance), over `dim` of the parts."""
    return (variances + (means - means.mean(dim, keepdim=True)).square()).mean(dim)


def group_moments(x: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The variance and the mean of each group of channels and sample, repeated for its channels: (N, C) each."""
    if num_groups == x.shape[1]:
        return map_moments(x)
    variances, means = (moment.view(len(x), num_groups, -1) for moment in map_moments(x))
    each = x.shape[1] // num_groups
    pooled = pooled_variance(variances, means, dim=2), means.mean(2)
    return pooled[0].repeat_interleave(each, dim=1), pooled[1].repeat_interleave(each, dim=1)


def _broadcast(coefficients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """(N, C) or (1, C) shaped to broadcast over x (N, C, H, W), in its dtype."""
    return coefficients[..., None, None].to(x.dtype)


def samples_at_once(x: torch.Tensor) -> int:
    """How many samples of x (N, ...) fit into CACHED_ELEMENTS; at least one."""
    return max(1, CACHED_ELEMENTS // max(1, math.prod(x.shape[1:])))


def position_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The variance and the mean over the positions of x (N, positions, C), (N, C) each, in statistics_dtype(x).

    On the CPU a few samples at a time, so that the second and third pass find them in the cache.
    """
    at_once = samples_at_once(x) if form_of(x, "map_moments") == "cpu" else max(1, len(x))
    variances, means = [], []
    for part in map(to_statistics_dtype, x.split(at_once)):
        mean = part.mean(1)
        variances.append(F.mse_loss(part, mean[:, None].expand_as(part), reduction="none").mean(1))
        means.append(mean)
    return torch.cat(variances), torch.cat(means)


class _MapMoments(torch.autograd.Function):
    """map_moments without torch.var_mean, which takes thirty times as long on small maps in channels_last (CPU)."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return position_moments(x.permute(0, 2, 3, 1).flatten(1, 2))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        saved = (*inputs, output[1])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        variance_gradient, mean_gradient = gradients
        x, mean = ctx.saved_tensors
        count = x.shape[2] * x.shape[3]
        slope = variance_gradient * (2 / count)
        shift = mean_gradient / count - slope * mean
        return torch.addcmul(_broadcast(shift, x), x, _broadcast(slope, x))

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        [tangent] = tangents
        x, mean = ctx.saved_tensors
        centred = x - mean[..., None, None]
        return 2 * (centred * tangent).mean((2, 3)), tangent.mean((2, 3), dtype=mean.dtype)


class _ScaleShift(torch.autograd.Function):
    """scale_shift with a backward pass of three walks over the maps, where that of torch.addcmul takes nine."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(_broadcast(shift, x), x, _broadcast(scale, x))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, scale, shift = inputs
        ctx.has_one = tuple(coefficient.shape[0] == 1 for coefficient in (scale, shift))
        ctx.form = form_of(x, "scale_shift")
        ctx.save_for_backward(x, scale)
        ctx.save_for_forward(x, scale)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, ...]:
        [gradient] = gradients
        x, scale = ctx.saved_tensors
        dtype = scale.dtype
        sums: Sequence[torch.Tensor]
        if ctx.form != "cpu" or torch.is_grad_enabled():  # grad is enabled if this is to be differentiated again
            sums = (gradient * x).sum((2, 3), dtype=dtype), gradient.sum((2, 3), dtype=dtype)
            x_gradient = gradient * _broadcast(scale, x)
        else:  # a few samples at a time, which stay in the cache
            rows, g = (tensor.permute(0, 2, 3, 1).flatten(1, 2) for tensor in (x, gradient))
            x_gradient = torch.empty_like(g)
            each = scale.to(x.dtype).expand(len(x), -1)[:, None]
            at_once = samples_at_once(rows)
            parts = []
            for to, g_part, x_part, scale_part in zip(
                *(tensor.split(at_once) for tensor in (x_gradient, g, rows, each)), strict=True
            ):
                to.copy_(g_part * scale_part)
                parts.append(((g_part * x_part).sum(1, dtype=dtype), g_part.sum(1, dtype=dtype)))
            sums = tuple(torch.cat(each_sum) for each_sum in zip(*parts, strict=True))
            x_gradient = x_gradient.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return x_gradient, *(
            each_sum.sum(0, keepdim=True) if has_one else each_sum
            for each_sum, has_one in zip(sums, ctx.has_one, strict=True)
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor | None) -> torch.Tensor:
        x_tangent, scale_tangent, shift_tangent = tangents
        x, scale = ctx.saved_tensors
        total = torch.zeros_like(x) if x_tangent is None else x_tangent * _broadcast(scale, x)
        if scale_tangent is not None:
            total = total + x * _broadcast(scale_tangent, x)
        if shift_tangent is not None:
            total = total + _broadcast(shift_tangent, x).expand_as(x)
        return total

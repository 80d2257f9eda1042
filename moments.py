"""Moments of feature maps and x · scale + shift, in as few walks over memory as their formulas allow.

What norms and probes are made of. Both differentiate twice, in either mode. x is (N, C, H, W), best in channels_last.
"""

import math

import torch
from torch.nn import functional as F

CACHED_ELEMENTS = 2**18  # handled at a time on a CPU: a megabyte of float32, which its second-level cache holds


def statistics_type(x):
    """The type that statistics of x are computed in: float32 for half-precision input."""
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def wide(x):
    """x in the type of its statistics."""
    return x.to(statistics_type(x))


def _cached_samples(x):
    """How many samples of x (N, ...) are handled at a time: on the CPU as many as its cache holds, else all."""
    if x.device.type != "cpu":
        return max(1, len(x))
    return max(1, CACHED_ELEMENTS // max(1, math.prod(x.shape[1:])))


def position_moments(x):
    """The variance and the mean over the positions of x (N, positions, C), (N, C) each, in statistics_type(x).

    On the CPU a few samples at a time, so that the second and third look find them in the cache.
    """
    parts = []
    for part in x.split(_cached_samples(x)):
        part = wide(part)
        mean = part.mean(1)
        squares = F.mse_loss(part, mean[:, None].expand_as(part), reduction="none")
        parts.append((squares.mean(1), mean))
    return parts[0] if len(parts) == 1 else tuple(torch.cat(moments) for moments in zip(*parts, strict=True))


class _MapMoments(torch.autograd.Function):
    """See map_moments.

    torch.var_mean gives the same, thirty times as slowly where maps are small and memory is channels_last.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x):
        return position_moments(x.permute(0, 2, 3, 1).flatten(1, 2))

    @staticmethod
    def setup_context(ctx, inputs, output):
        saved = (*inputs, output[1])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx, variance_gradient, mean_gradient):
        x, mean = ctx.saved_tensors
        count = x.shape[2] * x.shape[3]
        slope = variance_gradient * (2 / count)
        shift = mean_gradient / count - slope * mean
        return torch.addcmul(_spread(shift, x), x, _spread(slope, x))

    @staticmethod
    def jvp(ctx, tangent):
        x, mean = ctx.saved_tensors
        centred = x - mean[..., None, None]
        return 2 * (centred * tangent).mean((2, 3)), tangent.mean((2, 3), dtype=mean.dtype)


class _ScaleShift(torch.autograd.Function):
    """See scale_shift."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x, scale, shift):
        return torch.addcmul(_spread(shift, x), x, _spread(scale, x))

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, scale, shift = inputs
        ctx.has_one = tuple(coefficient.shape[0] == 1 for coefficient in (scale, shift))
        ctx.save_for_backward(x, scale)
        ctx.save_for_forward(x, scale)

    @staticmethod
    def backward(ctx, gradient):
        x, scale = ctx.saved_tensors
        dtype = scale.dtype
        if x.device.type != "cpu" or torch.is_grad_enabled():  # the latter: to be differentiated again
            sums = (gradient * x).sum((2, 3), dtype=dtype), gradient.sum((2, 3), dtype=dtype)
            x_gradient = gradient * _spread(scale, x)
        else:
            rows, g = (tensor.permute(0, 2, 3, 1).flatten(1, 2) for tensor in (x, gradient))
            x_gradient = torch.empty_like(g)
            samples = _cached_samples(rows)
            each = scale.to(x.dtype).expand(len(x), -1)[:, None]
            parts = []
            for to, g_part, x_part, scale_part in zip(
                *(tensor.split(samples) for tensor in (x_gradient, g, rows, each)), strict=True
            ):
                to.copy_(g_part * scale_part)
                parts.append(((g_part * x_part).sum(1, dtype=dtype), g_part.sum(1, dtype=dtype)))
            sums = tuple(torch.cat(sums) for sums in zip(*parts, strict=True))
            x_gradient = x_gradient.unflatten(1, x.shape[2:]).permute(0, 3, 1, 2)
        return x_gradient, *(
            sums.sum(0, keepdim=True) if has_one else sums for sums, has_one in zip(sums, ctx.has_one, strict=True)
        )

    @staticmethod
    def jvp(ctx, x_tangent, scale_tangent, shift_tangent):
        x, scale = ctx.saved_tensors
        total = 0
        if x_tangent is not None:
            total = total + x_tangent * _spread(scale, x)
        if scale_tangent is not None:
            total = total + x * _spread(scale_tangent, x)
        if shift_tangent is not None:
            total = total + _spread(shift_tangent, x).expand_as(x)
        return total


def _spread(coefficients, x):
    """(N, C) or (1, C) shaped to broadcast over x (N, C, H, W), in its type."""
    return coefficients[..., None, None].to(x.dtype)


def map_moments(x):
    """The population variance and the mean over H,W of each sample and channel of x (N, C, H, W): (N, C) each.

    In float32 for half-precision x.
    """
    return _MapMoments.apply(x)


def scale_shift(x, scale, shift):
    """x · scale + shift, in the type of x; scale and shift are (N, C) or (1, C), in any type.

    torch.addcmul gives the same; its backward pass walks over the maps nine times, this one three times.
    """
    return _ScaleShift.apply(x, scale, shift)

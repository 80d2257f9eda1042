"""The arithmetic of norms: moments of feature maps, and x · scale + shift.

x is (N, C, H, W), preferably in channels_last. All functions can be differentiated twice, in forward and reverse mode.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F

from normstudy.kernels.switch import form_of


def statistics_dtype(x: torch.Tensor) -> torch.dtype:
    """Return the dtype in which statistics of x are computed: float32 for half-precision input."""
    return torch.float32 if x.dtype in (torch.bfloat16, torch.float16) else x.dtype


def to_statistics_dtype(x: torch.Tensor) -> torch.Tensor:
    """Convert x to the dtype of its statistics."""
    return x.to(statistics_dtype(x))


def map_moments(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (x, variance, mean): population moments over H,W of each sample and channel of x (N, C, H, W), (N, C).

    They are float32 for half-precision x. The returned x has the same values. Use it in place of your own: its gradient
    is then added to that of the moments in the same pass.
    """
    if form_of(x, "map_moments") == "plain":
        return x, *torch.var_mean(to_statistics_dtype(x), (2, 3), correction=0)
    return _MapMoments.apply(x, form_of(x, "map_moments") == "cpu")


def scale_shift(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
    """Return x · scale + shift in the dtype of x; scale and shift are (N, C) or (1, C), in any dtype."""
    return _ScaleShift.apply(x, scale, shift)


def ratio(x: torch.Tensor, divisor: torch.Tensor) -> torch.Tensor:
    """Return x / divisor; both are (N, C, H, W)."""
    return _Ratio.apply(x, divisor)


def in_dtype_of(x: torch.Tensor, function: Callable[..., torch.Tensor], *args: Any) -> torch.Tensor:
    """Return function(x, *args) in the dtype of x, which tensors in args are converted to.

    Autocast on CUDA would compute it in float32 and return float32.
    """
    if x.dtype != torch.bfloat16:
        return function(x, *args)
    args = tuple(each.to(x.dtype) if isinstance(each, torch.Tensor) else each for each in args)
    with torch.autocast(x.device.type, enabled=False):
        return function(x, *args)


def pooled_variance(variances: torch.Tensor, means: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the variance of equally large parts taken together (law of total variance); `dim` indexes the parts."""
    return (variances + (means - means.mean(dim, keepdim=True)).square()).mean(dim)


def group_moments(x: torch.Tensor, num_groups: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return map_moments, with the moments of each group of channels, repeated per channel: (N, C) each."""
    x, variances, means = map_moments(x)
    if num_groups == x.shape[1]:
        return x, variances, means
    variances, means = (moment.view(len(x), num_groups, -1) for moment in (variances, means))
    each = x.shape[1] // num_groups
    pooled = pooled_variance(variances, means, dim=2), means.mean(2)
    return x, pooled[0].repeat_interleave(each, dim=1), pooled[1].repeat_interleave(each, dim=1)


def _broadcast(coefficients: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    """Reshape (N, C) or (1, C) to broadcast over x (N, C, H, W), in the dtype of x."""
    return coefficients[..., None, None].to(x.dtype)


class _MapMoments(torch.autograd.Function):
    """map_moments with short derivatives.

    On the CPU, torch.var_mean takes thirty times as long on small maps in channels_last. On other devices, it would
    need a copy of x in the dtype of the statistics.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, is_cpu: bool) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if not is_cpu:
            if x.dtype == statistics_dtype(x):
                return x.view_as(x), *torch.var_mean(x, (2, 3), correction=0)
            mean = x.mean((2, 3), dtype=statistics_dtype(x))
            return x.view_as(x), torch.var(x, (2, 3), correction=0, out=torch.empty_like(mean)), mean
        positions = to_statistics_dtype(x).permute(0, 2, 3, 1).flatten(1, 2)
        mean = positions.mean(1)
        squares = F.mse_loss(positions, mean[:, None].expand_as(positions), reduction="none")
        return x.view_as(x), squares.mean(1), mean

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        saved = (inputs[0], output[2])
        ctx.save_for_backward(*saved)
        ctx.save_for_forward(*saved)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, None]:
        through, variance_gradient, mean_gradient = gradients
        x, mean = ctx.saved_tensors
        count = x.shape[2] * x.shape[3]
        slope = variance_gradient * (2 / count)
        shift = mean_gradient / count - slope * mean
        return torch.addcmul(through, x, _broadcast(slope, x)) + _broadcast(shift, x), None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, _: None) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        x, mean = ctx.saved_tensors
        centred = x - mean[..., None, None]
        of_variance = 2 * (centred * tangent).mean((2, 3))
        return tangent.view_as(tangent), of_variance, tangent.mean((2, 3), dtype=mean.dtype)


class _ScaleShift(torch.autograd.Function):
    """x · scale + shift, with fewer passes over the maps in its derivative than that of torch.addcmul."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, scale: torch.Tensor, shift: torch.Tensor) -> torch.Tensor:
        return torch.addcmul(_broadcast(shift, x), x, _broadcast(scale, x))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, scale, shift = inputs
        ctx.save_for_backward(x, scale)
        ctx.save_for_forward(x, scale)
        ctx.shift = shift.shape, shift.dtype

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        [gradient] = gradients
        x, scale = ctx.saved_tensors
        needs_x, needs_scale, needs_shift = ctx.needs_input_grad
        return (
            gradient * _broadcast(scale, gradient) if needs_x else None,
            _sum_like(gradient * x, scale.shape, scale.dtype) if needs_scale else None,
            _sum_like(gradient, *ctx.shift) if needs_shift else None,
        )

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:
        of_x, of_scale, of_shift = tangents
        x, scale = ctx.saved_tensors
        through_x = torch.addcmul(_broadcast(of_shift, x), of_x, _broadcast(scale, x))
        return torch.addcmul(through_x, x, _broadcast(of_scale, x))


class _Ratio(torch.autograd.Function):
    """x / y, with two passes over the maps in its derivative instead of four."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return x / y

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.save_for_backward(inputs[1], output)
        ctx.save_for_forward(inputs[1], output)

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        y, quotient = ctx.saved_tensors
        of_x = gradients[0] / y
        return of_x, torch.addcmul(quotient.new_zeros(()), of_x, quotient, value=-1)

    @staticmethod
    def jvp(ctx: Any, *tangents: torch.Tensor) -> torch.Tensor:
        y, quotient = ctx.saved_tensors
        return torch.addcmul(tangents[0], tangents[1], quotient, value=-1) / y


def _sum_like(maps: torch.Tensor, shape: torch.Size, dtype: torch.dtype) -> torch.Tensor:
    """Return the sum of maps (N, C, H, W) over H,W, and over N if `shape` is (1, C)."""
    sums = maps.sum((2, 3)).to(dtype)
    return sums if shape[0] == len(maps) else sums.sum(0, keepdim=True)

"""A 3×3 convolution of a small map as one matrix product: the CPU's form in bfloat16.

oneDNN runs layers with many channels on small maps far below the speed of its matrix products. In float32 the gain
depends on the processor, so this form is never used there (benchmarks/README.md).
"""

import math
from typing import Any

import torch
from torch.nn import functional as F

# The convolution of a 2×2 map becomes a dense layer if the batch is large enough to pay for building its matrix.
DENSE_SIDE = 2
DENSE_BATCH = 128
SMALL_MAP = 16  # maximum number of output positions for which the product is faster
SMALL_CHANNELS = 64  # minimum number of input and of output channels for which it is faster


def is_small(x: torch.Tensor, weight: torch.Tensor, stride: tuple[int, ...], padding: tuple[int, ...]) -> bool:
    """Return whether small_convolution can compute this convolution and is faster."""
    if weight.shape[2:] != (3, 3) or padding != (1, 1) or stride[0] != stride[1]:
        return False
    positions = math.prod((side - 1) // stride[0] + 1 for side in x.shape[2:])
    return positions <= SMALL_MAP and min(weight.shape[:2]) >= SMALL_CHANNELS


def small_convolution(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None, stride: int) -> torch.Tensor:
    """Convolve x (N, in, H, W) with weight (out, in, 3, 3) and padding 1 in one matrix product.

    The output is in channels_last.
    """
    samples, out_channels, (height, width) = len(x), len(weight), x.shape[2:]
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    if max(height, width) <= DENSE_SIDE and samples >= DENSE_BATCH:
        # Every window covers the whole map, so one of the nine taps connects every output to every input.
        taps = [row.unbind() for row in weight.permute(2, 3, 0, 1).unbind()]
        blocks = [
            torch.cat([taps[h - stride * i + 1][w - stride * j + 1] for h in range(height) for w in range(width)], 1)
            for i in range(rows)
            for j in range(columns)
        ]
        y = x.permute(0, 2, 3, 1).reshape(samples, -1) @ torch.cat(blocks).T
        y = y if bias is None else y.view(samples, -1, out_channels) + bias
    else:
        windows = _Windows.apply(x.permute(0, 2, 3, 1), stride)
        y = F.linear(windows.flatten(0, 2).flatten(1), weight.permute(0, 2, 3, 1).flatten(1), bias)
    return y.view(samples, rows, columns, out_channels).permute(0, 3, 1, 2)


class _Windows(torch.autograd.Function):
    """Gather every 3×3 window, (N, H, W, C) to (N, H', W', 3, 3, C), with zeros beyond the border.

    It is linear, so its derivatives are itself and its adjoint. tensor.unfold also has a derivative, which takes
    several times as long.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x: torch.Tensor, stride: int) -> torch.Tensor:
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        return padded.unfold(1, 3, stride).unfold(2, 3, stride).permute(0, 1, 2, 4, 5, 3).contiguous()

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        x, ctx.stride = inputs
        ctx.height, ctx.width = x.shape[1:3]

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        [gradient] = gradients
        return _WindowSums.apply(gradient, ctx.height, ctx.width, ctx.stride), None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, _: None) -> torch.Tensor:
        return _Windows.apply(tangent, ctx.stride)


class _WindowSums(torch.autograd.Function):
    """The adjoint of _Windows, from (N, H', W', 3, 3, C) to (N, H, W, C) of given height and width."""

    generate_vmap_rule = True

    @staticmethod
    def forward(windows: torch.Tensor, height: int, width: int, stride: int) -> torch.Tensor:
        x = windows.new_zeros(len(windows), height, width, windows.shape[-1])
        for i in range(3):
            for j in range(3):
                (to_rows, rows), (to_columns, columns) = (
                    _inside(tap, side, count, stride)
                    for tap, side, count in zip((i, j), (height, width), windows.shape[1:3], strict=True)
                )
                x[:, to_rows, to_columns] += windows[:, rows, columns, i, j]
        return x

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _, ctx.height, ctx.width, ctx.stride = inputs

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        [gradient] = gradients
        return _Windows.apply(gradient, ctx.stride), None, None, None

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor, *_: None) -> torch.Tensor:
        return _WindowSums.apply(tangent, ctx.height, ctx.width, ctx.stride)


def _inside(tap: int, side: int, count: int, stride: int) -> tuple[slice, slice]:
    """Return (slice of positions, slice of windows) for tap 0, 1 or 2 of `count` windows on a map of length `side`.

    They leave out the windows whose tap falls outside the map.
    """
    first = 1 if tap == 0 else 0
    last = min(count, (side - tap) // stride + 1)
    start = first * stride + tap - 1
    return slice(start, start + (last - first - 1) * stride + 1, stride), slice(first, last)

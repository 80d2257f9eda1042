"""Convolutions and linear layers, plain and with transformed weights, and a quicker form for small maps on the CPU.

weight is (out, in, height, width), or (out, in) of a linear layer; gain (out,).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

RELU_GAIN = math.sqrt(2 * math.pi / (math.pi - 1))  # 1 / standard deviation of ReLU(z), z standard normal

# A map of so few positions is quicker as one matrix product, and one of 2×2 as a dense layer where the batch is large
# enough to pay for writing the layer's matrix out (benchmarks/README.md).
SMALL_MAP = 16
SMALL_CHANNELS = 64
DENSE_SIDE = 2
DENSE_BATCH = 128


def _is_small(x, weight, stride, padding):
    """Whether a convolution is one that `_product` takes, and gains by it."""
    if x.device.type != "cpu" or weight.shape[2:] != (3, 3) or padding != (1, 1) or stride[0] != stride[1]:
        return False
    positions = math.prod((side - 1) // stride[0] + 1 for side in x.shape[2:])
    return positions <= SMALL_MAP and min(weight.shape[:2]) >= SMALL_CHANNELS


def convolve(x, weight, bias=None, stride=(1, 1), padding=(0, 0)):
    """The convolution of x (N, in, H, W) with weight (out, in, h, w): (N, out, H', W')."""
    if not _is_small(x, weight, stride, padding):
        return F.conv2d(x, weight, bias, stride, padding)
    if torch.is_autocast_enabled("cpu"):
        dtype = torch.get_autocast_dtype("cpu")
        x, weight, bias = x.to(dtype), weight.to(dtype), None if bias is None else bias.to(dtype)
    return _product(x, weight, bias, stride[0])


def _product(x, weight, bias, stride):
    """A 3×3 convolution with padding 1 as one matrix product, laid out as channels_last."""
    samples, out_channels, (height, width) = len(x), len(weight), x.shape[2:]
    rows, columns = (height - 1) // stride + 1, (width - 1) // stride + 1
    if max(height, width) <= DENSE_SIDE and samples >= DENSE_BATCH:
        # No window leaves a map of two by two: every output is joined to every input, by one of the nine taps.
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
    """(N, H, W, C) to (N, H', W', 3, 3, C): what each 3×3 window sees, zeros beyond the border.

    Linear, so that its derivatives are itself and its adjoint. tensor.unfold has a derivative too, several times as
    slow.
    """

    generate_vmap_rule = True

    @staticmethod
    def forward(x, stride):
        padded = F.pad(x, (0, 0, 1, 1, 1, 1))
        return padded.unfold(1, 3, stride).unfold(2, 3, stride).permute(0, 1, 2, 4, 5, 3).contiguous()

    @staticmethod
    def setup_context(ctx, inputs, output):
        x, ctx.stride = inputs
        ctx.height, ctx.width = x.shape[1:3]

    @staticmethod
    def backward(ctx, gradient):
        return _WindowSums.apply(gradient, ctx.height, ctx.width, ctx.stride), None

    @staticmethod
    def jvp(ctx, tangent, _):
        return _Windows.apply(tangent, ctx.stride)


class _WindowSums(torch.autograd.Function):
    """The adjoint of _Windows: (N, H', W', 3, 3, C) to (N, H, W, C) of given height and width."""

    generate_vmap_rule = True

    @staticmethod
    def forward(windows, height, width, stride):
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
    def setup_context(ctx, inputs, output):
        _, ctx.height, ctx.width, ctx.stride = inputs

    @staticmethod
    def backward(ctx, gradient):
        return _Windows.apply(gradient, ctx.stride), None, None, None

    @staticmethod
    def jvp(ctx, tangent, *_):
        return _WindowSums.apply(tangent, ctx.height, ctx.width, ctx.stride)


def _inside(tap, side, count, stride):
    """(slice of positions, slice of windows): where tap 0, 1 or 2 of `count` windows falls on a map of `side`."""
    first = 1 if tap == 0 else 0
    last = min(count, (side - tap) // stride + 1)
    start = first * stride + tap - 1
    return slice(start, start + (last - first - 1) * stride + 1, stride), slice(first, last)


def _rows(weight):
    """One row for each output channel, (out, fan_in), in the order that channels_last has in memory."""
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.dim() == 4 else weight


def _like(rows, weight):
    """_rows undone."""
    if weight.dim() != 4:
        return rows
    out_channels, in_channels, height, width = weight.shape
    return rows.view(out_channels, height, width, in_channels).permute(0, 3, 1, 2)


def normalized_weight(weight, gain):
    """g · w/‖w‖ per output channel (Salimans & Kingma 2016)."""
    return _like(F.normalize(_rows(weight), dim=1) * gain[:, None], weight)


def standardized_weight(weight, gain):
    """√(2π/(π−1)) · g · (w−μ_w)/(σ_w · √fan_in) per output channel (Brock 2021).

    A channel of a single weight becomes 0.
    """
    rows = _rows(weight)
    centred = rows - rows.mean(1, keepdim=True)
    # ‖w − μ_w‖ is σ_w · √fan_in.
    return _like(F.normalize(centred, dim=1) * (RELU_GAIN * gain)[:, None], weight)


def centred_weight(weight, gain=None):
    """w − mean(w) per output channel."""
    rows = _rows(weight)
    return _like(rows - rows.mean(1, keepdim=True), weight)


class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d, with small maps as a matrix product where that is quicker."""

    def _conv_forward(self, x, weight, bias):
        is_plain = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        if not is_plain or isinstance(self.padding, str) or x.dim() != 4:
            return super()._conv_forward(x, weight, bias)
        return convolve(x, weight, bias, self.stride, self.padding)

    def effective_weight(self):
        """The weight that it computes with."""
        return self.weight


class TransformedConv2d(Conv2d):
    """A convolution that computes with `transform(weight, gain)`; gain (out,) from 1 where the transform has one."""

    def __init__(self, *args, transform, has_gain, **kwargs):
        super().__init__(*args, **kwargs)
        self.transform = transform
        self.register_parameter("gain", nn.Parameter(torch.ones(self.out_channels)) if has_gain else None)

    def forward(self, x):
        return self._conv_forward(x, self.effective_weight(), self.bias)

    def effective_weight(self):
        return self.transform(self.weight, self.gain)


class FoldedConv2d(nn.Module):
    """A convolution and the norm after it as one convolution, for a norm that is affine in eval mode.

    The same function of the same parameters, without the passes over the feature map that the norm would take.
    """

    def __init__(self, conv, norm):
        super().__init__()
        self.conv = conv
        self.norm = norm

    def forward(self, x):
        conv = self.conv
        scale, bias = self.norm.eval_affine()
        if conv.bias is not None:
            bias = bias + scale * conv.bias
        return convolve(x, conv.effective_weight() * scale.view(-1, 1, 1, 1), bias, conv.stride, conv.padding)


class TransformedLinear(nn.Linear):
    """A linear layer that computes with `transform(weight, gain)`, as TransformedConv2d does."""

    def __init__(self, *args, transform, has_gain, **kwargs):
        super().__init__(*args, **kwargs)
        self.transform = transform
        self.register_parameter("gain", nn.Parameter(torch.ones(self.out_features)) if has_gain else None)

    def forward(self, x):
        return F.linear(x, self.transform(self.weight, self.gain), self.bias)


@dataclass(frozen=True)
class WeightTransform:
    """What a conv_type does to a weight (None: nothing), and whether it has a learned gain."""

    transform: Callable | None = None
    has_gain: bool = False


CONVS = {
    "Plain": WeightTransform(),
    "sWS": WeightTransform(standardized_weight, has_gain=True),
    "WeightNormalized": WeightTransform(normalized_weight, has_gain=True),
    "WeightCentered": WeightTransform(centred_weight),
}


def build_conv(conv_type, in_channels, out_channels, kernel_size=3, stride=1, padding=1, bias=False):
    """A convolution whose weight is transformed as conv_type says. Raises KeyError for an unknown conv_type."""
    spec = CONVS[conv_type]
    shape = (in_channels, out_channels, kernel_size, stride, padding)
    if spec.transform is None:
        return Conv2d(*shape, bias=bias)
    return TransformedConv2d(*shape, bias=bias, transform=spec.transform, has_gain=spec.has_gain)


def build_linear(conv_type, in_features, out_features):
    """A linear layer with bias whose weight is transformed as conv_type says. Raises KeyError likewise."""
    spec = CONVS[conv_type]
    if spec.transform is None:
        return nn.Linear(in_features, out_features)
    return TransformedLinear(in_features, out_features, transform=spec.transform, has_gain=spec.has_gain)

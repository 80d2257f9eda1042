"""Convolutions and linear layers, plain and with transformed weights.

weight is (out, in, height, width), or (out, in) for a linear layer; gain is (out,).
"""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from normstudy.kernels.declarations import with_differentiable_jvp
from normstudy.kernels.small_convolution import is_small, small_convolution
from normstudy.kernels.switch import form_of

RELU_GAIN = math.sqrt(2 * math.pi / (math.pi - 1))  # 1 / standard deviation of ReLU(z), z standard normal
Transform = Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor]


def convolve(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None = None,
    stride: tuple[int, ...] = (1, 1),
    padding: tuple[int, ...] = (0, 0),
) -> torch.Tensor:
    """Convolve x (N, in, H, W) with weight (out, in, h, w): (N, out, H', W')."""
    if form_of(x, "convolution") == "cpu":
        dtype = torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else x.dtype
        if dtype == torch.bfloat16 and is_small(x, weight, stride, padding):
            bias = None if bias is None else bias.to(dtype)
            return small_convolution(x.to(dtype), weight.to(dtype), bias, stride[0])
    return F.conv2d(x, weight, bias, stride, padding)


def _rows(weight: torch.Tensor) -> torch.Tensor:
    """Return one row per output channel, (out, fan_in), in the memory order of channels_last."""
    return weight.permute(0, 2, 3, 1).flatten(1) if weight.dim() == 4 else weight


def _like(rows: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Reshape rows back to the shape of weight; the inverse of `_rows`."""
    if weight.dim() != 4:
        return rows
    out_channels, in_channels, height, width = weight.shape
    return rows.view(out_channels, height, width, in_channels).permute(0, 3, 1, 2)


def normalized_weight(weight: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    """Return g · w/‖w‖ per output channel (Salimans & Kingma 2016)."""
    rows = F.normalize(_rows(weight), dim=1)
    return _like(rows if gain is None else rows * gain[:, None], weight)


def standardized_weight(weight: torch.Tensor, gain: torch.Tensor | None) -> torch.Tensor:
    """Return √(2π/(π−1)) · g · (w−μ_w)/(σ_w · √fan_in) per output channel (Brock 2021).

    A channel with a single weight becomes 0.
    """
    rows = _rows(weight)
    centred = rows - rows.mean(1, keepdim=True)
    scale = RELU_GAIN if gain is None else (RELU_GAIN * gain)[:, None]
    return _like(F.normalize(centred, dim=1) * scale, weight)  # ‖w − μ_w‖ is σ_w · √fan_in


def centred_weight(weight: torch.Tensor, gain: torch.Tensor | None = None) -> torch.Tensor:
    """Return w − mean(w) per output channel."""
    rows = _rows(weight)
    return _like(rows - rows.mean(1, keepdim=True), weight)


@with_differentiable_jvp
class Conv2d(nn.Conv2d):
    """torch.nn.Conv2d, computed by `convolve`."""

    def _conv_forward(self, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        is_plain = self.groups == 1 and self.dilation == (1, 1) and self.padding_mode == "zeros"
        if not is_plain or isinstance(self.padding, str) or x.dim() != 4:
            return super()._conv_forward(x, weight, bias)
        return convolve(x, weight, bias, self.stride, self.padding)

    def effective_weight(self) -> torch.Tensor:
        """Return the weight that the layer computes with."""
        return self.weight


@with_differentiable_jvp
class TransformedConv2d(Conv2d):
    """A convolution with weight `transform(weight, gain)`. The gain (out,), if has_gain, starts at 1."""

    def __init__(self, *args: Any, transform: Transform, has_gain: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.transform = transform
        self.gain: nn.Parameter | None
        self.register_parameter("gain", nn.Parameter(torch.ones(self.out_channels)) if has_gain else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.effective_weight(), self.bias)

    def effective_weight(self) -> torch.Tensor:
        return self.transform(self.weight, self.gain)


@with_differentiable_jvp
class FoldedConv2d(nn.Module):
    """A convolution and the norm after it as one convolution, for a norm that is affine in eval mode.

    It is the same function of the same parameters, without the norm's passes over the feature map. affine() returns the
    norm's (scale, shift), (out,) each.
    """

    def __init__(self, conv: Conv2d, norm: nn.Module, affine: Callable[[], tuple[torch.Tensor, torch.Tensor]]) -> None:
        super().__init__()
        self.conv = conv
        self.norm = norm
        self.affine = affine

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        scale, bias = self.affine()
        if self.conv.bias is not None:
            bias = bias + scale * self.conv.bias
        return self.conv._conv_forward(x, self.conv.effective_weight() * scale.view(-1, 1, 1, 1), bias)


@with_differentiable_jvp
class TransformedLinear(nn.Linear):
    """A linear layer with weight `transform(weight, gain)`, as in TransformedConv2d."""

    def __init__(self, *args: Any, transform: Transform, has_gain: bool, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.transform = transform
        self.gain: nn.Parameter | None
        self.register_parameter("gain", nn.Parameter(torch.ones(self.out_features)) if has_gain else None)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.linear(x, self.transform(self.weight, self.gain), self.bias)

"""Normalization layers and their activations, and the registry of what each norm_type puts into a network.

Notation: x is (N, C, H, W); γ (`weight`), β (`bias`) and v are per channel; μ and σ² are means and population
variances; ε = 1e-5 unless a class says otherwise. Statistics are computed in float32 or better, running
statistics never touch the autograd graph, and every layer differentiates twice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

import config
from convolutions import CONVS as CONVS
from convolutions import RELU_GAIN
from convolutions import build_conv as build_conv
from convolutions import build_linear as build_linear
from moments import map_moments, scale_shift, wide

EPS = 1e-5
RUNNING_UPDATE = 0.1  # new = 0.9 · old + 0.1 · batch
RELU_MEAN = 1 / math.sqrt(2 * math.pi)  # mean of ReLU(z)


def _maps(per_channel):
    """(C,) shaped to broadcast over (N, C, H, W)."""
    return per_channel.view(1, -1, 1, 1)


def _pooled_variance(variances, means, dim):
    """The variance of equally large parts taken together (law of total variance), over `dim` of the parts."""
    return (variances + (means - means.mean(dim, keepdim=True)).square()).mean(dim)


def _group_moments(x, num_groups):
    """The variance and the mean of each group of channels and sample, repeated for its channels: (N, C) each."""
    if num_groups == x.shape[1]:
        return map_moments(x)
    variances, means = (moment.view(len(x), num_groups, -1) for moment in map_moments(x))
    each = x.shape[1] // num_groups
    pooled = _pooled_variance(variances, means, dim=2), means.mean(2)
    return tuple(moment.repeat_interleave(each, dim=1) for moment in pooled)


def _check_groups(layer, num_channels, num_groups):
    """num_groups, or ValueError naming layer, width and groups where they do not divide the width."""
    if num_groups < 1 or num_channels % num_groups:
        raise ValueError(f"{layer} has {num_channels} channels, which {num_groups} groups do not divide")
    return num_groups


class _Norm(nn.Module):
    """Base: γ from 1, β from 0 unless `bias=False`."""

    def __init__(self, num_channels, bias=True):
        super().__init__()
        self.num_channels = num_channels
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_channels)) if bias else None)

    def extra_repr(self):
        return f"{self.num_channels}"

    def affine(self, x, scale=None):
        """γ · scale · x + β, with γ · scale folded together before it meets x. scale: (N, C) or (1, C)."""
        weight = self.weight[None]
        shift = torch.zeros_like(weight) if self.bias is None else self.bias[None]
        return scale_shift(x, weight if scale is None else weight * scale, shift)


class _RunningNorm(_Norm):
    """A norm with running batch statistics: new = 0.9 · old + 0.1 · batch.

    `running` are their names, which begin with `running_`, and what they start from: running_mean=0.0, running_var=1.0.
    By these names measurements with batch statistics know such a layer. `across`, where several processes share a batch
    and its statistics are to be those of all of it, gives the mean over samples of what is the mean over this
    process's: see synchronize.
    """

    across = None

    def __init__(self, num_channels, **running):
        super().__init__(num_channels)
        for name, start in running.items():
            self.register_buffer(name, torch.full((num_channels,), start))

    @torch.no_grad()
    def update(self, **statistics):
        """Takes a batch's statistics {name: (C,)} into the running ones, off the graph."""
        for name, statistic in statistics.items():
            getattr(self, name).lerp_(statistic.detach(), RUNNING_UPDATE)

    def over_processes(self, mean):
        """What is a mean over this process's samples as that over all samples of the batch (with --sync_bn)."""
        return mean if self.across is None else self.across(mean)

    def batch_moments(self, variances, means):
        """The batch's variance and mean, (C,) each, from those of samples and channels (N, C)."""
        variance, mean = _pooled_variance(variances, means, dim=0), means.mean(0)
        if self.across is None:
            return variance, mean
        whole = self.across(mean)
        return self.across(variance + (mean - whole).square()), whole

    def eval_affine(self):
        """(scale, shift), (C,) each: what the norm is in eval mode, scale · x + shift. None where it is more."""
        return None


class BatchNorm(_RunningNorm):
    """γ(x−μ)/√(σ²+ε)+β over N,H,W (Ioffe & Szegedy 2015, algorithm 1).

    The running variance averages population variances, as the layer uses them; torch.nn.BatchNorm2d's
    averages sample variances, n/(n−1) as large. `elementary` computes a batch's moments and the map step by
    step: the kernel's forward-mode derivative takes the moments for constants when it is differentiated again.
    """

    elementary = False

    def __init__(self, num_channels):
        super().__init__(num_channels, running_mean=0.0, running_var=1.0)

    def forward(self, x):
        if self.training and self.elementary:
            variance, mean = torch.var_mean(x, dim=(0, 2, 3), correction=0)
            self.update(running_mean=mean, running_var=variance)
            scale = self.weight * torch.rsqrt(variance + EPS)
            return torch.addcmul(_maps(self.bias - scale * mean), x, _maps(scale))
        if self.training and self.across is not None:
            variance, mean = self.batch_moments(*map_moments(x))
            self.update(running_mean=mean, running_var=variance)
            scale = self.weight * torch.rsqrt(variance + EPS)
            return scale_shift(x, scale[None], (self.bias - scale * mean)[None])
        cudnn = torch.backends.cudnn.enabled
        if not self.training:
            running = (self.running_mean, self.running_var)
            return torch.batch_norm(x, self.weight, self.bias, *running, False, 0.0, EPS, cudnn)
        batch_mean, batch_variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        out = torch.batch_norm(x, self.weight, self.bias, batch_mean, batch_variance, True, 1.0, EPS, cudnn)
        count = x.numel() // x.shape[1]
        # The kernel hands back the sample variance, which a single value has none of.
        batch_variance = batch_variance * ((count - 1) / count) if count > 1 else torch.zeros_like(batch_variance)
        self.update(running_mean=batch_mean, running_var=batch_variance)
        return out

    def eval_affine(self):
        scale = self.weight * torch.rsqrt(self.running_var + EPS)
        return scale, self.bias - scale * self.running_mean


class VarianceNorm(_RunningNorm):
    """γx/√(σ²+ε)+β with σ² over N,H,W: BatchNorm without centering (Daneshmand 2020)."""

    def __init__(self, num_channels):
        super().__init__(num_channels, running_var=1.0)

    def forward(self, x):
        variance = self.running_var
        if self.training:
            variance, _ = self.batch_moments(*map_moments(x))
            self.update(running_var=variance)
        return self.affine(x, torch.rsqrt(variance + EPS)[None])

    def eval_affine(self):
        return self.weight * torch.rsqrt(self.running_var + EPS), self.bias


class MeanCentering(_RunningNorm):
    """γ(x−μ)+β with μ over N,H,W: BatchNorm without scaling."""

    def __init__(self, num_channels):
        super().__init__(num_channels, running_mean=0.0)

    def forward(self, x):
        mean = self.running_mean
        if self.training:
            mean = self.over_processes(torch.mean(wide(x), dim=(0, 2, 3)))
            self.update(running_mean=mean)
        return scale_shift(x, self.weight[None], (self.bias - self.weight * mean)[None])

    def eval_affine(self):
        return self.weight, self.bias - self.weight * self.running_mean


class GroupNorm(_Norm):
    """γ(x−μ)/√(σ²+ε)+β over each group of channels and H,W of each sample (Wu & He 2018).

    One group is LayerNorm over C,H,W (Ba 2016), one group a channel InstanceNorm (Ulyanov 2017). `elementary` leaves
    PyTorch's kernel, whose forward-mode derivative fails in PyTorch 2.6 on maps in channels_last. Raises
    ValueError where the groups do not divide the channels.
    """

    elementary = False

    def __init__(self, num_channels, num_groups):
        super().__init__(num_channels)
        self.num_groups = _check_groups("GroupNorm", num_channels, num_groups)

    def extra_repr(self):
        return f"{self.num_channels}, num_groups={self.num_groups}"

    def forward(self, x):
        if not self.elementary and (x.device.type != "cpu" or self.num_groups == 1):
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, EPS)
        # On the CPU PyTorch's kernel takes up to three times as long, and in bfloat16 up to thirty times.
        variance, mean = _group_moments(x, self.num_groups)
        scale = self.weight * torch.rsqrt(variance + EPS)
        return scale_shift(x, scale, self.bias - scale * mean)


class RMSNorm(_Norm):
    """γx/√(mean(x²)+ε), the mean over C,H,W of each sample (Zhang & Sennrich 2019)."""

    def __init__(self, num_channels):
        super().__init__(num_channels, bias=False)

    def forward(self, x):
        variances, means = map_moments(x)
        return self.affine(x, torch.rsqrt((variances + means.square()).mean(1, keepdim=True) + EPS))


class FilterResponseNorm(_Norm):
    """γx/√(mean_{H,W}(x²)+1e-6+|ε_l|)+β, one ε_l a layer learned from 1e-5 (Singh & Krishnan 2019)."""

    MINIMUM = 1e-6

    def __init__(self, num_channels):
        super().__init__(num_channels)
        self.eps_l = nn.Parameter(torch.tensor(EPS))

    def forward(self, x):
        variance, mean = map_moments(x)
        inverse = torch.rsqrt(variance + mean.square() + self.MINIMUM + self.eps_l.abs())
        return self.affine(x, inverse)


class EvoNormSO(_Norm):
    """EvoNorm-S0: γ · x · sigmoid(vx)/√(σ²_group+ε)+β, v from 1; its own activation (Liu 2020, table 1)."""

    def __init__(self, num_channels, num_groups):
        super().__init__(num_channels)
        self.v = nn.Parameter(torch.ones(num_channels))
        self.num_groups = _check_groups("EvoNormSO", num_channels, num_groups)

    def forward(self, x):
        variance, _ = _group_moments(x, self.num_groups)
        return self.affine(x * torch.sigmoid(x * _maps(self.v).to(x.dtype)), torch.rsqrt(variance + EPS))


class EvoNormBO(_RunningNorm):
    """EvoNorm-B0: γx/max(√(σ²_{N,H,W}+ε), vx+√(σ²_{H,W}+ε))+β, v from 1; its own activation (Liu 2020, table 1).

    In eval mode the running variance stands for the batch's; each sample's own variance stays.
    """

    def __init__(self, num_channels):
        super().__init__(num_channels, running_var=1.0)
        self.v = nn.Parameter(torch.ones(num_channels))

    def forward(self, x):
        variances, means = map_moments(x)
        batch_variance = self.running_var
        if self.training:
            batch_variance, _ = self.batch_moments(variances, means)
            self.update(running_var=batch_variance)
        batch_deviation = torch.sqrt(batch_variance + EPS)
        excess = torch.sqrt(variances + EPS) - batch_deviation
        # max(a, b) is b + ReLU(a − b), of which the gradient needs no masks.
        beyond = F.relu(scale_shift(x, self.v[None], excess))
        return self.affine(x / (beyond + _maps(batch_deviation).to(x.dtype)))


class DynamicTanh(_Norm):
    """γ · tanh(αx)+β, one scalar α a layer from 0.5 (Zhu 2025)."""

    def __init__(self, num_channels):
        super().__init__(num_channels)
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, x):
        return self.affine(torch.tanh(self.alpha.to(x.dtype) * x))


class ThresholdedLinearUnit(nn.Module):
    """TLU: max(y, τ), τ per channel from 0 (Singh & Krishnan 2019)."""

    def __init__(self, num_channels):
        super().__init__()
        self.tau = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x):
        tau = _maps(self.tau).to(x.dtype)
        return F.relu(x - tau) + tau  # the gradient of torch.maximum goes through masks, at ten times the cost


class ScaledReLU(nn.Module):
    """√(2π/(π−1)) · (ReLU(x) − 1/√(2π)): mean 0 and variance 1 for standard normal x (Arpit 2016, section 3)."""

    def forward(self, x):
        return (F.relu(x) - RELU_MEAN) * RELU_GAIN


class TokenLayerNorm(nn.LayerNorm):
    """LayerNorm over C of each token (N, tokens, C); `elementary` as BatchNorm's, for the same reason."""

    elementary = False

    def forward(self, x):
        if not self.elementary:
            return super().forward(x)
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


class TokenRMSNorm(nn.RMSNorm):
    """RMSNorm over C of each token (N, tokens, C); `elementary` as BatchNorm's."""

    elementary = False

    def forward(self, x):
        if not self.elementary:
            return super().forward(x)
        return x * (torch.rsqrt(x.square().mean(-1, keepdim=True) + self.eps) * self.weight)


@dataclass(frozen=True)
class NormType:
    """What a norm_type puts into the three slots: its own convolution if it has one, the norm, the activation.

    norm(num_channels, num_groups) and activation(num_channels) build fresh modules.
    is_bounded: whether the norm keeps the size of what it gives in training independent of the size of x.
    token_norm(num_channels): for (N, tokens, C), where it is not `norm` on the tokens seen as (N, C, tokens, 1).
    """

    norm: Callable[[int, int], nn.Module]
    activation: Callable[[int], nn.Module] = lambda num_channels: nn.ReLU()
    conv_type: str | None = None
    activation_on_tokens: bool = False
    token_norm: Callable[[int], nn.Module] | None = None
    is_bounded: bool = True


def _identity(num_channels, num_groups=None):
    return nn.Identity()


def _of_channels(norm):
    """A norm that has no groups, as a builder of (num_channels, num_groups)."""
    return lambda num_channels, num_groups: norm(num_channels)


NORMS = {
    "Plain": NormType(_identity, is_bounded=False),
    "BatchNorm": NormType(_of_channels(BatchNorm)),
    "LayerNorm": NormType(
        lambda num_channels, num_groups: GroupNorm(num_channels, 1),
        token_norm=lambda num_channels: TokenLayerNorm(num_channels, eps=EPS),
    ),
    "InstanceNorm": NormType(lambda num_channels, num_groups: GroupNorm(num_channels, num_channels)),
    "GroupNorm": NormType(GroupNorm),
    "FilterResponseNorm": NormType(_of_channels(FilterResponseNorm), ThresholdedLinearUnit, activation_on_tokens=True),
    "WeightNorm": NormType(
        _identity, lambda num_channels: ScaledReLU(), conv_type=config.CONV_OF_NORM["WeightNorm"], is_bounded=False
    ),
    "ScaledWeightStandardization": NormType(
        _identity, conv_type=config.CONV_OF_NORM["ScaledWeightStandardization"], is_bounded=False
    ),
    "EvoNormSO": NormType(EvoNormSO, _identity),
    "EvoNormBO": NormType(_of_channels(EvoNormBO), _identity),
    "VarianceNorm": NormType(_of_channels(VarianceNorm)),
    "MeanCentering": NormType(_of_channels(MeanCentering), is_bounded=False),
    "RMSNorm": NormType(_of_channels(RMSNorm), token_norm=lambda num_channels: TokenRMSNorm(num_channels, eps=EPS)),
    "DynamicTanh": NormType(_of_channels(DynamicTanh)),
}


class TokenNorm(nn.Module):
    """A norm of (N, C, H, W) on tokens (N, tokens, C): the tokens of a sample are its positions, (N, C, tokens, 1)."""

    def __init__(self, norm):
        super().__init__()
        self.norm = norm

    def forward(self, x):
        return self.norm(x.transpose(1, 2).unsqueeze(3)).squeeze(3).transpose(1, 2)


def synchronize(model, mean_over_processes):
    """Has every norm with batch statistics take those of all processes' samples.

    mean_over_processes(tensor) gives, differentiably, the mean over samples of what is the mean over this process's.
    """
    for module in model.modules():
        if isinstance(module, _RunningNorm):
            module.across = mean_over_processes


def build_norm(norm_type, num_channels, num_groups=32):
    """A fresh (norm, activation) pair of modules for x (N, num_channels, H, W).

    num_groups is for GroupNorm and EvoNormSO. Raises KeyError for an unknown norm_type and ValueError where the
    groups do not divide the channels.
    """
    spec = NORMS[norm_type]
    return spec.norm(num_channels, num_groups), spec.activation(num_channels)


def build_token_norm(norm_type, num_channels, num_groups=32):
    """A fresh module for tokens (N, tokens, num_channels): the norm slot alone, FilterResponseNorm with its TLU."""
    spec = NORMS[norm_type]
    if spec.token_norm is not None:
        return spec.token_norm(num_channels)
    norm, activation = build_norm(norm_type, num_channels, num_groups)
    if isinstance(norm, nn.Identity):
        return norm
    return TokenNorm(nn.Sequential(norm, activation) if spec.activation_on_tokens else norm)


def conv_of(norm_type, conv_type="Plain"):
    """(conv_type, bias) of a network's convolutions: a weight-based norm brings its own, with bias.

    Raises ValueError where another is asked for.
    """
    own = NORMS[norm_type].conv_type
    if own is not None and conv_type != "Plain":
        raise ValueError(f"{norm_type} brings its own convolution, so conv_type {conv_type} cannot be combined with it")
    return own or conv_type, own is not None

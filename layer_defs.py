"""Normalization layers and their activations, and the registries that build them: NORMS and CONVS.

Notation: x is (N, C, H, W); γ (`weight`), β (`bias`) and v are per channel; μ and σ² are means and population
variances; ε = 1e-5 unless a class says otherwise. Statistics are computed in float32 or better, running statistics
never touch the autograd graph, and every layer can be differentiated twice.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional as F

from normstudy.kernels import (
    RELU_GAIN,
    Conv2d,
    ElementaryForm,
    FoldedConv2d,
    TransformedConv2d,
    TransformedLinear,
    centred_weight,
    form_of,
    group_moments,
    in_dtype_of,
    map_moments,
    normalized_weight,
    pooled_variance,
    ratio,
    scale_shift,
    standardized_weight,
    to_statistics_dtype,
    with_differentiable_jvp,
)

EPS = 1e-5
RUNNING_UPDATE = 0.1  # new = 0.9 · old + 0.1 · batch
RELU_MEAN = 1 / math.sqrt(2 * math.pi)  # mean of ReLU(z), z standard normal


def _maps(per_channel: torch.Tensor) -> torch.Tensor:
    """Reshape (C,) to broadcast over (N, C, H, W)."""
    return per_channel.view(1, -1, 1, 1)


def _check_groups(layer: str, num_channels: int, num_groups: int) -> int:
    """Return num_groups. Raises ValueError, naming layer, width and groups, if they do not divide the width."""
    if num_groups < 1 or num_channels % num_groups:
        raise ValueError(f"{layer} has {num_channels} channels, which cannot be divided into {num_groups} groups")
    return num_groups


class _Norm(nn.Module):
    """Base class: γ starts at 1 and β at 0; with `bias=False` there is no β."""

    def __init__(self, num_channels: int, bias: bool = True) -> None:
        super().__init__()
        self.num_channels = num_channels
        self.weight = nn.Parameter(torch.ones(num_channels))
        self.bias: nn.Parameter | None
        self.register_parameter("bias", nn.Parameter(torch.zeros(num_channels)) if bias else None)

    def extra_repr(self) -> str:
        return f"{self.num_channels}"

    def beta(self) -> torch.Tensor:
        """Return β (C,), or zeros if there is no β."""
        return torch.zeros_like(self.weight) if self.bias is None else self.bias

    def affine(self, x: torch.Tensor, scale: torch.Tensor | None = None) -> torch.Tensor:
        """Return γ · scale · x + β. γ and scale, (N, C), (N, 1) or (1, C), are multiplied first, then x."""
        weight = self.weight[None]
        return scale_shift(x, weight if scale is None else weight * scale, self.beta()[None])


class _RunningNorm(_Norm):
    """A norm with running batch statistics: new = 0.9 · old + 0.1 · batch.

    `running` maps their names, which begin with `running_`, to their start values: running_mean=0.0, running_var=1.0.
    run_hessian.py --bn_mode=train recognizes such a layer by these names. `across` is set with --sync_bn (see
    synchronize). It turns a mean over this process's samples into the mean over all samples of the batch.
    """

    across: Callable[[torch.Tensor], torch.Tensor] | None = None
    running_mean: torch.Tensor
    running_var: torch.Tensor

    def __init__(self, num_channels: int, **running: float) -> None:
        super().__init__(num_channels)
        for name, start in running.items():
            self.register_buffer(name, torch.full((num_channels,), start))

    @torch.no_grad()
    def update(self, **statistics: torch.Tensor) -> None:
        """Update the running statistics with those of a batch, {name: (C,)}, off the graph."""
        for name, statistic in statistics.items():
            getattr(self, name).lerp_(statistic.detach(), RUNNING_UPDATE)

    def over_processes(self, mean: torch.Tensor) -> torch.Tensor:
        """Turn a mean over this process's samples into that over all samples of the batch (with --sync_bn)."""
        return mean if self.across is None else self.across(mean)

    def batch_moments(self, variances: torch.Tensor, means: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the batch's variance and mean, (C,) each, from those of each sample and channel, (N, C)."""
        variance, mean = pooled_variance(variances, means, dim=0), means.mean(0)
        if self.across is None:
            return variance, mean
        whole = self.across(mean)
        return self.across(variance + (mean - whole).square()), whole

    def eval_affine(self) -> tuple[torch.Tensor, torch.Tensor] | None:
        """Return (scale, shift), (C,) each, if the norm is scale · x + shift in eval mode; else None."""
        return None

    def fold_into(self, conv: nn.Module) -> nn.Module | None:
        """Return one convolution that computes `conv` and this norm in eval mode; None if the norm is not affine."""
        affine = self.eval_affine
        if not isinstance(conv, Conv2d) or affine() is None:
            return None
        return FoldedConv2d(conv, self, affine)  # type: ignore[arg-type]  # affine() gave a pair


@with_differentiable_jvp
class BatchNorm(ElementaryForm, _RunningNorm):
    """γ(x−μ)/√(σ²+ε)+β over N,H,W (Ioffe & Szegedy 2015, algorithm 1).

    The running variance averages the population variances that the layer divides by. That of torch.nn.BatchNorm2d
    averages sample variances, which are n/(n−1) times as large. The JVP of PyTorch's kernel treats the moments as
    constants when it is differentiated again.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, running_mean=0.0, running_var=1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        is_plain = form_of(x, "batch_norm") == "plain"
        if self.training and (self.elementary or is_plain or self.across is not None):
            return self.normalize(x)
        if is_plain:
            return x * _maps(self.eval_affine()[0]).to(x.dtype) + _maps(self.eval_affine()[1]).to(x.dtype)
        cudnn = torch.backends.cudnn.enabled
        if not self.training:
            running = (self.running_mean, self.running_var)
            return torch.batch_norm(x, self.weight, self.bias, *running, False, 0.0, EPS, cudnn)
        mean, variance = torch.zeros_like(self.running_mean), torch.zeros_like(self.running_var)
        out = torch.batch_norm(x, self.weight, self.bias, mean, variance, True, 1.0, EPS, cudnn)
        count = x.numel() // x.shape[1]
        # The kernel returns the sample variance, which is undefined for a single value.
        variance = variance * ((count - 1) / count) if count > 1 else torch.zeros_like(variance)
        self.update(running_mean=mean, running_var=variance)
        return out

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """Compute the formula step by step in training mode."""
        if self.across is not None:
            x, *moments = map_moments(x)
            variance, mean = self.batch_moments(*moments)
        else:
            variance, mean = torch.var_mean(to_statistics_dtype(x), dim=(0, 2, 3), correction=0)
        self.update(running_mean=mean, running_var=variance)
        scale = self.weight * torch.rsqrt(variance + EPS)
        if self.across is not None:
            return scale_shift(x, scale[None], (self.beta() - scale * mean)[None])
        shift = _maps(self.beta() - scale * mean).to(x.dtype)
        return torch.addcmul(shift, x, _maps(scale).to(x.dtype))

    def eval_affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        scale = self.weight * torch.rsqrt(self.running_var + EPS)
        return scale, self.beta() - scale * self.running_mean


@with_differentiable_jvp
class VarianceNorm(_RunningNorm):
    """γx/√(σ²+ε)+β with σ² over N,H,W: BatchNorm without centering (Daneshmand 2020)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, running_var=1.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        variance = self.running_var
        if self.training:
            x, *moments = map_moments(x)
            variance, _ = self.batch_moments(*moments)
            self.update(running_var=variance)
        return self.affine(x, torch.rsqrt(variance + EPS)[None])

    def eval_affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.weight * torch.rsqrt(self.running_var + EPS), self.beta()


@with_differentiable_jvp
class MeanCentering(_RunningNorm):
    """γ(x−μ)+β with μ over N,H,W: BatchNorm without scaling."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, running_mean=0.0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = self.running_mean
        if self.training:
            mean = self.over_processes(torch.mean(to_statistics_dtype(x), dim=(0, 2, 3)))
            self.update(running_mean=mean)
        return scale_shift(x, self.weight[None], (self.beta() - self.weight * mean)[None])

    def eval_affine(self) -> tuple[torch.Tensor, torch.Tensor]:
        return self.weight, self.beta() - self.weight * self.running_mean


@with_differentiable_jvp
class GroupNorm(ElementaryForm, _Norm):
    """γ(x−μ)/√(σ²+ε)+β over each group of channels and H,W of each sample (Wu & He 2018).

    With one group, this is LayerNorm over C,H,W (Ba 2016); with one group per channel, InstanceNorm (Ulyanov 2017).
    In PyTorch 2.6, the JVP of PyTorch's kernel fails on maps in channels_last. Raises ValueError if the groups do not
    divide the channels. On CUDA, PyTorch's kernel changes maps in channels_last to another memory format.
    """

    def __init__(self, num_channels: int, num_groups: int) -> None:
        super().__init__(num_channels)
        self.num_groups = _check_groups("GroupNorm", num_channels, num_groups)

    def extra_repr(self) -> str:
        return f"{self.num_channels}, num_groups={self.num_groups}"

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        # In bfloat16 with several groups, PyTorch's kernel takes several times as long as the formula.
        is_fast = x.dtype != torch.bfloat16 or self.num_groups == 1
        if is_fast and form_of(x, "group_norm") == "cpu" and not self.elementary:
            return torch.group_norm(x, self.num_groups, self.weight, self.bias, EPS)
        x, variance, mean = group_moments(x, self.num_groups)
        scale = self.weight * torch.rsqrt(variance + EPS)
        return scale_shift(x, scale, self.beta() - scale * mean)


@with_differentiable_jvp
class RMSNorm(_Norm):
    """γx/√(mean(x²)+ε) with the mean over C,H,W of each sample (Zhang & Sennrich 2019)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, variances, means = map_moments(x)
        return self.affine(x, torch.rsqrt((variances + means.square()).mean(1, keepdim=True) + EPS))


@with_differentiable_jvp
class FilterResponseNorm(_Norm):
    """γx/√(mean_{H,W}(x²)+1e-6+|ε_l|)+β with one learned ε_l per layer, starting at 1e-5 (Singh & Krishnan 2019)."""

    MINIMUM = 1e-6

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels)
        self.eps_l = nn.Parameter(torch.tensor(EPS))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, variance, mean = map_moments(x)
        inverse = torch.rsqrt(variance + mean.square() + self.MINIMUM + self.eps_l.abs())
        return self.affine(x, inverse)


@with_differentiable_jvp
class EvoNormSO(_Norm):
    """EvoNorm-S0: γ · x · sigmoid(vx)/√(σ²_group+ε)+β (Liu 2020, table 1).

    v starts at 1. The norm is its own activation.
    """

    def __init__(self, num_channels: int, num_groups: int) -> None:
        super().__init__(num_channels)
        self.v = nn.Parameter(torch.ones(num_channels))
        self.num_groups = _check_groups("EvoNormSO", num_channels, num_groups)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, variance, _ = group_moments(x, self.num_groups)
        return self.affine(x * torch.sigmoid(x * _maps(self.v).to(x.dtype)), torch.rsqrt(variance + EPS))


@with_differentiable_jvp
class EvoNormBO(_RunningNorm):
    """EvoNorm-B0: γx/max(√(σ²_{N,H,W}+ε), vx+√(σ²_{H,W}+ε))+β (Liu 2020, table 1).

    v starts at 1. The norm is its own activation. In eval mode the running variance replaces that of the batch; the
    variance of each sample is still computed from the sample.
    """

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels, running_var=1.0)
        self.v = nn.Parameter(torch.ones(num_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x, variances, means = map_moments(x)
        batch_variance = self.running_var
        if self.training:
            batch_variance, _ = self.batch_moments(variances, means)
            self.update(running_var=batch_variance)
        batch_deviation = torch.sqrt(batch_variance + EPS)
        excess = torch.sqrt(variances + EPS) - batch_deviation
        # max(a, b) is b + ReLU(a − b), whose gradient needs no masks.
        beyond = F.relu(scale_shift(x, self.v[None], excess))
        return self.affine(ratio(x, beyond + _maps(batch_deviation).to(x.dtype)))


@with_differentiable_jvp
class DynamicTanh(_Norm):
    """γ · tanh(αx)+β with one scalar α per layer, starting at 0.5 (Zhu 2025)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__(num_channels)
        self.alpha = nn.Parameter(torch.tensor(0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.affine(torch.tanh(self.alpha.to(x.dtype) * x))


@with_differentiable_jvp
class ThresholdedLinearUnit(nn.Module):
    """TLU: max(x, τ) with τ per channel, starting at 0 (Singh & Krishnan 2019)."""

    def __init__(self, num_channels: int) -> None:
        super().__init__()
        self.tau = nn.Parameter(torch.zeros(num_channels))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        tau = _maps(self.tau).to(x.dtype)
        return F.relu(x - tau) + tau  # the gradient of torch.maximum goes through masks and takes ten times as long


@with_differentiable_jvp
class ScaledReLU(nn.Module):
    """√(2π/(π−1)) · (ReLU(x) − 1/√(2π)): mean 0 and variance 1 for standard normal x (Arpit 2016, section 3)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (F.relu(x) - RELU_MEAN) * RELU_GAIN


@with_differentiable_jvp
class TokenLayerNorm(ElementaryForm, nn.LayerNorm):
    """LayerNorm over C of each token (N, tokens, C). The JVP of PyTorch's kernel is wrong if differentiated again."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.elementary:
            return in_dtype_of(x, F.layer_norm, self.normalized_shape, self.weight, self.bias, self.eps)
        variance, mean = torch.var_mean(x, dim=-1, correction=0, keepdim=True)
        return (x - mean) * torch.rsqrt(variance + self.eps) * self.weight + self.bias


@with_differentiable_jvp
class TokenRMSNorm(ElementaryForm, nn.RMSNorm):
    """RMSNorm over C of each token (N, tokens, C)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.elementary:
            return in_dtype_of(x, F.rms_norm, self.normalized_shape, self.weight, self.eps)
        return x * (torch.rsqrt(x.square().mean(-1, keepdim=True) + (self.eps or 0.0)) * self.weight)


@with_differentiable_jvp
class TokenNorm(nn.Module):
    """Apply a norm of (N, C, H, W) to tokens (N, tokens, C), viewed as (N, C, tokens, 1)."""

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm = norm

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x.transpose(1, 2).unsqueeze(3)).squeeze(3).transpose(1, 2)


@dataclass(frozen=True)
class NormType:
    """How to build the norm and the activation of a norm_type. Its other traits are in config.NORM_TRAITS.

    norm(num_channels, num_groups) and activation(num_channels) build fresh modules.
    is_bounded: whether the size of the output, in training, is independent of the size of x. If not, a ViT computes
    attention step by step, because the gradients of the fused kernel overflow for large logits.
    token_norm(num_channels) builds the norm for (N, tokens, C), if that is not `norm` on the tokens viewed as
    (N, C, tokens, 1).
    """

    norm: Callable[[int, int], nn.Module]
    activation: Callable[[int], nn.Module] = lambda num_channels: nn.ReLU()
    activation_on_tokens: bool = False
    token_norm: Callable[[int], nn.Module] | None = None
    is_bounded: bool = True


def _identity(num_channels: int, num_groups: int = 1) -> nn.Module:
    return nn.Identity()


def _of_channels(norm: Callable[[int], nn.Module]) -> Callable[[int, int], nn.Module]:
    """Turn the constructor of a norm without groups into a builder with arguments (num_channels, num_groups)."""
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
    "WeightNorm": NormType(_identity, lambda num_channels: ScaledReLU(), is_bounded=False),
    "ScaledWeightStandardization": NormType(_identity, is_bounded=False),
    "EvoNormSO": NormType(EvoNormSO, _identity),
    "EvoNormBO": NormType(_of_channels(EvoNormBO), _identity),
    "VarianceNorm": NormType(_of_channels(VarianceNorm)),
    "MeanCentering": NormType(_of_channels(MeanCentering), is_bounded=False),
    "RMSNorm": NormType(_of_channels(RMSNorm), token_norm=lambda num_channels: TokenRMSNorm(num_channels, eps=EPS)),
    "DynamicTanh": NormType(_of_channels(DynamicTanh)),
}


def build_norm(norm_type: str, num_channels: int, num_groups: int = 32) -> tuple[nn.Module, nn.Module]:
    """Build a fresh (norm, activation) pair of modules for x (N, num_channels, H, W).

    num_groups applies to norms with groups. Raises KeyError for an unknown norm_type, ValueError if the groups do not
    divide the channels.
    """
    spec = NORMS[norm_type]
    return spec.norm(num_channels, num_groups), spec.activation(num_channels)


def build_token_norm(norm_type: str, num_channels: int, num_groups: int = 32) -> nn.Module:
    """Build a fresh norm for tokens (N, tokens, num_channels).

    It has no activation, except that FilterResponseNorm keeps its TLU.
    """
    spec = NORMS[norm_type]
    if spec.token_norm is not None:
        return spec.token_norm(num_channels)
    norm, activation = build_norm(norm_type, num_channels, num_groups)
    if isinstance(norm, nn.Identity):
        return norm
    return TokenNorm(nn.Sequential(norm, activation) if spec.activation_on_tokens else norm)


def synchronize(model: nn.Module, mean_over_processes: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Make every norm with batch statistics compute them over the samples of all processes.

    mean_over_processes(tensor) is differentiable and turns a mean over this process's samples into that over all.
    """
    for module in model.modules():
        if isinstance(module, _RunningNorm):
            module.across = mean_over_processes


@dataclass(frozen=True)
class WeightTransform:
    """The transform that a conv_type applies to a weight (None for none), and whether it has a learned gain."""

    transform: Callable[[torch.Tensor, torch.Tensor | None], torch.Tensor] | None = None
    has_gain: bool = False


CONVS = {
    "Plain": WeightTransform(),
    "sWS": WeightTransform(standardized_weight, has_gain=True),
    "WeightNormalized": WeightTransform(normalized_weight, has_gain=True),
    "WeightCentered": WeightTransform(centred_weight),
}


def build_conv(
    conv_type: str,
    in_channels: int,
    out_channels: int,
    kernel_size: int = 3,
    stride: int = 1,
    padding: int = 1,
    bias: bool = False,
) -> Conv2d:
    """Build a convolution with the weight transform of conv_type. Raises KeyError for an unknown conv_type."""
    spec = CONVS[conv_type]
    shape = (in_channels, out_channels, kernel_size, stride, padding)
    if spec.transform is None:
        return Conv2d(*shape, bias=bias)
    return TransformedConv2d(*shape, bias=bias, transform=spec.transform, has_gain=spec.has_gain)


def build_linear(conv_type: str, in_features: int, out_features: int) -> nn.Linear:
    """Build a linear layer, with bias, with the weight transform of conv_type. Raises KeyError as build_conv does."""
    spec = CONVS[conv_type]
    if spec.transform is None:
        return nn.Linear(in_features, out_features)
    return TransformedLinear(in_features, out_features, transform=spec.transform, has_gain=spec.has_gain)

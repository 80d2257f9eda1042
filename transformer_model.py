"""The Vision Transformer (Dosovitskiy 2021): pre-norm encoder blocks, a class token, learned positions.

Layout and initialization follow torchvision's VisionTransformer. Any normalization layer can replace LayerNorm.
"""

import math
from typing import Any

import torch
from torch import nn

import config
from layer_defs import NORMS, build_conv, build_linear, build_token_norm
from normstudy.kernels import ElementaryForm, attention, plain_attention, with_differentiable_jvp


@with_differentiable_jvp
class Attention(ElementaryForm, nn.Module):
    """Multi-head self-attention on tokens (N, tokens, width).

    fused=False computes softmax(QKᵀ/√d)V step by step. Its gradient stays finite when tokens that no norm bounds
    drive the logits past 1e7, where the backward pass of the fused kernels overflows.
    """

    def __init__(self, conv_type: str, width: int, num_heads: int, fused: bool) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.fused = fused
        self.qkv = build_linear(conv_type, width, 3 * width)
        self.out = build_linear(conv_type, width, width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        samples, tokens, width = x.shape
        heads = self.qkv(x).view(samples, tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        if self.fused and not self.elementary:
            mixed = attention(query, key, value)
        else:
            mixed = plain_attention(query, key, value, elementary=self.elementary)
        return self.out(mixed.transpose(1, 2).reshape(samples, tokens, width))


class _Slope(torch.autograd.Function):
    """gradient · f′(x) from given f′(x) and f″(x); differentiable once more in the gradient and in x."""

    @staticmethod
    def forward(
        ctx: Any, gradient: torch.Tensor, x: torch.Tensor, slope: torch.Tensor, bend: torch.Tensor
    ) -> torch.Tensor:
        ctx.save_for_backward(gradient, slope, bend)
        return gradient * slope

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, *gradients: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        [outer] = gradients
        gradient, slope, bend = ctx.saved_tensors
        return outer * slope, (outer * gradient).mul_(bend), None, None


class _TwiceGELU(torch.autograd.Function):
    """GELU that keeps its first two derivatives, Φ(x) + xφ(x) and φ(x)(2 − x²), for the backward passes."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor) -> torch.Tensor:
        density = (x * x).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
        probability = torch.special.ndtr(x)
        ctx.save_for_backward(x, torch.addcmul(probability, x, density), (2 - x * x).mul_(density))
        return x * probability

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> torch.Tensor:
        [gradient] = gradients
        return _Slope.apply(gradient, *ctx.saved_tensors)


@with_differentiable_jvp
class GELU(nn.GELU):
    """xΦ(x) (Hendrycks & Gimpel 2016).

    With `keeps_derivatives`, the forward pass computes the first two derivatives, so that a graph that is
    differentiated twice many times does not recompute them.
    """

    keeps_derivatives = False

    def set_derivative_form(self, forward_mode: bool) -> None:
        """Keep the first two derivatives if two backward passes follow."""
        self.keeps_derivatives = not forward_mode

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return _TwiceGELU.apply(x) if self.keeps_derivatives else super().forward(x)


@with_differentiable_jvp
class MLP(nn.Module):
    """Two linear layers with a GELU between them, on tokens (N, tokens, width)."""

    def __init__(self, conv_type: str, width: int, hidden_width: int) -> None:
        super().__init__()
        self.hidden = build_linear(conv_type, width, hidden_width)
        self.gelu = GELU()
        self.out = build_linear(conv_type, hidden_width, width)
        for layer in (self.hidden, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.out(self.gelu(self.hidden(x)))


@with_differentiable_jvp
class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on tokens (N, tokens, width)."""

    def __init__(self, norm_type: str, conv_type: str, num_groups: int) -> None:
        super().__init__()
        width = config.VIT_WIDTH
        self.norm1 = build_token_norm(norm_type, width, num_groups)
        self.attention = Attention(conv_type, width, config.VIT_HEADS, fused=NORMS[norm_type].is_bounded)
        self.norm2 = build_token_norm(norm_type, width, num_groups)
        self.mlp = MLP(conv_type, width, config.VIT_MLP_WIDTH)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


@with_differentiable_jvp
class VisionTransformer(nn.Module):
    """A ViT of 6 encoder blocks of width 384, from images (N, 3, image_size, image_size) to logits (N, num_classes).

    A weight-based norm (or a conv_type) transforms the weights of the patch embedding and of the blocks' linear
    layers. The classifier stays plain, as in the convolutional networks. Raises ValueError if patch_size does not
    divide image_size.
    """

    def __init__(
        self, norm_type: str, num_classes: int, conv_type: str, num_groups: int, image_size: int, patch_size: int
    ) -> None:
        super().__init__()
        config.check_patches(image_size, patch_size)
        self.image_size = image_size
        width = config.VIT_WIDTH
        conv_type, _ = config.convolution_of(norm_type, conv_type)
        self.patches = build_conv(conv_type, 3, width, patch_size, stride=patch_size, padding=0, bias=True)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, (image_size // patch_size) ** 2 + 1, width).normal_(std=0.02))
        self.blocks = nn.Sequential(*[EncoderBlock(norm_type, conv_type, num_groups) for _ in range(config.VIT_BLOCKS)])
        self.norm = build_token_norm(norm_type, width, num_groups)
        self.classifier = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.patches.weight, std=math.sqrt(1 / (3 * patch_size**2)))
        if self.patches.bias is not None:
            nn.init.zeros_(self.patches.bias)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def probe_sites(self) -> dict[str, list[str]]:
        """Return {"conv": the attention and MLP branches, "activation": the blocks}, in order from the input."""
        blocks = [f"blocks.{index}" for index in range(len(self.blocks))]
        return {
            "conv": [f"{block}.{branch}" for block in blocks for branch in ("attention", "mlp")],
            "activation": blocks,
        }

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """Return no pairs, because every norm reads the sum of a branch and its shortcut."""
        return []

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Map images (N, 3, image_size, image_size) to all tokens after the last norm, (N, 1 + patches, 384)."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1).to(patches.dtype), patches], dim=1)
        return self.norm(self.blocks(tokens + self.positions))

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """Return the class token (N, 384), which the classifier reads."""
        return features[:, 0]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.features(x)))

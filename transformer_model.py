"""The Vision Transformer (Dosovitskiy 2021): pre-norm encoder blocks, a class token, learned positions.

Laid out and initialized as torchvision's VisionTransformer; any normalization layer stands where LayerNorm does.
"""

import math

import torch
from torch import nn
from torch.nn import functional as F

import config
from convolutions import build_conv, build_linear
from layer_defs import NORMS, build_token_norm, conv_of


def softmax(x):
    """softmax over the last dimension, in elementary steps.

    The forward-mode derivative of torch.softmax overwrites what a further derivative would need (torch 2.6 to 2.15).
    """
    powers = torch.exp(x - x.amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)


def attention(query, key, value):
    """softmax(QKᵀ/√d)V by PyTorch's fused kernel, on (N, heads, tokens, d)."""
    if query.device.type != "cpu" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value)
    # On the CPU its backward pass takes five times as long in bfloat16 as in float32.
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float()).to(query.dtype)


class Attention(nn.Module):
    """Multi-head self-attention on tokens (N, tokens, width).

    fused=False computes softmax(QKᵀ/√d)V step by step: its gradient stays finite where tokens that no norm bounds
    drive the logits past 1e7 (the fused kernels' backward overflows there). `elementary` takes softmax apart too,
    for second derivatives.
    """

    elementary = False

    def __init__(self, conv_type, width, num_heads, fused):
        super().__init__()
        self.num_heads = num_heads
        self.fused = fused
        self.qkv = build_linear(conv_type, width, 3 * width)
        self.out = build_linear(conv_type, width, width)
        nn.init.xavier_uniform_(self.qkv.weight)
        nn.init.zeros_(self.qkv.bias)
        nn.init.zeros_(self.out.bias)

    def forward(self, x):
        samples, tokens, width = x.shape
        heads = self.qkv(x).view(samples, tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = heads.permute(2, 0, 3, 1, 4)
        if self.fused and not self.elementary:
            mixed = attention(query, key, value)
        else:
            scale = 1 / math.sqrt(query.shape[-1])
            logits = (query * scale) @ key.transpose(-2, -1)
            mixed = (softmax(logits) if self.elementary else torch.softmax(logits, dim=-1)) @ value
        return self.out(mixed.transpose(1, 2).reshape(samples, tokens, width))


class _Slope(torch.autograd.Function):
    """gradient · f′(x), with f′(x) and f″(x) at hand; differentiable once more in the gradient and in x."""

    @staticmethod
    def forward(ctx, gradient, x, slope, bend):
        ctx.save_for_backward(gradient, slope, bend)
        return gradient * slope

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, outer):
        gradient, slope, bend = ctx.saved_tensors
        return outer * slope, (outer * gradient).mul_(bend), None, None


class _TwiceGELU(torch.autograd.Function):
    """GELU that keeps its first two derivatives, Φ(x) + xφ(x) and φ(x)(2 − x²), for the passes behind it."""

    @staticmethod
    def forward(ctx, x):
        density = (x * x).mul_(-0.5).exp_().mul_(1 / math.sqrt(2 * math.pi))
        probability = torch.special.ndtr(x)
        ctx.save_for_backward(x, torch.addcmul(probability, x, density), (2 - x * x).mul_(density))
        return x * probability

    @staticmethod
    def backward(ctx, gradient):
        return _Slope.apply(gradient, *ctx.saved_tensors)


class GELU(nn.GELU):
    """xΦ(x) (Hendrycks & Gimpel 2016). `keeps_derivatives` computes both derivatives in the forward pass: a graph
    that is differentiated twice again and again does not compute them anew."""

    keeps_derivatives = False

    def forward(self, x):
        return _TwiceGELU.apply(x) if self.keeps_derivatives else super().forward(x)


class MLP(nn.Module):
    """Two linear layers with GELU between, on tokens (N, tokens, width)."""

    def __init__(self, conv_type, width, hidden_width):
        super().__init__()
        self.hidden = build_linear(conv_type, width, hidden_width)
        self.gelu = GELU()
        self.out = build_linear(conv_type, hidden_width, width)
        for layer in (self.hidden, self.out):
            nn.init.xavier_uniform_(layer.weight)
            nn.init.normal_(layer.bias, std=1e-6)

    def forward(self, x):
        return self.out(self.gelu(self.hidden(x)))


class EncoderBlock(nn.Module):
    """x + attention(norm(x)), then x + mlp(norm(x)), on tokens (N, tokens, width)."""

    def __init__(self, norm_type, conv_type, num_groups):
        super().__init__()
        width = config.VIT_WIDTH
        self.norm1 = build_token_norm(norm_type, width, num_groups)
        self.attention = Attention(conv_type, width, config.VIT_HEADS, fused=NORMS[norm_type].is_bounded)
        self.norm2 = build_token_norm(norm_type, width, num_groups)
        self.mlp = MLP(conv_type, width, config.VIT_MLP_WIDTH)

    def forward(self, x):
        x = x + self.attention(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class VisionTransformer(nn.Module):
    """6 encoder blocks of width 384. Images (N, 3, image_size, image_size) to logits (N, num_classes).

    A weight-based norm (or a conv_type) transforms the weights of the patch embedding and of the blocks' linear
    layers; the classifier stays plain, as in the convolutional networks. Raises ValueError where patch_size does
    not divide image_size.
    """

    def __init__(self, norm_type, num_classes, conv_type, num_groups, image_size, patch_size):
        super().__init__()
        config.check_patches(image_size, patch_size)
        self.image_size = image_size
        width = config.VIT_WIDTH
        conv_type, _ = conv_of(norm_type, conv_type)
        self.patches = build_conv(conv_type, 3, width, patch_size, stride=patch_size, padding=0, bias=True)
        self.class_token = nn.Parameter(torch.zeros(1, 1, width))
        self.positions = nn.Parameter(torch.empty(1, (image_size // patch_size) ** 2 + 1, width).normal_(std=0.02))
        self.blocks = nn.Sequential(*[EncoderBlock(norm_type, conv_type, num_groups) for _ in range(config.VIT_BLOCKS)])
        self.norm = build_token_norm(norm_type, width, num_groups)
        self.classifier = nn.Linear(width, num_classes)
        nn.init.trunc_normal_(self.patches.weight, std=math.sqrt(1 / (3 * patch_size**2)))
        nn.init.zeros_(self.patches.bias)
        nn.init.zeros_(self.classifier.weight)
        nn.init.zeros_(self.classifier.bias)

    def features(self, x):
        """Images (N, 3, image_size, image_size) to all tokens after the last norm, (N, 1 + patches, 384)."""
        patches = self.patches(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.class_token.expand(len(x), -1, -1).to(patches.dtype), patches], dim=1)
        return self.norm(self.blocks(tokens + self.positions))

    def pool(self, features):
        """(N, 384): the class token, which the classifier reads."""
        return features[:, 0]

    def forward(self, x):
        return self.classifier(self.pool(self.features(x)))

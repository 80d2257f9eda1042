"""Attention, softmax(QKᵀ/√d)V, on (N, heads, tokens, d)."""

import math

import torch
from torch.nn import functional as F

from normstudy.kernels.switch import form_of


def attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """Compute scaled dot-product attention (Vaswani 2017, equation 1) in the dtype of the query."""
    form = form_of(query, "attention")
    if form == "plain":
        return plain_attention(query, key, value)
    if form == "device" or query.dtype != torch.bfloat16:
        return F.scaled_dot_product_attention(query, key, value)
    # On the CPU the kernel's backward pass takes five times as long in bfloat16 as in float32.
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(query.float(), key.float(), value.float()).to(query.dtype)


def plain_attention(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *, elementary: bool = False
) -> torch.Tensor:
    """Compute attention step by step.

    Its gradient stays finite for logits past 1e7, where that of the fused kernels overflows. elementary: use a softmax
    whose forward-mode derivative can be differentiated again.
    """
    logits = (query * (1 / math.sqrt(query.shape[-1]))) @ key.transpose(-2, -1)
    return (elementary_softmax(logits) if elementary else torch.softmax(logits, dim=-1)) @ value


def elementary_softmax(x: torch.Tensor) -> torch.Tensor:
    """Compute softmax over the last dimension in elementary steps.

    The forward-mode derivative of torch.softmax overwrites values that a further derivative needs (torch 2.6 to 2.15).
    """
    powers = torch.exp(x - x.amax(-1, keepdim=True))
    return powers / powers.sum(-1, keepdim=True)

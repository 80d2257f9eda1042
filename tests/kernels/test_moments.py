"""Moments and x · scale + shift against torch, with derivatives of both modes and orders."""

from typing import Any

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacrev, jvp, vmap
from torch.testing import assert_close

from normstudy.kernels import moments

pytestmark = pytest.mark.usefixtures("form")  # each test runs in every form of the kernels

EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
FLOAT32: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}


def random(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 2


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_map_moments_are_population_moments(dtype, memory_format):
    x = random(4, 6, 3, 5).to(dtype).contiguous(memory_format=memory_format)
    expected = torch.var_mean(x.double(), (2, 3), correction=0)
    tolerance = EXACT if dtype == torch.float64 else FLOAT32
    same, *found = moments.map_moments(x)
    assert same.data_ptr() == x.data_ptr()
    assert_close([moment.double() for moment in found], list(expected), **tolerance)


@pytest.mark.parametrize("rows", [(1, 1), (3, 1), (1, 3), (3, 3)], ids=str)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_scale_shift_and_its_gradients_are_torch_s(rows, memory_format):
    results = []
    for function in (moments.scale_shift, lambda x, a, b: x * a[..., None, None] + b[..., None, None]):
        x = random(3, 4, 5, 2).contiguous(memory_format=memory_format).requires_grad_()
        scale, shift = (random(count, 4, seed=seed).requires_grad_() for seed, count in enumerate(rows, start=1))
        out = function(x, scale, shift)
        (out * torch.arange(out.numel()).view(out.shape).sin()).sum().backward()
        results.append([out, x.grad, scale.grad, shift.grad])
    assert_close(*results, **EXACT)


@pytest.mark.parametrize(
    "function", [moments.map_moments, moments.scale_shift, moments.ratio], ids=lambda f: f.__name__
)
def test_derivatives_of_both_modes_and_orders(function):
    inputs = [random(3, 2, 2, 3).requires_grad_()]
    if function is moments.scale_shift:
        inputs += [random(1, 2, seed=1).requires_grad_(), random(3, 2, seed=2).requires_grad_()]
    if function is moments.ratio:
        inputs += [(random(3, 2, 2, 3, seed=1).abs() + 0.5).requires_grad_()]
    assert gradcheck(function, inputs, check_forward_ad=True)
    assert gradgradcheck(function, inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("rows", [(1, 1), (3, 1), (1, 3), (3, 3)], ids=str)
def test_batched_hessian_products_of_torch_func(rows):
    """A vmap of forward mode over a vmap of backward mode, which is how curvlinops computes them."""
    x = random(3, 4, 2, 3)
    scale, shift = (random(count, 4, seed=seed) for seed, count in enumerate(rows, start=1))
    directions = torch.stack([random(*x.shape, seed=seed) for seed in (3, 4)])

    def products(map_moments, scale_shift):
        def function(value):
            value, variance, mean = map_moments(value)
            return scale_shift(value, scale * variance.sum(0, keepdim=True), shift - mean).pow(3).sum()

        return vmap(lambda direction: jvp(jacrev(function), (x,), (direction,))[1])(directions)

    expected = products(
        lambda x: (x, *torch.var_mean(x, (2, 3), correction=0)),
        lambda x, a, b: x * a[..., None, None] + b[..., None, None],
    )
    assert_close(products(moments.map_moments, moments.scale_shift), expected, **EXACT)

"""The quicker form of small convolutions on the CPU against torch's; transformed weights are tested with the layers."""

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacrev, jvp, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from layer_defs import build_conv
from normstudy.kernels import convolutions
from normstudy.kernels.convolutions import convolve

# samples, height, width, stride: windows, and dense layers where the map is two by two or less
CASES = [(3, 4, 4, 1), (3, 4, 4, 2), (3, 7, 7, 2), (3, 3, 5, 1), (2, 5, 1, 1), (5, 2, 2, 1), (5, 2, 2, 2), (5, 1, 2, 1)]
IN, OUT = 3, 2


@pytest.fixture(autouse=True)
def even_small_ones(monkeypatch):
    """Few channels and samples are enough for either form here."""
    monkeypatch.setattr(convolutions, "SMALL_CHANNELS", 1)
    monkeypatch.setattr(convolutions, "DENSE_BATCH", 5)


def tensors(samples, height, width, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (samples, IN, height, width), (OUT, IN, 3, 3), (OUT,)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


def small(x, weight, bias, stride):
    assert convolutions._is_small(x, weight, (stride, stride), (1, 1))
    return convolve(x, weight, bias, (stride, stride), (1, 1))


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradients_are_those_of_torch(case, has_bias, memory_format):
    *shape, stride = case
    results = []
    for function in (small, lambda x, w, b, s: F.conv2d(x, w, b, s, 1)):
        x, weight, bias = tensors(*shape)
        x = x.contiguous(memory_format=memory_format).requires_grad_()
        weight = weight.contiguous(memory_format=memory_format).requires_grad_()
        bias = bias.requires_grad_() if has_bias else None
        out = function(x, weight, bias, stride)
        (out * torch.arange(out.numel()).view(out.shape).sin()).sum().backward()
        results.append([out, x.grad, weight.grad] + ([bias.grad] if has_bias else []))
    assert_close(*results, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_derivatives_of_both_modes_and_orders(case):
    *shape, stride = case
    inputs = [tensor.requires_grad_() for tensor in tensors(*shape)]
    assert gradcheck(lambda *values: small(*values, stride), inputs, check_forward_ad=True)
    assert gradgradcheck(lambda *values: small(*values, stride), inputs, check_fwd_over_rev=True)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_torch_func_goes_through(case):
    *shape, stride = case
    x, weight, bias = tensors(*shape)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    _, found = jvp(lambda value: small(value, weight, bias, stride), (x,), (direction,))
    assert_close(found, F.conv2d(direction, weight, None, stride, 1), rtol=1e-11, atol=1e-11)
    many = torch.stack([x, direction])
    found = vmap(lambda value: convolve(value, weight, bias, (stride, stride), (1, 1)))(many)
    assert_close(found, torch.stack([F.conv2d(each, weight, bias, stride, 1) for each in many]))


@pytest.mark.parametrize("case", CASES, ids=str)
def test_batched_hessian_products_of_torch_func(case):
    """A vmap of forward mode over a vmap of backward mode, which is how curvlinops takes them."""
    *shape, stride = case
    x, weight, bias = tensors(*shape)
    directions = torch.randn(2, *weight.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)

    def products(function):
        gradient = jacrev(lambda value: function(x, value, bias, stride).pow(3).sum())
        return vmap(lambda direction: jvp(gradient, (weight,), (direction,))[1])(directions)

    expected = products(lambda x, weight, bias, stride: F.conv2d(x, weight, bias, stride, 1))
    assert_close(products(small), expected, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_autocast_computes_in_bfloat16(case):
    *shape, stride = case
    values = tensors(*shape, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = small(*values, stride)
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), F.conv2d(*values, stride, 1), rtol=3e-2, atol=1e-1)


def test_the_output_lies_in_memory_as_channels_last():
    for *shape, stride in ((3, 4, 4, 1), (5, 2, 2, 1)):
        assert small(*tensors(*shape), stride).is_contiguous(memory_format=torch.channels_last)


def test_other_convolutions_are_torch_s():
    x = torch.randn(2, 3, 9, 9)
    for kernel, stride, padding in ((3, 1, 1), (1, 1, 0), (5, 2, 2), (3, 4, 0)):
        weight = torch.randn(4, 3, kernel, kernel)
        assert not convolutions._is_small(x, weight, (stride, stride), (padding, padding))
        found = convolve(x, weight, None, (stride, stride), (padding, padding))
        assert torch.equal(found, F.conv2d(x, weight, None, stride, padding))


def test_a_layer_takes_the_quick_form_by_itself(monkeypatch):
    layer = build_conv("Plain", IN, OUT, stride=2, bias=True)
    x = torch.randn(4, IN, 4, 4)
    expected = F.conv2d(x, layer.weight, layer.bias, 2, 1)
    called = []
    product = convolutions._product
    monkeypatch.setattr(convolutions, "_product", lambda *arguments: called.append(1) or product(*arguments))
    assert_close(layer(x), expected)
    assert called


@pytest.mark.parametrize(
    "settings", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "circular"}, {"padding": "same"}], ids=str
)
def test_settings_that_the_quick_form_does_not_know_are_torch_s(settings):
    layer = convolutions.Conv2d(4, 4, 3, **{"padding": 1} | settings)
    peer = torch.nn.Conv2d(4, 4, 3, **{"padding": 1} | settings)
    peer.load_state_dict(layer.state_dict())
    x = torch.randn(3, 4, 4, 4)
    assert torch.equal(layer(x), peer(x))


def test_a_single_image_without_a_batch_is_torch_s():
    layer, x = build_conv("Plain", IN, OUT), torch.randn(IN, 4, 4)
    assert_close(layer(x), layer(x[None])[0])

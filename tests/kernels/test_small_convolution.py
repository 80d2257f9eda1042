"""The CPU's form of small convolutions against torch's; transformed weights are tested with the layers."""

from unittest.mock import Mock

import pytest
import torch
from torch.autograd import gradcheck, gradgradcheck
from torch.func import jacrev, jvp, vmap
from torch.nn import functional as F
from torch.testing import assert_close

from layer_defs import build_conv
from normstudy.kernels import convolutions, small_convolution, use_form

# (samples, height, width, stride): windows, and dense layers for maps of at most 2×2
CASES = [(3, 4, 4, 1), (3, 4, 4, 2), (3, 7, 7, 2), (3, 3, 5, 1), (2, 5, 1, 1), (5, 2, 2, 1), (5, 2, 2, 2), (5, 1, 2, 1)]
IN, OUT = 3, 2
each_case = pytest.mark.parametrize("case", CASES, ids=str)


@pytest.fixture(autouse=True)
def even_small_ones(monkeypatch):
    """Let few channels and samples be enough for either form."""
    monkeypatch.setattr(small_convolution, "SMALL_CHANNELS", 1)
    monkeypatch.setattr(small_convolution, "DENSE_BATCH", 5)


def tensors(samples, height, width, *, dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = (samples, IN, height, width), (OUT, IN, 3, 3), (OUT,)
    return [torch.randn(shape, generator=generator, dtype=dtype) for shape in shapes]


small = small_convolution.small_convolution


def torchs(x, weight, bias, stride):
    return F.conv2d(x, weight, bias, stride, 1)


@each_case
@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_output_and_gradients_are_those_of_torch(case, has_bias, memory_format):
    *shape, stride = case
    results = []
    for function in (small, torchs):
        x, weight, bias = tensors(*shape)
        x = x.contiguous(memory_format=memory_format)
        weight = weight.contiguous(memory_format=memory_format)
        inputs = [tensor.requires_grad_() for tensor in ([x, weight, bias] if has_bias else [x, weight])]
        out = function(x, weight, bias if has_bias else None, stride)
        (out * torch.arange(out.numel()).view(out.shape).sin()).sum().backward()
        results.append([out, *(tensor.grad for tensor in inputs)])
    assert_close(*results, rtol=1e-11, atol=1e-11)


@each_case
def test_derivatives_of_both_modes_and_orders(case):
    *shape, stride = case
    inputs = [tensor.requires_grad_() for tensor in tensors(*shape)]
    assert gradcheck(lambda x, w, b: small(x, w, b, stride), inputs, check_forward_ad=True)
    assert gradgradcheck(lambda x, w, b: small(x, w, b, stride), inputs, check_fwd_over_rev=True)


@each_case
def test_torch_func_goes_through(case):
    *shape, stride = case
    x, weight, bias = tensors(*shape)
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)
    found = jvp(lambda value: small(value, weight, bias, stride), (x,), (direction,))[1]
    assert_close(found, torchs(direction, weight, None, stride), rtol=1e-11, atol=1e-11)
    many = torch.stack([x, direction])
    found = vmap(lambda value: small(value, weight, bias, stride))(many)
    assert_close(found, torch.stack([torchs(each, weight, bias, stride) for each in many]))


@each_case
def test_batched_hessian_products_of_torch_func(case):
    """A vmap of forward mode over a vmap of backward mode, which is how curvlinops computes them."""
    *shape, stride = case
    x, weight, bias = tensors(*shape)
    directions = torch.randn(2, *weight.shape, generator=torch.Generator().manual_seed(1), dtype=x.dtype)

    def products(function):
        gradient = jacrev(lambda value: function(x, value, bias, stride).pow(3).sum())
        return vmap(lambda direction: jvp(gradient, (weight,), (direction,))[1])(directions)

    assert_close(products(small), products(torchs), rtol=1e-10, atol=1e-10)


def test_the_output_is_laid_out_as_channels_last():
    for *shape, stride in ((3, 4, 4, 1), (5, 2, 2, 1)):
        x, weight, bias = tensors(*shape)
        assert small(x, weight, bias, stride).is_contiguous(memory_format=torch.channels_last)


@pytest.fixture
def counted_small(monkeypatch):
    """Return a mock that computes small_convolution and counts its calls."""
    mock = Mock(wraps=small)
    monkeypatch.setattr(convolutions, "small_convolution", mock)
    return mock


@each_case
def test_autocast_to_bfloat16_takes_it(counted_small, case):
    *shape, stride = case
    layer, x = build_conv("Plain", IN, OUT, stride=stride, bias=True), tensors(*shape, dtype=torch.float32)[0]
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(x)
    counted_small.assert_called()
    assert found.dtype == torch.bfloat16
    assert_close(found.float(), layer(x), rtol=3e-2, atol=5e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_full_precision_is_torchs(counted_small, dtype):
    layer, x = build_conv("Plain", IN, OUT, bias=True).to(dtype), tensors(3, 4, 4, dtype=dtype)[0]
    assert torch.equal(layer(x), F.conv2d(x, layer.weight, layer.bias, 1, 1))
    counted_small.assert_not_called()


@pytest.mark.parametrize("form", ["plain", "device"])
def test_other_forms_are_torchs(counted_small, form):
    layer, x = build_conv("Plain", IN, OUT).bfloat16(), tensors(3, 4, 4)[0].bfloat16()
    with use_form(form):
        assert torch.equal(layer(x), F.conv2d(x, layer.weight, None, 1, 1))
    counted_small.assert_not_called()


def test_large_maps_and_other_kernels_are_torchs(counted_small):
    x = torch.randn(2, 3, 9, 9).bfloat16()
    for kernel, stride, padding in ((3, 1, 1), (1, 1, 0), (5, 2, 2), (3, 4, 0)):
        weight = torch.randn(4, 3, kernel, kernel).bfloat16()
        found = convolutions.convolve(x, weight, None, (stride, stride), (padding, padding))
        assert torch.equal(found, F.conv2d(x, weight, None, stride, padding))
    counted_small.assert_not_called()


@pytest.mark.parametrize(
    "settings", [{"groups": 2}, {"dilation": 2}, {"padding_mode": "circular"}, {"padding": "same"}], ids=str
)
def test_settings_that_it_does_not_know_are_torchs(settings):
    layer = convolutions.Conv2d(4, 4, 3, **{"padding": 1} | settings).bfloat16()
    peer = torch.nn.Conv2d(4, 4, 3, **{"padding": 1} | settings).bfloat16()
    peer.load_state_dict(layer.state_dict())
    x = torch.randn(3, 4, 4, 4).bfloat16()
    assert torch.equal(layer(x), peer(x))


def test_a_single_image_without_a_batch_is_torchs():
    layer, x = build_conv("Plain", IN, OUT).bfloat16(), torch.randn(IN, 4, 4).bfloat16()
    assert_close(layer(x), layer(x[None])[0], rtol=3e-2, atol=5e-2)

"""Scales against dense matrices, and the changes of parameters under which the scaled spectrum does not change."""

import copy
from typing import Any

import pytest
import torch
from curvature_helpers import dense, images_and_labels, perturbed, two_layers
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close

import layer_defs
from layer_defs import build_conv, build_norm
from normstudy.curvature import eigenpairs, hessian_matvec, parameter_scales

INVARIANT = (
    *("BatchNorm", "VarianceNorm", "LayerNorm", "InstanceNorm", "GroupNorm", "RMSNorm", "FilterResponseNorm"),
    "EvoNormBO",
)
SCALES = pytest.mark.parametrize("scale", ["none", "filter", "element"])


@SCALES
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_the_operator_is_the_dense_matrix_between_two_diagonals(scale, curvature):
    model = two_layers("GroupNorm")
    batches = [images_and_labels()]
    plain, dimension = hessian_matvec(model, batches, curvature=curvature)
    scaled, _ = hessian_matvec(model, batches, curvature=curvature, scale=scale)
    scales = parameter_scales(model, scale)
    assert_close(dense(scaled, dimension), scales[:, None] * dense(plain, dimension) * scales)


def test_the_scales_are_norms_of_filters_or_absolute_values():
    model: Any = nn.Sequential(nn.Conv2d(2, 3, 3), nn.ConvTranspose2d(3, 2, 2), nn.BatchNorm2d(2), nn.Linear(4, 5))
    model.register_parameter("free", nn.Parameter(torch.randn(2, 3)))
    parts = dict(zip(dict(model.named_parameters()), torch.zeros(9), strict=False))
    sizes = [each.numel() for each in model.parameters()]
    by_name = dict(zip(parts, parameter_scales(model, "filter").split(sizes), strict=True))
    conv, transposed, linear = model[0].weight, model[1].weight, model[3].weight
    assert_close(by_name["0.weight"].view_as(conv)[1, 1, 0, 2], conv[1].norm())
    assert_close(by_name["1.weight"].view_as(transposed)[2, 1, 0, 1], transposed[:, 1].norm())
    assert_close(by_name["3.weight"].view_as(linear)[4, 0], linear[4].norm())
    for name in ("0.bias", "2.weight", "3.bias", "free"):
        assert_close(by_name[name], model.get_parameter(name).detach().abs().reshape(-1))
    every = torch.cat([each.detach().abs().reshape(-1) for each in model.parameters()])
    assert torch.equal(parameter_scales(model, "element"), every)
    assert torch.equal(parameter_scales(model, "none"), torch.ones_like(every))
    with pytest.raises(ValueError, match="'layer' is not one of none, filter, element"):
        parameter_scales(model, "layer")


def a_norm_behind_a_convolution(norm_type):
    """Return a convolution with a norm and a classifier; ε is so small that it does not count."""
    norm, activation = build_norm(norm_type, 4, 2)
    layers = [build_conv("Plain", 2, 4, stride=2), norm, activation, nn.Flatten(), nn.Linear(36, 3)]
    return perturbed(nn.Sequential(*layers))


def with_larger_filters(model, factor):
    """Return a copy whose filters, and the running statistics of their outputs, are larger by a factor."""
    larger = copy.deepcopy(model)
    with torch.no_grad():
        larger[0].weight.mul_(factor)
        for name, buffer in larger[1].named_buffers():
            if name == "running_mean":
                buffer.mul_(factor)
            if name == "running_var":
                buffer.mul_(factor**2)
    return larger


def top_and_trace(model, scale):
    matvec, dimension = hessian_matvec(model, [images_and_labels()], scale=scale)
    matrix = dense(matvec, dimension)
    return torch.stack([torch.linalg.eigvalsh(matrix)[-1], matrix.trace()])


@pytest.mark.parametrize("scale", ["filter", "element"])
@pytest.mark.parametrize("norm_type", INVARIANT)
def test_larger_filters_leave_the_scaled_spectrum_alone(norm_type, scale, monkeypatch):
    monkeypatch.setattr(layer_defs, "EPS", 1e-30)
    monkeypatch.setattr(layer_defs.FilterResponseNorm, "MINIMUM", 1e-30)
    model = a_norm_behind_a_convolution(norm_type)
    if norm_type == "FilterResponseNorm":
        with torch.no_grad():
            model[1].eps_l.fill_(1e-30)
    larger = with_larger_filters(model, 2.0)
    images, _ = images_and_labels()
    assert_close(larger(images), model(images), rtol=1e-6, atol=1e-6)
    assert_close(larger.eval()(images), model.eval()(images), rtol=1e-6, atol=1e-6)
    assert_close(top_and_trace(larger, scale), top_and_trace(model, scale), rtol=1e-5, atol=1e-6)
    raw, raw_larger = top_and_trace(model, "none"), top_and_trace(larger, "none")
    assert ((raw - raw_larger) / raw).abs().max() > 0.05


@pytest.mark.parametrize("scale", ["filter", "element"])
@pytest.mark.parametrize("conv_type", ["sWS", "WeightNormalized"])
def test_one_larger_filter_of_a_weight_based_norm_leaves_the_scaled_spectrum_alone(conv_type, scale):
    layers = [build_conv(conv_type, 2, 4, stride=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 3)]
    model = perturbed(nn.Sequential(*layers))
    larger: Any = copy.deepcopy(model)
    with torch.no_grad():
        larger[0].weight[1].mul_(2.0)
    images, _ = images_and_labels()
    assert_close(larger(images), model(images), rtol=1e-6, atol=1e-6)
    assert_close(top_and_trace(larger, scale), top_and_trace(model, scale), rtol=1e-5, atol=1e-6)
    raw, raw_larger = top_and_trace(model, "none"), top_and_trace(larger, "none")
    assert ((raw - raw_larger) / raw).abs().max() > 0.01


@pytest.mark.parametrize("scale", ["filter", "element"])
@pytest.mark.parametrize("norm_type", ["EvoNormSO", "MeanCentering", "DynamicTanh"])
def test_larger_filters_change_the_spectrum_behind_other_norms(norm_type, scale):
    model = a_norm_behind_a_convolution(norm_type)
    before, after = top_and_trace(model, scale), top_and_trace(with_larger_filters(model, 2.0), scale)
    assert ((before - after) / before).abs().max() > 0.05


def test_the_two_sides_of_a_relu_unit():
    model: Any = nn.Sequential(nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    moved = copy.deepcopy(model)
    factors = torch.tensor([2.0, 0.5, 3.0, 1.5]).double()
    with torch.no_grad():
        moved[0].weight.mul_(factors[:, None])
        moved[0].bias.mul_(factors)
        moved[2].weight.div_(factors)
    inputs, labels = torch.randn(8, 5).double(), torch.arange(8) % 3
    assert_close(moved(inputs), model(inputs))
    found = {}
    for scale in ("none", "filter", "element"):
        for name, each in (("model", model), ("moved", moved)):
            matvec, dimension = hessian_matvec(each, [(inputs, labels)], scale=scale)
            found[scale, name] = torch.linalg.eigvalsh(dense(matvec, dimension))
    assert_close(found["element", "moved"], found["element", "model"])
    for scale in ("none", "filter"):
        assert (found[scale, "moved"] - found[scale, "model"]).abs().max() > 0.01


def test_directions_without_scale_have_zero_rows():
    model = two_layers("BatchNorm")
    with torch.no_grad():
        model.get_parameter("7.bias").zero_()
    matvec, dimension = hessian_matvec(model, [images_and_labels()], scale="element")
    assert dense(matvec, dimension)[-3:].abs().max() == 0
    assert (parameter_scales(model, "element") == 0).sum() == 3


def test_a_scaled_operator_has_its_eigenpairs():
    model = two_layers("BatchNorm")
    matvec, dimension = hessian_matvec(model, [images_and_labels()], scale="filter")
    values, _, _ = eigenpairs(matvec, dimension, 3, torch.Generator().manual_seed(0), tolerance=1e-9)
    assert_close(values, torch.linalg.eigvalsh(dense(matvec, dimension)).flip(0)[:3], rtol=1e-7, atol=1e-9)


def test_a_tied_weight_counts_once():
    first, second = nn.Linear(4, 4), nn.Linear(4, 4)
    second.weight = first.weight
    model = nn.Sequential(first, nn.Tanh(), second).double()
    matvec, dimension = hessian_matvec(model, [(torch.randn(6, 4).double(), torch.arange(6) % 4)], scale="filter")
    assert len(matvec(torch.ones(dimension).double())) == 24 == len(parameter_scales(model, "filter"))
    assert F.mse_loss(parameter_scales(model, "filter")[:4], first.weight[0].norm().expand(4).detach()) < 1e-12

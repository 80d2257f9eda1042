"""The copy of a model whose derivatives are computed, and the model itself, which must not change."""

import pytest
import torch
from curvature_helpers import NETWORKS, PRODUCTS, network, rgb_images_and_labels
from torch.testing import assert_close

import config
from models import build_model
from normstudy.curvature import hessian_matvec, loss_and_gradient
from normstudy.curvature.model_copy import derivative_copy
from normstudy.kernels import FoldedConv2d
from normstudy.training.probe_recorder import ProbeRecorder


@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_copy_is_the_same_function_of_the_same_parameters(name, norm_type):
    model = network(name, norm_type).eval()
    images, _ = rgb_images_and_labels()
    copy = derivative_copy(model)
    assert {id(p) for p in copy.parameters()} == {id(p) for p in model.parameters()}
    assert not any(left is right for left in copy.modules() for right in model.modules())
    assert_close(copy(images), model(images), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("name", "folded"), [("vgg", 10), ("resnet-56", 57), ("resnet-56 preact", 27), ("vit", 0)])
def test_convolutions_take_in_the_norm_behind_them(name, folded):
    copy = derivative_copy(build_model(norm_type="BatchNorm", num_classes=4, **NETWORKS[name]))
    assert sum(isinstance(module, FoldedConv2d) for module in copy.modules()) == folded


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
@pytest.mark.parametrize("is_training", [True, False])
@PRODUCTS
def test_the_model_is_as_it_was(bn_mode, is_training, options):
    model = network("vgg", "BatchNorm").train(is_training)
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append("hook"))
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    versions = [tensor._version for tensor in model.state_dict(keep_vars=True).values()]
    modules = [(name, type(module), module.training) for name, module in model.named_modules()]
    images, labels = rgb_images_and_labels()
    batches = [(images, labels)]
    matvec, dimension = hessian_matvec(model, batches, bn_mode=bn_mode, **options)
    matvec(torch.randn(dimension))
    loss_and_gradient(model, batches, bn_mode=bn_mode)
    assert modules == [(name, type(module), module.training) for name, module in model.named_modules()]
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert versions == [tensor._version for tensor in model.state_dict(keep_vars=True).values()]
    assert torch.equal(model.classifier.weight.grad, torch.ones_like(model.classifier.weight))
    assert all(p.grad is None for name, p in model.named_parameters() if name != "classifier.weight")
    assert len(model.blocks[0]._forward_hooks) == 1
    assert all(p.requires_grad and p.is_leaf for p in model.parameters())


def test_probes_change_nothing_in_a_measurement():
    model = network("vgg", "BatchNorm").float()
    images, labels = rgb_images_and_labels()
    vector = torch.randn(sum(p.numel() for p in model.parameters()))
    without = hessian_matvec(model, [(images.float(), labels)])[0](vector)
    recorder = ProbeRecorder(model)
    recorded = hessian_matvec(model, [(images.float(), labels)])[0](vector)
    assert torch.equal(without, recorded)
    assert not recorder.iterations

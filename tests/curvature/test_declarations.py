"""Declarations of layer classes about their derivatives, and the double backward that needs no declaration."""

import pytest
import torch
from curvature_helpers import NETWORKS, double_backward, network
from torch import nn
from torch.nn import functional as F

import layer_defs
from config import NORM_TYPES
from normstudy.curvature import hessian_matvec
from normstudy.curvature.model_copy import derivative_copy, jvp_is_differentiable
from normstudy.kernels import with_differentiable_jvp


class FunctionalLayerNorm(layer_defs._Norm):
    """A norm as a user might add it. Its JVP, that of F.layer_norm, is wrong when it is differentiated again."""

    def forward(self, x):
        return self.affine(F.layer_norm(x, x.shape[1:]))


class SafeNorm(layer_defs._Norm):
    def forward(self, x):
        return self.affine(x * x)


@with_differentiable_jvp
class DeclaredNorm(SafeNorm):
    pass


class OverriddenNorm(DeclaredNorm):
    def forward(self, x):
        return self.affine(F.layer_norm(x, x.shape[1:]))


def one_layer(norm):
    """Return a convolution with a norm and a classifier, for 6×6 images."""
    layers = [nn.Conv2d(3, 4, 3, padding=1), norm(4), nn.Tanh(), nn.Flatten(), nn.Linear(4 * 6 * 6, 3)]
    return nn.Sequential(*layers).double()


@pytest.mark.parametrize("norm", [FunctionalLayerNorm, SafeNorm, DeclaredNorm, OverriddenNorm])
@pytest.mark.parametrize("keep_graphs", [False, True])
def test_an_added_norm_has_the_hessian_of_its_double_backward(norm, keep_graphs):
    model = one_layer(norm).eval()
    images, labels = torch.randn(5, 3, 6, 6).double(), torch.arange(5) % 3
    matvec, dimension = hessian_matvec(model, [(images, labels)], keep_graphs=keep_graphs)
    vector = torch.randn(dimension).double()
    torch.testing.assert_close(matvec(vector), double_backward(model, images, labels, vector))


def test_a_wrong_declaration_is_found_and_not_followed(monkeypatch):
    monkeypatch.setattr(FunctionalLayerNorm, "has_differentiable_jvp", lambda self: True, raising=False)
    model = one_layer(FunctionalLayerNorm).eval()
    images, labels = torch.randn(5, 3, 6, 6).double(), torch.arange(5) % 3
    with pytest.warns(UserWarning, match="forward mode differs from two backward passes"):
        matvec, dimension = hessian_matvec(model, [(images, labels)])
    vector = torch.randn(dimension).double()
    expected = double_backward(model, images, labels, vector)
    torch.testing.assert_close(matvec(vector), expected)
    unchecked, _ = hessian_matvec(model, [(images, labels)], checks=False)
    assert (unchecked(vector) - expected).norm() > 0.01 * expected.norm()


@pytest.mark.parametrize(
    ("norm", "is_trusted"),
    [(FunctionalLayerNorm, False), (SafeNorm, False), (DeclaredNorm, True), (OverriddenNorm, False)],
)
def test_a_class_is_trusted_only_if_it_declares_itself(norm, is_trusted):
    assert jvp_is_differentiable(derivative_copy(one_layer(norm))) == is_trusted


@pytest.mark.parametrize("norm_type", NORM_TYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_class_of_ours_declares_itself(name, norm_type):
    assert jvp_is_differentiable(derivative_copy(network(name, norm_type)))


class Halved(nn.Module):
    """A norm that declares that it cannot be folded."""

    def forward(self, x):
        return x / 2

    def fold_into(self, conv):
        return None


class Doubled(Halved):
    """A norm that can be folded into the convolution of `one_layer`."""

    def forward(self, x):
        return 2 * x

    def fold_into(self, conv):
        folded = nn.Conv2d(3, 4, 3, padding=1).double()
        folded.weight, folded.bias = nn.Parameter(2 * conv.weight), nn.Parameter(2 * conv.bias)
        return folded


class Paired(nn.Sequential):
    def conv_norm_pairs(self):
        return [("0", "1")]


@pytest.mark.parametrize(("norm", "is_folded"), [(Halved, False), (Doubled, True), (nn.Identity, False)])
def test_a_pair_folds_if_the_norm_can(norm, is_folded):
    model = Paired(*one_layer(lambda width: norm()))
    copy = derivative_copy(model)
    assert (copy[0] is not None and type(copy[1]) is nn.Identity and norm is not nn.Identity) == is_folded
    images = torch.randn(2, 3, 6, 6).double()
    torch.testing.assert_close(copy(images), model(images))
    assert type(model[1]) is norm


class Tripled(nn.Module):
    def __init__(self, conv):
        super().__init__()
        self.conv = conv

    def forward(self, x):
        return 3 * self.conv(x)


class WrongFold(Doubled):
    """A norm whose fold computes something else."""

    def fold_into(self, conv):
        return Tripled(conv)


@pytest.mark.parametrize("keep_graphs", [False, True])
def test_a_wrong_fold_is_found_and_not_followed(monkeypatch, keep_graphs):
    for each in (WrongFold, Tripled, Paired):
        monkeypatch.setattr(each, "has_differentiable_jvp", lambda self: True, raising=False)
    model = Paired(*one_layer(lambda width: WrongFold()))
    images, labels = torch.randn(5, 3, 6, 6).double(), torch.arange(5) % 3
    vector = torch.randn(sum(p.numel() for p in model.parameters())).double()
    with pytest.warns(UserWarning, match="fold_into"):
        matvec, _ = hessian_matvec(model, [(images, labels)], keep_graphs=keep_graphs)
    torch.testing.assert_close(matvec(vector), double_backward(model, images, labels, vector))


def test_a_fold_with_other_parameters_is_refused(monkeypatch):
    for each in (Doubled, Paired):
        monkeypatch.setattr(each, "has_differentiable_jvp", lambda self: True, raising=False)
    model = Paired(*one_layer(lambda width: Doubled()))
    with pytest.raises(ValueError, match="must contain the parameters"):
        hessian_matvec(model, [(torch.randn(5, 3, 6, 6).double(), torch.arange(5) % 3)])

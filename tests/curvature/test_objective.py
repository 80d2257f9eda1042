"""The loss whose Hessian is multiplied: batches, parameters, and rejected arguments."""

import pytest
import torch
from curvature_helpers import assert_multiplies_by, dense_hessian, images_and_labels, two_layers
from torch import nn
from torch.testing import assert_close

import config
from normstudy.curvature import hessian_matvec


@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
def test_the_batch_size_changes_nothing_in_eval_mode(norm_type):
    model = two_layers(norm_type)
    images, labels = images_and_labels(7)
    vector = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    products = []
    for size in (1, 3, 7):
        batches = list(zip(images.split(size), labels.split(size), strict=True))
        matvec, _ = hessian_matvec(model, batches)
        products.append(matvec(vector))
    assert_close(products[0], products[2], rtol=1e-10, atol=1e-12)
    assert_close(products[1], products[2], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("keep_graphs", [False, True])
def test_frozen_parameters_are_left_out(keep_graphs):
    model = two_layers("BatchNorm").eval()
    images, labels = images_and_labels()
    exact = dense_hessian(model, images, labels)
    first = model.get_parameter("0.weight").requires_grad_(False)
    matvec, dimension = hessian_matvec(model, [(images, labels)], keep_graphs=keep_graphs)
    assert dimension == len(exact) - first.numel()
    assert_multiplies_by(exact[first.numel() :, first.numel() :], matvec, rtol=1e-9, atol=1e-10)


def test_a_generator_of_batches_serves_every_product():
    images, labels = images_and_labels()
    model = two_layers("LayerNorm")
    matvec, dimension = hessian_matvec(model, ((images[i : i + 2], labels[i : i + 2]) for i in (0, 2, 4)))
    vector = torch.randn(dimension, dtype=torch.float64)
    assert_close(matvec(vector), hessian_matvec(model, [(images, labels)])[0](vector))
    assert_close(matvec(vector), matvec(vector))


def test_labels_may_be_any_whole_numbers():
    images, labels = images_and_labels()
    model, products = two_layers("Plain"), []
    for each in (labels, labels.int()):
        matvec, dimension = hessian_matvec(model, [(images, each)])
        products.append(matvec(torch.ones(dimension)))
    assert torch.equal(*products)


@pytest.mark.parametrize(
    "options", [{"loss": "hinge"}, {"curvature": "fisher"}, {"bn_mode": "frozen"}], ids=["loss", "curvature", "bn_mode"]
)
def test_unknown_names_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options.values()))):
        hessian_matvec(two_layers("Plain"), [images_and_labels()], **options)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        (lambda images, labels: (images, labels), "list of pairs"),
        (lambda images, labels: [(images.to(torch.uint8), labels)], "floating-point"),
        (lambda images, labels: [(images, labels.double())], "labels must be integers"),
    ],
    ids=["no list", "bytes", "floats as labels"],
)
def test_what_is_no_batch_is_refused(batches, words):
    def product():
        matvec, dimension = hessian_matvec(two_layers("Plain"), batches(*images_and_labels()))
        return matvec(torch.zeros(dimension))

    with pytest.raises(ValueError, match=words):
        product()


def test_no_batches_and_wrong_lengths_are_refused():
    with pytest.raises(ValueError, match="no batches"):
        hessian_matvec(two_layers("Plain"), [])
    matvec, dimension = hessian_matvec(two_layers("Plain"), [images_and_labels()])
    with pytest.raises(ValueError, match="shape"):
        matvec(torch.zeros(dimension + 1))
    with pytest.raises(ValueError, match="no trainable"):
        hessian_matvec(nn.ReLU(), [images_and_labels()])

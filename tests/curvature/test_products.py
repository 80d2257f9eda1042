"""Products against exact answers in float64: dense Hessians, two backward passes, closed forms and curvlinops."""

import pytest
import torch
from curvature_helpers import (
    NETWORKS,
    PRODUCTS,
    assert_multiplies_by,
    dense,
    dense_hessian,
    double_backward,
    images_and_labels,
    in_two_batches,
    logits_of_flat_parameters,
    network,
    perturbed,
    rgb_images_and_labels,
    two_layers,
)
from torch import nn
from torch.func import jacrev
from torch.nn import functional as F
from torch.testing import assert_close

import config
from normstudy.curvature import bytes_per_sample, hessian_matvec, loss_and_gradient


@pytest.mark.parametrize("keep_graphs", [False, True])
@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
def test_the_matvec_is_the_dense_hessian_in_eval_mode(norm_type, keep_graphs):
    model = two_layers(norm_type).eval()
    images, labels = images_and_labels()
    matvec, _ = hessian_matvec(model, in_two_batches(images, labels), keep_graphs=keep_graphs)
    assert_multiplies_by(dense_hessian(model, images, labels), matvec, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("keep_graphs", [False, True])
@pytest.mark.parametrize("norm_type", config.BATCH_NORMS)
def test_the_matvec_is_the_dense_hessian_with_batch_statistics(norm_type, keep_graphs):
    model = two_layers(norm_type).train()
    images, labels = images_and_labels()
    matvec, _ = hessian_matvec(model, [(images, labels)], bn_mode="train", keep_graphs=keep_graphs)
    exact = dense_hessian(model, images, labels)
    assert_multiplies_by(exact, matvec, rtol=1e-9, atol=1e-9 * exact.abs().max().item())


@pytest.mark.parametrize("keep_graphs", [False, True])
@pytest.mark.parametrize("conv_type", config.CONV_TYPES)
@pytest.mark.parametrize("norm_type", ["BatchNorm", "VarianceNorm", "GroupNorm"])
def test_the_matvec_is_the_dense_hessian_with_transformed_weights(conv_type, norm_type, keep_graphs):
    model = two_layers(norm_type, conv_type).eval()
    images, labels = images_and_labels()
    matvec, _ = hessian_matvec(model, [(images, labels)], keep_graphs=keep_graphs)
    assert_multiplies_by(dense_hessian(model, images, labels), matvec, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
def test_the_ggn_is_jacobian_output_hessian_jacobian(norm_type):
    model = two_layers(norm_type).eval()
    images, labels = images_and_labels()
    logits, vector = logits_of_flat_parameters(model)
    jacobian = jacrev(logits)(vector, images)
    probabilities = torch.softmax(model(images), 1)
    output = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
    exact = torch.einsum("nip,nij,njq->pq", jacobian, output, jacobian) / len(images)
    matvec, _ = hessian_matvec(model, in_two_batches(images, labels), curvature="ggn")
    assert_multiplies_by(exact, matvec, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_norm_in_every_network_against_double_backward(name, norm_type):
    model = network(name, norm_type)
    images, labels = rgb_images_and_labels()
    for bn_mode in ("eval", "train") if norm_type in config.BATCH_NORMS else ("eval",):
        vector = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
        exact = double_backward(model.train(bn_mode == "train"), images, labels, vector)
        for keep_graphs in (False, True):
            matvec, _ = hessian_matvec(model, [(images, labels)], bn_mode=bn_mode, keep_graphs=keep_graphs)
            assert (matvec(vector) - exact).norm() <= 1e-6 * exact.norm()


class Foreign(nn.Module):
    """A network with modules whose forward-mode derivative PyTorch differentiates incorrectly, or not at all."""

    def __init__(self):
        super().__init__()
        self.first, self.norm, self.last = nn.Linear(4, 5), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x):
        return self.last(torch.softmax(self.norm(self.first(x)), 1))


@pytest.mark.parametrize("keep_graphs", [False, True])
@pytest.mark.parametrize("norm", [None, nn.LayerNorm(5), nn.BatchNorm1d(5)])
def test_networks_of_others_are_measured_rightly(norm, keep_graphs):
    layers = [nn.Linear(4, 5), norm, nn.Tanh(), nn.Linear(5, 3)]
    model = perturbed(nn.Sequential(*layers) if norm else Foreign()).eval()
    images, labels = torch.randn(6, 4, dtype=torch.float64), torch.arange(6) % 3
    matvec, dimension = hessian_matvec(model, [(images, labels)], keep_graphs=keep_graphs)
    assert_close(dense(matvec, dimension), dense_hessian(model, images, labels), rtol=1e-9, atol=1e-11)


def test_softmax_regression_has_its_closed_form():
    model = nn.Linear(4, 3, bias=False).double()
    images, labels = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 3
    probabilities = torch.softmax(model(images), 1)
    output = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
    exact = torch.einsum("nij,np,nq->ipjq", output, images, images).reshape(12, 12) / 7
    for curvature in ("hessian", "ggn"):
        matvec, dimension = hessian_matvec(model, [(images, labels)], curvature=curvature)
        assert_close(dense(matvec, dimension), exact)


def test_a_peer_computes_the_same_products():
    peer = pytest.importorskip("curvlinops")
    model = two_layers("BatchNorm").eval()
    images, labels = images_and_labels()
    batches = in_two_batches(images, labels)
    parameters = list(model.parameters())
    for curvature, operator in (("hessian", peer.HessianLinearOperator), ("ggn", peer.GGNLinearOperator)):
        theirs = operator(model, nn.CrossEntropyLoss(), parameters, batches)
        matvec, dimension = hessian_matvec(model, batches, curvature=curvature)
        vector = torch.randn(dimension, dtype=torch.float64)
        assert_close(matvec(vector), theirs @ vector, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_the_matvec_is_symmetric_and_linear(curvature):
    matvec, dimension = hessian_matvec(two_layers("EvoNormBO"), [images_and_labels()], curvature=curvature)
    one, two = torch.randn(2, dimension, dtype=torch.float64)
    assert_close(one @ matvec(two), two @ matvec(one))
    assert_close(matvec(2 * one - 3 * two), 2 * matvec(one) - 3 * matvec(two))


def test_loss_and_gradient_are_those_of_autograd():
    model = two_layers("GroupNorm")
    images, labels = images_and_labels()
    loss, gradient = loss_and_gradient(model, in_two_batches(images, labels))
    exact = F.cross_entropy(model(images), labels)
    parts = torch.autograd.grad(exact, list(model.parameters()))
    assert loss == pytest.approx(exact.item(), rel=1e-12)
    assert_close(gradient, torch.cat([part.reshape(-1) for part in parts]))


def test_kept_graphs_serve_every_product_and_walk_through_the_batches():
    model = two_layers("BatchNorm").eval()
    images, labels = images_and_labels()
    walks = []

    class Batches:
        def __iter__(self):
            yield from in_two_batches(images, labels)
            walks.append("walk")

    matvec, dimension = hessian_matvec(model, Batches(), keep_graphs=True)
    walks.clear()
    exact = dense_hessian(model, images, labels)
    for count in range(1, 4):
        vector = torch.randn(dimension, dtype=torch.float64)
        assert_close(matvec(vector), exact @ vector, rtol=1e-9, atol=1e-10)
        assert len(walks) == count


def test_a_model_that_changes_while_its_graphs_are_kept_is_noticed():
    model = two_layers("BatchNorm").eval()
    matvec, dimension = hessian_matvec(model, [images_and_labels()], keep_graphs=True)
    vector = torch.randn(dimension, dtype=torch.float64)
    matvec(vector)
    with torch.no_grad():
        model.get_parameter("7.weight").mul_(2)
    with pytest.raises(RuntimeError, match="has changed since its graphs were kept"):
        matvec(vector)


def test_gauss_newton_matrices_have_no_graphs_to_keep():
    with pytest.raises(ValueError, match="keep_graphs"):
        hessian_matvec(two_layers("Plain"), [images_and_labels()], curvature="ggn", keep_graphs=True)


def test_a_product_has_the_type_of_its_vector():
    matvec, dimension = hessian_matvec(network("vgg", "LayerNorm").float(), [rgb_images_and_labels()])
    assert matvec(torch.ones(dimension, dtype=torch.float64)).dtype == torch.float64
    assert matvec(torch.ones(dimension)).dtype == torch.float32


@PRODUCTS
def test_the_memory_of_a_product_is_foretold(options):
    batch = torch.randn(4, 50, dtype=torch.float64), torch.arange(4)
    bytes_of_width = {}
    for width in (100, 1000):
        layers = nn.Linear(50, width), nn.Tanh(), nn.Linear(width, 4)
        model = nn.Sequential(*layers).double()
        bytes_of_width[width] = bytes_per_sample(model, batch, **options)
    # The output of tanh and its tangent must be kept, 8 bytes per entry; a product needs fewer than ten such tensors.
    assert 2 * 900 * 8 <= bytes_of_width[1000] - bytes_of_width[100] <= 10 * 900 * 8

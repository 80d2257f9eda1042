"""Curvature against exact answers in float64: dense Hessians, known spectra, closed forms, a peer library."""

import math

import pytest
import torch
from torch import nn
from torch.func import functional_call, jacrev
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import config
from config import convolution_of
from layer_defs import build_conv, build_norm
from models import build_model
from normstudy.curvature import bytes_per_sample, full_float32, hessian_matvec, loss_and_gradient, spectrum
from normstudy.curvature.krylov_space import krylov, lanczos
from normstudy.curvature.model_copy import derivative_copy
from normstudy.curvature.objective import Objective
from normstudy.curvature.spectral_estimates import Spectrum, rademacher
from normstudy.kernels import FoldedConv2d
from normstudy.training.probe_recorder import ProbeRecorder

WITH_RUNNING_STATISTICS = config.BATCH_NORMS
NETWORKS = {
    "vgg": {"arch": "vgg"},
    "resnet-56": {"arch": "resnet-56"},
    "resnet-56 preact": {"arch": "resnet-56", "preact": True, "skipinit": True},
    "vit": {"arch": "vit", "image_size": 8, "patch_size": 4},
}


@pytest.fixture(autouse=True)
def _seeded():
    torch.manual_seed(0)


def perturbed(model):
    """The model in float64 with parameters and running statistics that are nowhere special."""
    model.double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer in model.buffers():
            if buffer.is_floating_point():
                buffer.add_(0.3 * torch.rand_like(buffer))
    return model


def small_network(norm_type, conv_type="Plain"):
    """Two convolutions with norms and a classifier: some 200 parameters on 5×5 images of 2 channels."""
    conv_type, bias = convolution_of(norm_type, conv_type)
    layers = []
    for channels in (2, 3):
        layers.append(build_conv(conv_type, channels, 3, stride=2, bias=bias))
        layers += build_norm(norm_type, 3, 3)
    return perturbed(nn.Sequential(*layers, nn.Flatten(), nn.Linear(12, 3)))


def images_and_labels(samples=6, channels=2, size=5, classes=3):
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(samples, channels, size, size, dtype=torch.float64, generator=generator)
    return images, torch.arange(samples) % classes


def flat_function(model):
    """(logits as a function of flat parameters and images, the flat parameters)."""
    parameters = dict(model.named_parameters())
    sizes = [p.numel() for p in parameters.values()]

    def logits(vector, images):
        parts = zip(parameters.items(), vector.split(sizes), strict=True)
        return functional_call(model, {name: part.view_as(p) for (name, p), part in parts}, (images,))

    return logits, torch.cat([p.detach().reshape(-1) for p in parameters.values()])


def dense_hessian(model, images, labels):
    logits, vector = flat_function(model)
    return torch.autograd.functional.hessian(lambda v: F.cross_entropy(logits(v, images), labels), vector)


def dense(matvec, dimension):
    return torch.stack([matvec(row) for row in torch.eye(dimension, dtype=torch.float64)])


def symmetric(eigenvalues):
    """A dense symmetric matrix with these eigenvalues, and its eigenvectors."""
    basis, _ = torch.linalg.qr(torch.randn(len(eigenvalues), len(eigenvalues), dtype=torch.float64))
    return (basis * eigenvalues) @ basis.T, basis


# Products


@pytest.mark.parametrize("keep_graphs", [False, True])
@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
def test_the_matvec_is_the_dense_hessian_in_eval_mode(norm_type, keep_graphs):
    model = small_network(norm_type).eval()
    images, labels = images_and_labels()
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    matvec, dimension = hessian_matvec(model, batches, keep_graphs=keep_graphs)
    torch.testing.assert_close(dense(matvec, dimension), dense_hessian(model, images, labels), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("keep_graphs", [False, True])
@pytest.mark.parametrize("norm_type", WITH_RUNNING_STATISTICS)
def test_the_matvec_is_the_dense_hessian_with_batch_statistics(norm_type, keep_graphs):
    model = small_network(norm_type).train()
    images, labels = images_and_labels()
    matvec, dimension = hessian_matvec(model, [(images, labels)], bn_mode="train", keep_graphs=keep_graphs)
    exact = dense_hessian(model, images, labels)
    torch.testing.assert_close(dense(matvec, dimension), exact, rtol=1e-9, atol=1e-9 * exact.abs().max().item())


@pytest.mark.parametrize("keep_graphs", [False, True])
@pytest.mark.parametrize("conv_type", config.CONV_TYPES)
@pytest.mark.parametrize("norm_type", ["BatchNorm", "VarianceNorm", "GroupNorm"])
def test_the_matvec_is_the_dense_hessian_with_transformed_weights(conv_type, norm_type, keep_graphs):
    model = small_network(norm_type, conv_type).eval()
    images, labels = images_and_labels()
    matvec, dimension = hessian_matvec(model, [(images, labels)], keep_graphs=keep_graphs)
    torch.testing.assert_close(dense(matvec, dimension), dense_hessian(model, images, labels), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
def test_the_ggn_is_jacobian_output_hessian_jacobian(norm_type):
    model = small_network(norm_type).eval()
    images, labels = images_and_labels()
    logits, vector = flat_function(model)
    jacobian = jacrev(logits)(vector, images)
    probabilities = torch.softmax(model(images), 1)
    output = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
    exact = torch.einsum("nip,nij,njq->pq", jacobian, output, jacobian) / len(images)
    matvec, dimension = hessian_matvec(model, [(images[:4], labels[:4]), (images[4:], labels[4:])], curvature="ggn")
    torch.testing.assert_close(dense(matvec, dimension), exact, rtol=1e-9, atol=1e-11)


def double_backward(model, images, labels, vector):
    """Hv by two backward passes through the plain network."""
    parameters = list(model.parameters())
    parts = [part.view_as(p) for part, p in zip(vector.split([p.numel() for p in parameters]), parameters, strict=True)]
    with sdpa_kernel(SDPBackend.MATH):
        loss = F.cross_entropy(model(images), labels)
    gradients = torch.autograd.grad(loss, parameters, create_graph=True)
    products = torch.autograd.grad(gradients, parameters, parts, materialize_grads=True)
    return torch.cat([product.reshape(-1) for product in products])


def network(name, norm_type):
    model = build_model(norm_type=norm_type, num_classes=4, **NETWORKS[name]).double()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() < 2 or parameter is model.classifier.weight:
                parameter.add_(0.1 * torch.randn_like(parameter))
        for buffer in model.buffers():
            buffer.add_(0.3 * torch.rand_like(buffer))
    return model


@pytest.mark.slow
@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_every_norm_in_every_network_against_double_backward(name, norm_type):
    model = network(name, norm_type)
    images, labels = images_and_labels(4, 3, 8, 4)
    for bn_mode in ("eval", "train") if norm_type in WITH_RUNNING_STATISTICS else ("eval",):
        vector = torch.randn(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
        exact = double_backward(model.train(bn_mode == "train"), images, labels, vector)
        for keep_graphs in (False, True):
            matvec, _ = hessian_matvec(model, [(images, labels)], bn_mode=bn_mode, keep_graphs=keep_graphs)
            assert (matvec(vector) - exact).norm() <= 1e-6 * exact.norm()


@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_our_networks_take_the_fast_path(name, norm_type):
    model = build_model(norm_type=norm_type, num_classes=4, **NETWORKS[name])
    assert Objective(model, [], "cross_entropy", "eval").jvp_is_differentiable


class Foreign(nn.Module):
    """A network with modules whose forward-mode derivative PyTorch differentiates wrongly, or not at all."""

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
    torch.testing.assert_close(dense(matvec, dimension), dense_hessian(model, images, labels), rtol=1e-9, atol=1e-11)


def test_softmax_regression_has_its_closed_form():
    model = nn.Linear(4, 3, bias=False).double()
    images, labels = torch.randn(7, 4, dtype=torch.float64), torch.arange(7) % 3
    probabilities = torch.softmax(model(images), 1)
    output = torch.diag_embed(probabilities) - probabilities[:, :, None] * probabilities[:, None]
    exact = torch.einsum("nij,np,nq->ipjq", output, images, images).reshape(12, 12) / 7
    for curvature in ("hessian", "ggn"):
        matvec, dimension = hessian_matvec(model, [(images, labels)], curvature=curvature)
        torch.testing.assert_close(dense(matvec, dimension), exact)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_the_matvec_is_symmetric_and_linear(curvature):
    matvec, dimension = hessian_matvec(small_network("EvoNormBO"), [images_and_labels()], curvature=curvature)
    one, two = torch.randn(2, dimension, dtype=torch.float64)
    torch.testing.assert_close(one @ matvec(two), two @ matvec(one))
    torch.testing.assert_close(matvec(2 * one - 3 * two), 2 * matvec(one) - 3 * matvec(two))


@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
def test_the_batch_size_changes_nothing_in_eval_mode(norm_type):
    model = small_network(norm_type)
    images, labels = images_and_labels(7)
    vector = None
    products = []
    for size in (1, 3, 7):
        batches = list(zip(images.split(size), labels.split(size), strict=True))
        matvec, dimension = hessian_matvec(model, batches)
        vector = torch.randn(dimension, dtype=torch.float64) if vector is None else vector
        products.append(matvec(vector))
    torch.testing.assert_close(products[0], products[2], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(products[1], products[2], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("keep_graphs", [False, True])
def test_frozen_parameters_are_left_out(keep_graphs):
    model = small_network("BatchNorm").eval()
    images, labels = images_and_labels()
    exact = dense_hessian(model, images, labels)
    count = model[0].weight.numel()
    model[0].weight.requires_grad_(False)
    matvec, dimension = hessian_matvec(model, [(images, labels)], keep_graphs=keep_graphs)
    assert dimension == len(exact) - count
    torch.testing.assert_close(dense(matvec, dimension), exact[count:, count:], rtol=1e-9, atol=1e-10)


def test_loss_and_gradient_are_those_of_autograd():
    model = small_network("GroupNorm")
    images, labels = images_and_labels()
    loss, gradient = loss_and_gradient(model, [(images[:4], labels[:4]), (images[4:], labels[4:])])
    exact = F.cross_entropy(model(images), labels)
    parts = torch.autograd.grad(exact, list(model.parameters()))
    assert loss == pytest.approx(exact.item(), rel=1e-12)
    torch.testing.assert_close(gradient, torch.cat([part.reshape(-1) for part in parts]))


def test_kept_graphs_serve_every_product_and_walk_through_the_batches():
    model = small_network("BatchNorm").eval()
    images, labels = images_and_labels()
    walks = []

    class Batches:
        def __iter__(self):
            yield from [(images[:4], labels[:4]), (images[4:], labels[4:])]
            walks.append("walk")

    matvec, dimension = hessian_matvec(model, Batches(), keep_graphs=True)
    exact = dense_hessian(model, images, labels)
    for count in range(1, 4):
        vector = torch.randn(dimension, dtype=torch.float64)
        torch.testing.assert_close(matvec(vector), exact @ vector, rtol=1e-9, atol=1e-10)
        assert len(walks) == count


def test_a_model_that_changes_while_its_graphs_are_kept_is_noticed():
    model = small_network("BatchNorm").eval()
    matvec, dimension = hessian_matvec(model, [images_and_labels()], keep_graphs=True)
    vector = torch.randn(dimension, dtype=torch.float64)
    matvec(vector)
    with torch.no_grad():
        model[-1].weight.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        matvec(vector)


def test_gauss_newton_matrices_have_no_graphs_to_keep():
    with pytest.raises(ValueError, match="keep_graphs"):
        hessian_matvec(small_network("Plain"), [images_and_labels()], curvature="ggn", keep_graphs=True)


def test_a_generator_of_batches_serves_every_product():
    images, labels = images_and_labels()
    model = small_network("LayerNorm")
    matvec, dimension = hessian_matvec(model, ((images[i : i + 2], labels[i : i + 2]) for i in (0, 2, 4)))
    vector = torch.randn(dimension, dtype=torch.float64)
    torch.testing.assert_close(matvec(vector), hessian_matvec(model, [(images, labels)])[0](vector))
    torch.testing.assert_close(matvec(vector), matvec(vector))


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
@pytest.mark.parametrize("is_training", [True, False])
@pytest.mark.parametrize(
    "options", [{"curvature": "hessian"}, {"curvature": "ggn"}, {"keep_graphs": True}], ids=["hessian", "ggn", "kept"]
)
def test_the_model_is_as_it_was(bn_mode, is_training, options):
    model = build_model("vgg", norm_type="BatchNorm", num_classes=4).train(is_training)
    calls = []
    model.blocks[0].register_forward_hook(lambda *_: calls.append("hook"))
    model.classifier.weight.grad = torch.ones_like(model.classifier.weight)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    versions = [tensor._version for tensor in model.state_dict(keep_vars=True).values()]
    modules = [(name, type(module), module.training) for name, module in model.named_modules()]
    images, labels = images_and_labels(4, 3, 8, 4)
    batches = [(images.float(), labels)]
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
    model = build_model("vgg", norm_type="BatchNorm", num_classes=4)
    images, labels = images_and_labels(4, 3, 8, 4)
    vector = torch.randn(sum(p.numel() for p in model.parameters()))
    without = hessian_matvec(model, [(images.float(), labels)])[0](vector)
    recorder = ProbeRecorder(model)
    recorded = hessian_matvec(model, [(images.float(), labels)])[0](vector)
    assert torch.equal(without, recorded)
    assert not recorder.iterations


def test_a_product_has_the_type_of_its_vector():
    model = build_model("vgg", norm_type="LayerNorm", num_classes=4)
    images, labels = images_and_labels(4, 3, 8, 4)
    matvec, dimension = hessian_matvec(model, [(images, labels)])
    assert matvec(torch.ones(dimension, dtype=torch.float64)).dtype == torch.float64
    assert matvec(torch.ones(dimension)).dtype == torch.float32


def test_low_precision_products_are_off_inside_and_back_after():
    torch.set_float32_matmul_precision("medium")
    try:
        with full_float32():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cudnn.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


@pytest.mark.parametrize(
    "options", [{"curvature": "hessian"}, {"curvature": "ggn"}, {"keep_graphs": True}], ids=["hessian", "ggn", "kept"]
)
def test_the_memory_of_a_product_is_foretold(options):
    batch = torch.randn(4, 50, dtype=torch.float64), torch.arange(4)
    bytes_of_width = {}
    for width in (100, 1000):
        layers = nn.Linear(50, width), nn.Tanh(), nn.Linear(width, 4)
        model = nn.Sequential(*layers).double()
        bytes_of_width[width] = bytes_per_sample(model, batch, **options)
    # What tanh gave and its tangent must be kept, 8 bytes each; nothing needs ten copies of them.
    assert 2 * 900 * 8 <= bytes_of_width[1000] - bytes_of_width[100] <= 10 * 900 * 8


@pytest.mark.parametrize(
    "options", [{"loss": "hinge"}, {"curvature": "fisher"}, {"bn_mode": "frozen"}], ids=["loss", "curvature", "bn_mode"]
)
def test_unknown_names_are_refused(options):
    with pytest.raises(ValueError, match=next(iter(options.values()))):
        hessian_matvec(small_network("Plain"), [images_and_labels()], **options)


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        (lambda images, labels: (images, labels), "list of pairs"),
        (lambda images, labels: [(images.to(torch.uint8), labels)], "floating-point"),
        (lambda images, labels: [(images, labels.double())], "whole ones"),
    ],
    ids=["no list", "bytes", "floats as labels"],
)
def test_what_is_no_batch_is_refused(batches, words):
    def product():
        matvec, dimension = hessian_matvec(small_network("Plain"), batches(*images_and_labels()))
        return matvec(torch.zeros(dimension))

    with pytest.raises(ValueError, match=words):
        product()


def test_labels_may_be_any_whole_numbers():
    images, labels = images_and_labels()
    model, products = small_network("Plain"), []
    for each in (labels, labels.int()):
        matvec, dimension = hessian_matvec(model, [(images, each)])
        products.append(matvec(torch.ones(dimension)))
    assert torch.equal(*products)


def test_a_seed_is_no_generator():
    with pytest.raises(TypeError, match="Generator"):
        spectrum(lambda v: v, 4, 1, 2, 0)


def test_no_batches_and_wrong_lengths_are_refused():
    matvec, dimension = hessian_matvec(small_network("Plain"), [])
    with pytest.raises(ValueError, match="no batches"):
        matvec(torch.zeros(dimension))
    with pytest.raises(ValueError, match="shape"):
        matvec(torch.zeros(dimension + 1))
    with pytest.raises(ValueError, match="no trainable"):
        hessian_matvec(nn.ReLU(), [images_and_labels()])


@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
@pytest.mark.parametrize("name", NETWORKS)
def test_the_copy_is_the_same_function_of_the_same_parameters(name, norm_type):
    model = network(name, norm_type).eval()
    images, _ = images_and_labels(4, 3, 8, 4)
    copy = derivative_copy(model)
    assert {id(p) for p in copy.parameters()} == {id(p) for p in model.parameters()}
    assert not any(left is right for left in copy.modules() for right in model.modules())
    torch.testing.assert_close(copy(images), model(images), rtol=1e-8, atol=1e-8)


@pytest.mark.parametrize(("name", "folded"), [("vgg", 10), ("resnet-56", 57), ("resnet-56 preact", 27), ("vit", 0)])
def test_convolutions_take_in_the_norm_behind_them(name, folded):
    copy = derivative_copy(build_model(norm_type="BatchNorm", num_classes=4, **NETWORKS[name]))
    assert sum(isinstance(module, FoldedConv2d) for module in copy.modules()) == folded


def test_a_peer_computes_the_same_products():
    peer = pytest.importorskip("curvlinops")
    model = small_network("BatchNorm").eval()
    images, labels = images_and_labels()
    batches = [(images[:4], labels[:4]), (images[4:], labels[4:])]
    parameters = list(model.parameters())
    for curvature, operator in (("hessian", peer.HessianLinearOperator), ("ggn", peer.GGNLinearOperator)):
        theirs = operator(model, nn.CrossEntropyLoss(), parameters, batches)
        matvec, dimension = hessian_matvec(model, batches, curvature=curvature)
        vector = torch.randn(dimension, dtype=torch.float64)
        torch.testing.assert_close(matvec(vector), theirs @ vector, rtol=1e-9, atol=1e-11)


# Lanczos


def test_all_steps_find_all_eigenvalues():
    eigenvalues = torch.linspace(-3, 8, 30, dtype=torch.float64) ** 3
    matrix, basis = symmetric(eigenvalues)
    start = torch.randn(30, dtype=torch.float64)
    nodes, weights = lanczos(lambda v: matrix @ v, start, 30)
    torch.testing.assert_close(nodes, eigenvalues, rtol=1e-10, atol=1e-9)
    torch.testing.assert_close(weights, (basis.T @ (start / start.norm())) ** 2, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_quadrature_is_exact_for_polynomials_up_to_its_degree(steps):
    matrix, _ = symmetric(torch.randn(40, dtype=torch.float64))
    start = torch.randn(40, dtype=torch.float64)
    unit = start / start.norm()
    nodes, weights = lanczos(lambda v: matrix @ v, start, steps)
    assert len(nodes) == steps
    assert weights.sum().item() == pytest.approx(1, abs=1e-14)
    assert (weights * nodes).sum().item() == pytest.approx((unit @ matrix @ unit).item(), abs=1e-12)
    for degree in range(2 * steps):
        exact = unit @ torch.linalg.matrix_power(matrix, degree) @ unit
        torch.testing.assert_close((weights * nodes**degree).sum(), exact, rtol=1e-8, atol=1e-8)


def test_from_two_steps_on_the_second_moment_is_the_length_of_the_product():
    matrix, _ = symmetric(torch.randn(40, dtype=torch.float64))
    start = rademacher(40, torch.Generator().manual_seed(0))
    for steps in (2, 3, 10):
        nodes, weights = lanczos(lambda v: matrix @ v, start, steps)
        assert 40 * (weights * nodes**2).sum().item() == pytest.approx((matrix @ start).square().sum().item())


def test_a_degenerate_spectrum_ends_the_krylov_space():
    eigenvalues = torch.tensor([2.0] * 10 + [-1.0] * 20 + [7.0], dtype=torch.float64)
    matrix, _ = symmetric(eigenvalues)
    nodes, weights = lanczos(lambda v: matrix @ v, torch.randn(31, dtype=torch.float64), 31)
    torch.testing.assert_close(nodes, torch.tensor([-1.0, 2.0, 7.0], dtype=torch.float64))
    assert weights.sum().item() == pytest.approx(1)


def test_rank_one():
    direction = torch.randn(50, dtype=torch.float64)
    start = torch.randn(50, dtype=torch.float64)
    nodes, weights = lanczos(lambda v: direction * (direction @ v), start, 20)
    overlap = (direction @ start) ** 2 / (direction.square().sum() * start.square().sum())
    torch.testing.assert_close(
        nodes, torch.stack([torch.zeros_like(overlap), direction.square().sum()]), atol=1e-12, rtol=1e-12
    )
    torch.testing.assert_close(weights, torch.stack([1 - overlap, overlap]))


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-30, 1e30])
def test_a_multiple_of_the_identity_has_one_node(value):
    nodes, weights = lanczos(lambda v: value * v, torch.randn(10, dtype=torch.float64), 5)
    assert nodes.tolist() == pytest.approx([value], rel=1e-14)
    assert weights.tolist() == [1.0]


def test_more_steps_than_dimensions():
    matrix, _ = symmetric(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    nodes, _ = lanczos(lambda v: matrix @ v, torch.ones(3, dtype=torch.float64), 50)
    assert len(nodes) <= 3


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_the_basis_is_orthogonal_to_machine_precision(dtype, bound):
    eigenvalues = torch.cat([torch.logspace(-6, 0, 190, dtype=torch.float64), torch.arange(1, 11).double() * 100])
    matrix = symmetric(eigenvalues)[0].to(dtype)
    basis = krylov(lambda v: matrix @ v, torch.randn(200, dtype=dtype), 120).basis
    assert (basis @ basis.T - torch.eye(len(basis), dtype=dtype)).abs().max() < bound


def test_an_eigenvalue_lies_within_the_residual_of_a_node():
    eigenvalues = torch.cat([torch.randn(195, dtype=torch.float64), torch.tensor([10.0, 12, 20, 21, -6])])
    matrix, _ = symmetric(eigenvalues)
    for steps in (3, 10, 30):
        nodes, _, residuals = krylov(lambda v: matrix @ v, torch.randn(200, dtype=torch.float64), steps).quadrature()
        distances = (nodes[:, None] - eigenvalues).abs().min(1).values
        assert (distances <= residuals + 1e-12).all()


def test_a_bad_start_and_a_bad_product_are_refused():
    for start in (torch.zeros(4), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="start"):
            lanczos(lambda v: v, start, 2)
    with pytest.raises(ValueError, match="step"):
        lanczos(lambda v: v, torch.ones(4), 0)
    with pytest.raises(ArithmeticError, match="not finite"):
        lanczos(lambda v: v * math.nan, torch.ones(4), 2)


# Spectrum


def estimate(matrix, probes, steps, seed=0, **options) -> Spectrum:
    generator = torch.Generator().manual_seed(seed)
    return spectrum(lambda v: matrix @ v, len(matrix), probes, steps, generator, **options)


def indefinite(dimension=60):
    eigenvalues = torch.cat([torch.randn(dimension - 4, dtype=torch.float64), torch.tensor([30.0, 20, 15, -9])])
    return symmetric(eigenvalues)[0], eigenvalues


@pytest.mark.parametrize(("probes", "trace_probes"), [(12, 0), (2, 10)])
def test_standard_errors_cover_the_truth(probes, trace_probes):
    matrix, eigenvalues = indefinite()
    exact = {
        "trace": eigenvalues.sum().item(),
        "eigen_mean": eigenvalues.mean().item(),
        "eigen_variance": eigenvalues.var(correction=0).item(),
    }
    deviations = {name: [] for name in exact}
    for seed in range(400):
        found = estimate(matrix, probes, 2, seed, trace_probes=trace_probes)
        for name, value in exact.items():
            deviations[name].append((getattr(found, name) - value) / getattr(found, f"{name}_standard_error"))
    for name, values in deviations.items():
        values = torch.tensor(values).abs()
        within = [(values < bound).double().mean().item() for bound in (1, 3)]
        # Student's t with 11 degrees of freedom: 66 % and 98.8 %; 400 seeds leave ±2.4 % and ±0.6 % (s.d.).
        assert 0.57 < within[0] < 0.76, name
        # The second moment's estimates lean to one side, so that their errors are somewhat too small.
        assert within[1] > (0.94 if name == "eigen_variance" else 0.965), name


def test_probes_are_added_until_the_error_of_the_trace_is_small_enough():
    matrix, eigenvalues = indefinite()
    exact, deviations, expected = eigenvalues.sum().item(), [], []
    for seed in range(300):
        goal = {"trace_probes": 6, "trace_error": 0.1, "most_probes": 10_000, "expect": expected.append}
        found = estimate(matrix, 2, 3, seed, **goal)
        assert found.trace_standard_error <= 0.1 * abs(found.trace)
        assert expected[-1] == found.products == found.samples + 2 * 2
        first = estimate(matrix, 2, 3, seed, trace_probes=6)
        assert (found.samples == 8) == (first.trace_standard_error <= 0.1 * abs(first.trace))
        same = estimate(matrix, 2, 3, seed, trace_probes=found.samples - 2)
        assert (same.trace, same.samples) == (found.trace, found.samples)
        assert torch.equal(same.nodes, found.nodes)
        deviations.append(abs(found.trace - exact) / found.trace_standard_error)
    assert sum(deviation < 3 for deviation in deviations) > 0.95 * len(deviations)


def test_a_trace_of_zero_takes_the_most_probes():
    matrix, _ = symmetric(torch.tensor([3.0, -3, 1, -1, 0.5, -0.5], dtype=torch.float64))
    assert estimate(matrix, 1, 2, trace_probes=3, trace_error=0.01, most_probes=50).samples == 50
    assert estimate(torch.zeros(4, 4).double(), 1, 2, trace_probes=3, trace_error=0.01, most_probes=50).samples == 4
    with pytest.raises(ValueError, match="most_probes"):
        estimate(matrix, 1, 2, trace_error=0.01)
    with pytest.raises(ValueError, match="positive"):
        estimate(matrix, 1, 2, trace_error=0.0, most_probes=9)


def test_the_estimates_are_right_on_average():
    matrix, eigenvalues = indefinite()
    found = [estimate(matrix, 2, 2, seed) for seed in range(2000)]
    for name, exact in (("trace", eigenvalues.sum()), ("eigen_variance", eigenvalues.var(correction=0))):
        values = torch.tensor([getattr(one, name) for one in found], dtype=torch.float64)
        assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(len(values)), name


def test_the_trace_is_that_of_nodes_and_weights():
    matrix, _ = indefinite()
    found = estimate(matrix, 5, 7)
    assert found.nodes.shape == found.weights.shape == (5, 7)
    assert found.trace == pytest.approx(60 * (found.weights * found.nodes).sum(1).mean().item())
    assert found.products == 35


def test_extreme_eigenvalues_and_their_residuals():
    matrix, eigenvalues = indefinite()
    found = estimate(matrix, 2, 40)
    assert found.max_eigen == pytest.approx(30, abs=1e-8)
    assert found.min_eigen == pytest.approx(-9, abs=1e-8)
    assert 0 <= found.max_eigen_residual < 1e-6
    assert 0 <= found.min_eigen_residual < 1e-6
    early = estimate(matrix, 2, 4)
    assert (eigenvalues - early.max_eigen).abs().min() <= early.max_eigen_residual
    assert early.max_eigen <= 30 + 1e-9


def test_a_diagonal_matrix_is_exact_with_one_probe_and_block_by_block():
    diagonal = torch.arange(12, dtype=torch.float64)
    found = spectrum(
        lambda v: diagonal * v, 12, 2, 3, torch.Generator().manual_seed(0), blocks={"first": 5, "second": 7}
    )
    assert found.trace == pytest.approx(66)
    assert found.trace_standard_error == pytest.approx(0, abs=1e-12)
    assert found.block_traces["first"] == pytest.approx((10, 0), abs=1e-12)
    assert found.block_traces["second"] == pytest.approx((56, 0), abs=1e-12)
    assert found.eigen_variance == pytest.approx(diagonal.var(correction=0).item())


def test_block_traces_add_up_and_are_unbiased():
    matrix, _ = indefinite()
    found = estimate(matrix, 1, 1, trace_probes=3000, blocks={"a": 10, "b": 20, "c": 30})
    assert sum(trace for trace, _ in found.block_traces.values()) == pytest.approx(found.trace)
    for (trace, error), block in zip(found.block_traces.values(), matrix.diagonal().split([10, 20, 30]), strict=True):
        assert abs(trace - block.sum()) < 4 * error


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_multiple_of_the_identity_has_no_variance(value):
    found = estimate(value * torch.eye(20, dtype=torch.float64), 3, 10)
    assert found.trace == pytest.approx(20 * value)
    assert found.eigen_variance == pytest.approx(0, abs=1e-12)
    assert (found.max_eigen, found.min_eigen) == pytest.approx((value, value))
    assert found.weights.sum(1).tolist() == pytest.approx([1, 1, 1])


def test_one_probe_has_no_standard_error():
    found = estimate(indefinite()[0], 1, 5)
    assert math.isnan(found.trace_standard_error)
    assert math.isnan(found.eigen_variance_standard_error)
    assert math.isfinite(found.eigen_variance)


def test_the_generator_decides():
    matrix, _ = indefinite()
    assert estimate(matrix, 2, 5, seed=1).trace == estimate(matrix, 2, 5, seed=1).trace
    assert estimate(matrix, 2, 5, seed=1).trace != estimate(matrix, 2, 5, seed=2).trace


def test_bad_requests_are_refused():
    matrix, _ = indefinite()
    with pytest.raises(ValueError, match="probe"):
        estimate(matrix, 0, 5)
    with pytest.raises(ValueError, match="blocks"):
        estimate(matrix, 1, 5, blocks={"a": 3})


def test_the_measures_of_a_network_are_those_of_its_dense_hessian():
    model = small_network("LayerNorm").eval()
    images, labels = images_and_labels()
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(model, images, labels))
    matvec, dimension = hessian_matvec(model, [(images, labels)])
    found = spectrum(matvec, dimension, 2, 60, torch.Generator().manual_seed(0), trace_probes=200)
    assert abs(found.trace - eigenvalues.sum().item()) < 3 * found.trace_standard_error
    assert abs(found.eigen_variance - eigenvalues.var(correction=0).item()) < 3 * found.eigen_variance_standard_error
    assert found.max_eigen == pytest.approx(eigenvalues.max().item(), rel=1e-6)
    assert found.min_eigen == pytest.approx(eigenvalues.min().item(), rel=1e-6)

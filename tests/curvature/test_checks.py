"""Models and loaders that violate an assumption: the right product, or an error that names the assumption."""

import copy
import types
from typing import Any

import pytest
import torch
from curvature_helpers import PRODUCTS, double_backward, images_and_labels, perturbed, two_layers
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from normstudy.curvature import bytes_per_sample, hessian_matvec, layer_sizes, loss_and_gradient, spectrum

IMAGES, LABELS = images_and_labels(12)
OPTIONS = {"curvature": "hessian"}, {"curvature": "ggn"}, {"keep_graphs": True}


def torch_layers():
    """Return a network of PyTorch's own layers, with a batch norm and a layer norm, in training mode."""
    layers = [nn.Conv2d(2, 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.Flatten(), nn.LayerNorm(27), nn.Linear(27, 3)]
    return perturbed(nn.Sequential(*layers)).train()


def known_layers():
    """Return a network whose classes all have a differentiable JVP, so that forward mode serves it."""
    return perturbed(nn.Sequential(nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten(), nn.Linear(27, 3)))


def vector_for(model):
    return torch.randn(sum(p.numel() for p in model.parameters() if p.requires_grad), dtype=torch.float64)


def products(model, reference, bn_mode="eval"):
    """Return the products of a model and of its reference for every option, and check that nothing has changed."""
    state = copy.deepcopy(reference.state_dict())
    vector = vector_for(reference)
    for options in OPTIONS:
        expected = hessian_matvec(reference, [(IMAGES, LABELS)], bn_mode=bn_mode, **options)[0](vector)
        yield hessian_matvec(model, [(IMAGES, LABELS)], bn_mode=bn_mode, **options)[0](vector), expected
    assert all(torch.equal(state[name], value) for name, value in reference.state_dict().items())


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
@pytest.mark.parametrize("build", [torch_layers, known_layers])
def test_a_compiled_model_has_the_curvature_of_the_model_inside(build, bn_mode):
    model = build()
    compiled: Any = torch.compile(model, backend="eager")
    for product, expected in products(compiled, model, bn_mode):
        assert torch.equal(product, expected)
    in_place = copy.deepcopy(model)
    in_place.compile(backend="eager")
    for product, expected in products(in_place, model, bn_mode):
        assert_close(product, expected)
    assert list(layer_sizes(compiled)) == list(layer_sizes(model))


def test_a_compiled_part_of_a_model_runs_uncompiled():
    model = torch_layers()
    part = copy.deepcopy(model)
    part[5] = torch.compile(part[5], backend="eager")
    part.eval()(IMAGES)
    part.train()
    for product, expected in products(part, model):
        assert_close(product, expected)


@pytest.mark.parametrize("is_compiled", [False, True])
def test_wrappers_are_removed(is_compiled):
    model = torch_layers()
    inner: Any = torch.compile(model) if is_compiled else model
    wrapper = nn.DataParallel
    for product, expected in products(wrapper(inner), model):
        assert torch.equal(product, expected)


@pytest.mark.parametrize("bn_mode", ["eval", "train"])
@pytest.mark.parametrize("build", [torch_layers, known_layers])
def test_a_forward_replaced_on_the_instance_is_followed(build, bn_mode):
    model = build()
    wrapped = copy.deepcopy(model)
    forward = wrapped.forward
    wrapped.forward = types.MethodType(lambda self, x: 1.0 * forward(x), wrapped)
    for product, expected in products(wrapped, model, bn_mode):
        assert_close(product, expected)
        assert product.norm() > 0


class Bound(nn.Module):
    """A network that stores a bound method of a layer."""

    def __init__(self, layers):
        super().__init__()
        self.layers = layers
        self.call = layers.forward

    def forward(self, x):
        return self.call(x)


@pytest.mark.parametrize("build", [torch_layers, known_layers])
def test_a_stored_bound_method_is_followed(build):
    model = build()
    for product, expected in products(Bound(copy.deepcopy(model)), model, "train"):
        assert_close(product, expected)


def test_a_stored_bound_method_is_followed_even_if_the_class_declares_a_forward_mode(monkeypatch):
    monkeypatch.setattr(Bound, "has_differentiable_jvp", lambda self: True, raising=False)
    model = known_layers()
    with pytest.warns(UserWarning, match="using two backward passes"):
        found = list(products(Bound(copy.deepcopy(model)), model))
    for product, expected in found:
        assert_close(product, expected)


def test_a_forward_that_is_bound_to_another_model_is_refused():
    model = torch_layers()
    other = copy.deepcopy(model)
    other.forward = model.forward
    with pytest.raises(ValueError, match="do not depend on any trainable parameter"):
        hessian_matvec(other, [(IMAGES, LABELS)])


def test_unused_parameters_are_named_and_have_zero_rows():
    model = known_layers()
    model.extra = nn.Linear(2, 2).double()
    model.forward = lambda x: model[3](model[2](model[1](model[0](x))))
    with pytest.warns(UserWarning, match=r"2 parameters do not affect the outputs.*extra\.weight"):
        matvec, _ = hessian_matvec(model, [(IMAGES, LABELS)])
    assert matvec(vector_for(model))[-6:].abs().max() == 0


class Dropping(nn.Module):
    """A network that calls F.dropout without training=self.training."""

    def __init__(self):
        super().__init__()
        self.layers = known_layers()

    def forward(self, x):
        return self.layers(F.dropout(x, 0.3))


@PRODUCTS
def test_a_model_that_is_not_deterministic_is_refused(options):
    with pytest.raises(ValueError, match="not deterministic"):
        hessian_matvec(Dropping(), [(IMAGES[:1], LABELS[:1])], **options)
    with pytest.raises(ValueError, match=r"not deterministic|depend on the other samples"):
        hessian_matvec(Dropping(), [(IMAGES, LABELS)], **options)


class Augmenting(TensorDataset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn_like(image), label


@PRODUCTS
def test_a_loader_that_augments_is_refused(options):
    loader = DataLoader(Augmenting(IMAGES, LABELS), batch_size=4)
    with pytest.raises(ValueError, match="two passes over the batches give different samples"):
        hessian_matvec(known_layers(), loader, **options)


def test_a_loader_may_shuffle_where_the_order_does_not_matter():
    model, vector = torch_layers(), vector_for(torch_layers())
    shuffled = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4, shuffle=True)
    expected = hessian_matvec(model, [(IMAGES, LABELS)])[0](vector)
    assert_close(hessian_matvec(model, shuffled)[0](vector), expected)
    for options in {"bn_mode": "train"}, {"keep_graphs": True}:
        with pytest.raises(ValueError, match="another order in each pass"):
            hessian_matvec(model, shuffled, **options)
    in_order = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)
    assert_close(hessian_matvec(model, in_order, keep_graphs=True)[0](vector), expected)


def test_batches_with_batch_statistics_have_equal_sizes():
    model = torch_layers()
    images, labels = images_and_labels(130)
    with pytest.raises(ValueError, match=r"2 to 128 samples.*130 samples divide into batches of 65"):
        hessian_matvec(model, [(images[:128], labels[:128]), (images[128:], labels[128:])], bn_mode="train")
    hessian_matvec(model, list(zip(images.split(65), labels.split(65), strict=True)), bn_mode="train")


def test_batch_statistics_that_change_nothing_are_named():
    with pytest.warns(UserWarning, match="bn_mode=train changes nothing"):
        hessian_matvec(known_layers(), [(IMAGES, LABELS)], bn_mode="train")


def test_a_model_with_batch_statistics_in_eval_mode_is_refused():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(50, track_running_stats=False), nn.Linear(50, 3)).double()
    with pytest.raises(ValueError, match="depend on the other samples of its batch"):
        hessian_matvec(model, [(IMAGES, LABELS)])


@pytest.mark.parametrize("is_decorated", [False, True])
def test_a_model_with_its_own_autocast_is_refused(is_decorated):
    model = known_layers().float()
    forward = model.forward
    if is_decorated:
        model.forward = torch.autocast("cpu", torch.bfloat16)(forward)
    else:

        def in_float32(x):
            with torch.autocast("cpu", torch.bfloat16):
                return forward(x).float()

        model.forward = in_float32
    with pytest.raises(ValueError, match=r"the model computes in torch\.bfloat16"):
        hessian_matvec(model, [(IMAGES.float(), LABELS)])


def test_float32_inside_a_float64_model_is_refused():
    model = known_layers()
    forward = model.forward
    model.forward = lambda x: torch.softmax(forward(x).float(), 1).double() * 3
    with pytest.raises(ValueError, match=r"the model computes in torch\.float32"):
        hessian_matvec(model, [(IMAGES, LABELS)])


class _Square(torch.autograd.Function):
    """x², whose backward pass detaches x, so that its second derivative is missing."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0].detach()


class _Rounded(torch.autograd.Function):
    """A straight-through estimator."""

    @staticmethod
    def forward(ctx, x):
        return torch.round(x)

    @staticmethod
    def backward(ctx, gradient):
        return gradient


class _Once(_Square):
    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return 2 * gradient * ctx.saved_tensors[0]


class Custom(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layers, self.function = known_layers(), function

    def forward(self, x):
        return self.function.apply(self.layers(x))


@pytest.mark.parametrize(
    ("function", "curvature", "words"),
    [
        (_Square, "hessian", "the product is not the derivative of the gradient"),
        (_Rounded, "hessian", "the product is not the derivative of the gradient"),
        (_Rounded, "ggn", "the gradient is wrong"),
        (_Once, "hessian", "differentiated twice|not the derivative of the gradient"),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_custom_function_with_wrong_derivatives_is_refused(function, curvature, words, dtype):
    with pytest.raises(ValueError, match=words):
        hessian_matvec(Custom(function).to(dtype), [(IMAGES, LABELS)], curvature=curvature)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_a_loss_function_with_wrong_derivatives_is_refused(curvature):
    def loss(outputs, labels):
        squares = _Square.apply(outputs - F.one_hot(labels, 3))
        return (squares * squares.detach()).sum(1)

    with pytest.raises(ValueError, match="the loss function has wrong derivatives"):
        hessian_matvec(known_layers(), [(IMAGES, LABELS)], loss, curvature=curvature)


def test_the_gauss_newton_matrix_needs_first_derivatives_only():
    class Plain(Custom):
        def forward(self, x):
            return self.layers(x) ** 2

    model, reference = Custom(_Square), Plain(_Square)
    reference.load_state_dict(model.state_dict())
    vector = vector_for(model)
    expected = hessian_matvec(reference, [(IMAGES, LABELS)], curvature="ggn")[0](vector)
    assert_close(hessian_matvec(model, [(IMAGES, LABELS)], curvature="ggn")[0](vector), expected)


def test_a_fitted_network_is_not_taken_for_a_wrong_one():
    """At a loss of 1e-9, rounding dominates the derivatives of cross-entropy."""
    model = two_layers("BatchNorm").eval()
    with torch.no_grad():
        model.get_parameter("7.weight").mul_(1e3)
    labels = model(IMAGES).argmax(1)
    for dtype in torch.float64, torch.float32:
        model.to(dtype)
        loss, _ = loss_and_gradient(model, [(IMAGES, labels)])
        assert loss < 1e-6
        for options in OPTIONS:
            hessian_matvec(model, [(IMAGES, labels)], **options)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: torch.jit.trace(known_layers(), IMAGES), "torch.jit"),
        (lambda: nn.Sequential(torch.jit.script(known_layers())), "its module 0 is compiled by torch.jit"),
        (lambda: known_layers().half(), "float16"),
        (lambda: known_layers().bfloat16(), "bfloat16"),
        (lambda: nn.Sequential(nn.LazyLinear(3)), "has no shape yet"),
        (lambda: nn.Sequential(nn.Linear(2, 3, device="meta")), "on meta"),
        (lambda: nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 3).double()), "differ in dtype or device"),
        (lambda: known_layers().requires_grad_(False), "no trainable parameters"),
    ],
)
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_models_that_cannot_be_measured_are_refused(build, words):
    for measure in hessian_matvec, loss_and_gradient:
        with pytest.raises(ValueError, match=words):
            measure(build(), [(IMAGES, LABELS)])


def test_sparse_gradients_are_refused():
    model = nn.Sequential(nn.Embedding(5, 4, sparse=True), nn.Flatten(), nn.Linear(8, 3))
    with pytest.raises(ValueError, match=r"sparse"):
        hessian_matvec(model, [(torch.randint(0, 5, (6, 2)), torch.arange(6) % 3)])


def test_a_traced_graph_is_measured():
    model = known_layers()
    for product, expected in products(torch.fx.symbolic_trace(copy.deepcopy(model)), model):
        assert_close(product, expected)


def test_images_in_bytes_are_refused_with_a_reason():
    with pytest.raises(ValueError, match="scaled as in training"):
        hessian_matvec(known_layers(), [((255 * IMAGES).to(torch.uint8), LABELS)])


def test_infinite_inputs_are_refused():
    images = IMAGES.clone()
    images[0] = float("inf")
    with pytest.raises(ValueError, match="not finite"):
        hessian_matvec(known_layers(), [(images, LABELS)])


def test_the_memory_of_a_sample_needs_four():
    with pytest.raises(ValueError, match="too small to measure the memory"):
        bytes_per_sample(known_layers(), (IMAGES[:2], LABELS[:2]))
    assert bytes_per_sample(known_layers(), (IMAGES[:4], LABELS[:4])) > 0


def test_a_model_that_counts_its_calls_in_a_buffer_is_as_it_was():
    class Counting(nn.Module):
        calls: torch.Tensor

        def __init__(self):
            super().__init__()
            self.layers = known_layers()
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x):
            self.calls.add_(1)
            return self.layers(x)

    model: Any = Counting().double()
    matvec, _ = hessian_matvec(model, [(IMAGES, LABELS)])
    matvec(vector_for(model))
    assert model.calls == 0
    assert model.training


def test_the_checks_leave_random_numbers_alone():
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    matvec, dimension = hessian_matvec(torch_layers_without_random(), [(IMAGES, LABELS)])
    spectrum(matvec, dimension, 1, 2, torch.Generator().manual_seed(0))
    assert torch.equal(torch.rand(3), expected)


def torch_layers_without_random():
    with torch.random.fork_rng():
        return torch_layers()


def test_a_foreign_network_has_the_product_of_two_backward_passes():
    model = torch_layers().eval()
    vector = vector_for(model)
    matvec, _ = hessian_matvec(model, [(IMAGES, LABELS)])
    assert_close(matvec(vector), double_backward(model, IMAGES, LABELS, vector))

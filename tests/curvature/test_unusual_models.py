"""Unusual models, losses and loaders: the product of a float64 oracle, or an error; and never a change of the model."""

import copy
from typing import Any

import pytest
import torch
from curvature_helpers import dense, double_backward, images_and_labels
from torch import nn
from torch.nn import functional as F
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint
from torch.utils.data import DataLoader, TensorDataset

from normstudy.curvature import ImageBlocks, hessian_matvec, loss_and_gradient, parameter_scales

IMAGES, LABELS = images_and_labels(12)
DOUBLE = torch.float64
OPTIONS = pytest.mark.parametrize(
    "options", [{}, {"curvature": "ggn"}, {"keep_graphs": True}], ids=["hessian", "ggn", "kept"]
)


def flat_network(width=50, classes=3):
    return nn.Sequential(nn.Flatten(), nn.Linear(width, 4), nn.Tanh(), nn.Linear(4, classes)).double()


def vector_for(model):
    return torch.randn(sum(p.numel() for p in model.parameters()), dtype=DOUBLE)


class TwoNames(nn.Module):
    """One module under two names, as in models with a shared embedding or a handle on a layer of the backbone."""

    def __init__(self):
        super().__init__()
        self.backbone = flat_network()
        self.first = self.backbone[1]

    def forward(self, x):
        return self.backbone(x)


class Twice(nn.Module):
    """One layer that is used twice."""

    def __init__(self):
        super().__init__()
        layer = nn.Linear(50, 50)
        self.layers = nn.Sequential(nn.Flatten(), layer, nn.Tanh(), layer, nn.Tanh(), nn.Linear(50, 3))

    def forward(self, x):
        return self.layers(x)


@pytest.mark.parametrize("build", [TwoNames, Twice])
def test_a_module_under_two_names(build):
    model = build().double()
    before = {name: (id(value), value.clone()) for name, value in model.named_parameters()}
    vector = vector_for(model)
    matvec, _ = hessian_matvec(model, [(IMAGES, LABELS)])
    assert_close(matvec(vector), double_backward(model, IMAGES, LABELS, vector))
    for name, value in model.named_parameters():
        assert before[name][0] == id(value)
        assert torch.equal(before[name][1], value)


def test_a_gradient_hook_on_a_parameter_is_refused():
    model = flat_network()
    model.get_parameter("1.weight").register_hook(lambda gradient: gradient.clamp(-1e-3, 1e-3))
    for measure in hessian_matvec, loss_and_gradient:
        with pytest.raises(ValueError, match=r"the parameter 1.weight has a gradient hook"):
            measure(model, [(IMAGES, LABELS)])


class Focal(nn.Module):
    """A loss as people write it: a criterion of torch.nn inside, and an option reduction."""

    def __init__(self, reduction="mean"):
        super().__init__()
        self.reduction = reduction
        self.inner = nn.CrossEntropyLoss(reduction="none")

    def forward(self, outputs, labels):
        losses = self.inner(outputs, labels)
        losses = (1 - torch.exp(-losses)) ** 2 * losses
        return losses if self.reduction == "none" else losses.mean()


def test_losses_of_others_give_the_loss_of_each_sample_or_are_refused():
    model = flat_network()
    batches = [(IMAGES[:9], LABELS[:9]), (IMAGES[9:], LABELS[9:])]
    with pytest.raises(ValueError, match=r"Focal is not one of the losses of torch.nn.*reduction='none'"):
        hessian_matvec(model, batches, Focal())
    found = [
        hessian_matvec(model, each, Focal("none"))[0](torch.ones(219).double())
        for each in (batches, [(IMAGES, LABELS)])
    ]
    assert_close(*found)


class Subclass(nn.CrossEntropyLoss):
    def forward(self, outputs, labels):
        return super().forward(outputs, labels) + 0 * outputs.sum()


@pytest.mark.parametrize(
    ("loss", "targets", "words"),
    [
        (Subclass(), LABELS, "Subclass is not one of the losses"),
        (nn.CTCLoss(), LABELS, "CTCLoss is not one of the losses"),
        (lambda z, y: F.cross_entropy(z, y, reduction="none") / len(y), LABELS, "is divided by their number"),
        (
            lambda z, y: ((z - F.one_hot(y, 3)) * 1e-4 - z.mean(0) * 1e-4).square().sum(1),
            LABELS,
            "depends on the other",
        ),
        (lambda z, y: z.mean(1) - y.double()[:, None], LABELS, r"returns shape \(12, 12\)|returns shape \(4, 4\)"),
        (lambda z, y: F.cross_entropy(z, y, reduction="none", weight=torch.ones(4).double()), LABELS, "the loss fails"),
        (nn.SmoothL1Loss(), torch.rand(12, 1).double(), "would broadcast"),
    ],
)
@pytest.mark.parametrize("bn_mode", ["eval", "train"])
def test_losses_without_a_mean_over_batches_are_refused(loss, targets, words, bn_mode):
    if (bn_mode == "train" and "divided" in words) or (bn_mode == "train" and "depends" in words):
        pytest.skip("with batch statistics, samples are not independent in any case")
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(50), nn.Linear(50, 3)).double()
    with pytest.raises(ValueError, match=words):
        hessian_matvec(model, [(IMAGES, targets)], loss, bn_mode=bn_mode)


def test_a_loss_that_depends_on_the_parameters_is_refused():
    model = flat_network()

    def penalized(outputs, labels):
        penalty = torch.stack([p.square().sum() for p in model.parameters()]).sum()
        return F.cross_entropy(outputs, labels, reduction="none") + 0.1 * penalty

    with pytest.raises(ValueError, match="depends on parameters directly"):
        hessian_matvec(model, [(IMAGES, LABELS)], penalized)


def test_a_later_batch_of_another_shape_is_refused():
    model = flat_network(classes=1)
    targets = torch.rand(12, 1).double()
    matvec, dimension = hessian_matvec(model, [(IMAGES, targets), (IMAGES, targets[:, 0])], "mse")
    with pytest.raises(ValueError, match="would broadcast"):
        matvec(torch.ones(dimension).double())


def test_a_first_batch_of_one_sample_hides_nothing():
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(50, track_running_stats=False), nn.Linear(50, 3)).double()
    reshaped = nn.Sequential(
        nn.Flatten(), nn.Unflatten(1, (2, 25)), nn.BatchNorm1d(2, track_running_stats=False), nn.Flatten()
    )
    for each in model, nn.Sequential(reshaped, nn.Linear(50, 3)).double():
        with pytest.raises(ValueError, match=r"depend on the other samples|the model fails"):
            hessian_matvec(each, [(IMAGES[:1], LABELS[:1]), (IMAGES, LABELS)])


@pytest.mark.parametrize("change", ["data", "vector", "buffer"])
def test_a_model_that_changes_while_its_graphs_are_kept(change):
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(50), nn.Linear(50, 3)).double()
    matvec, dimension = hessian_matvec(model, [(IMAGES, LABELS)], keep_graphs=True)
    matvec(torch.ones(dimension).double())
    if change == "data":
        model.get_parameter("2.weight").data.add_(0.1)
    elif change == "vector":
        nn.utils.vector_to_parameters(torch.randn(dimension).double(), model.parameters())
    else:
        model.get_buffer("1.running_var").mul_(2)
    with pytest.raises(RuntimeError, match="has changed since"):
        matvec(torch.ones(dimension).double())


def test_parameters_that_are_replaced_are_noticed():
    model = flat_network()
    matvec, dimension = hessian_matvec(model, [(IMAGES, LABELS)])
    model.load_state_dict({name: 2 * value for name, value in model.state_dict().items()}, assign=True)
    with pytest.raises(RuntimeError, match="replaced by other tensors"):
        matvec(torch.ones(dimension).double())


def test_a_model_that_changes_its_inputs():
    class InPlace(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = flat_network()

        def forward(self, x):
            return self.layers(x.sub_(0.5).mul_(2))

    model, images = InPlace(), IMAGES.clone()
    vector = vector_for(model)
    expected = double_backward(model.layers, (IMAGES - 0.5) * 2, LABELS, vector)
    for keep_graphs in (False, True):
        matvec, _ = hessian_matvec(model, [(images, LABELS)], keep_graphs=keep_graphs)
        assert_close(matvec(vector), expected)
        assert torch.equal(images, IMAGES)


@pytest.mark.parametrize("dtype", [torch.int64, torch.float32])
def test_vectors_of_other_types(dtype):
    matvec, dimension = hessian_matvec(flat_network(), [(IMAGES, LABELS)])
    vector = torch.arange(dimension) % 3
    assert_close(matvec(vector.to(dtype)).double(), matvec(vector.double()), rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match="complex"):
        matvec(vector * 1j)


@OPTIONS
def test_networks_that_rest_on_kinks_are_measured(options):
    """Zero-initialized last layers, biases and images make pre-activations exactly 0."""
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4, 3)
    ).double()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "bias" in name or name.startswith("2."):
                parameter.zero_()
    images = IMAGES.clone()
    images[::2] = 0
    for loss in "cross_entropy", lambda z, y: F.relu(1 - z.gather(1, y[:, None])).squeeze(1):
        hessian_matvec(model, [(images, LABELS)], loss, **options)


@OPTIONS
def test_an_embedding_with_padding(options):
    model: Any = nn.Sequential(nn.Embedding(6, 4, padding_idx=0), nn.Flatten(), nn.Tanh(), nn.Linear(12, 3)).double()
    with torch.no_grad():
        model[0].weight[0] = 0.3
    tokens = torch.randint(0, 6, (8, 3))
    tokens[:, 2] = 0
    matvec, dimension = hessian_matvec(model, [(tokens, torch.arange(8) % 3)], **options)
    assert dense(matvec, dimension)[:4].abs().max() == 0


def test_an_embedding_that_renormalizes_its_weight_is_refused():
    with pytest.raises(ValueError, match="has max_norm"):
        hessian_matvec(nn.Sequential(nn.Embedding(6, 4, max_norm=1.0), nn.Flatten(), nn.Linear(8, 3)), [])


def test_a_loss_function_with_a_constant_in_float32():
    weights = torch.tensor([1.0, 2.0, 3.0])
    model = flat_network().float()
    with pytest.warns(UserWarning, match="could not be compared with finite differences"):
        hessian_matvec(model, [(IMAGES, LABELS)], lambda z, y: F.cross_entropy(z, y, weight=weights, reduction="none"))


@pytest.mark.parametrize("loss", [nn.MultiMarginLoss(), nn.MultiLabelSoftMarginLoss()])
def test_margin_losses(loss):
    targets = LABELS if isinstance(loss, nn.MultiMarginLoss) else F.one_hot(LABELS, 3)
    model, split = flat_network(), [(IMAGES[:5], targets[:5]), (IMAGES[5:], targets[5:])]
    in_one, in_two = (loss_and_gradient(model, batches, loss)[0] for batches in ([(IMAGES, targets)], split))
    assert in_one == pytest.approx(in_two)


def test_another_default_device():
    model = flat_network().float()
    with torch.device("meta"):
        matvec, dimension = hessian_matvec(model, [(IMAGES, LABELS)])
        hessian_matvec(model, [(IMAGES, LABELS)], curvature="ggn")
    assert matvec(torch.ones(dimension)).isfinite().all()


class Masked(nn.Module):
    def __init__(self, value):
        super().__init__()
        self.layers, self.value = flat_network(classes=5), value

    def forward(self, x):
        return self.layers(x).masked_fill(torch.arange(5) >= 3, self.value)


@pytest.mark.parametrize("value", [-1e4, -1e30, float("-inf")])
@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_masked_logits(value, curvature):
    torch.manual_seed(0)
    model: Any = Masked(value)
    vector = vector_for(model)
    matvec, _ = hessian_matvec(model, [(IMAGES, LABELS)], curvature=curvature)
    reduced: Any = nn.Sequential(*model.layers[:3], nn.Linear(4, 3)).double()
    with torch.no_grad():
        reduced[3].weight.copy_(model.layers[3].weight[:3])
        reduced[3].bias.copy_(model.layers[3].bias[:3])
    sizes = [50 * 4 + 4, 12, 8, 3, 2]
    first, weight, _, bias, _ = vector.split(sizes)
    kept = torch.cat([first, weight, bias])
    expected, _ = hessian_matvec(reduced, [(IMAGES, LABELS)], curvature=curvature)
    product = matvec(vector).split(sizes)
    assert_close(torch.cat([product[0], product[1], product[3]]), expected(kept))


@pytest.mark.parametrize("is_reentrant", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_gradient_checkpointing(is_reentrant, dtype):
    class Checkpointed(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = flat_network()

        def forward(self, x):
            hidden = checkpoint(self.layers[:3], x, use_reentrant=is_reentrant)
            return self.layers[3](hidden)

    model = Checkpointed().to(dtype)
    images = IMAGES.to(dtype).requires_grad_()
    if is_reentrant:
        with pytest.raises(ValueError, match=r"cannot be differentiated|not the derivative"):
            hessian_matvec(model, [(images, LABELS)])
        return
    vector = vector_for(model).to(dtype)
    expected = double_backward(model.layers, images, LABELS, vector)
    assert_close(hessian_matvec(model, [(images, LABELS)])[0](vector), expected, rtol=1e-4, atol=1e-5)


def test_inputs_that_cannot_be_cut_into_samples():
    class Attention(nn.Module):
        """Tokens (N, T, width) and a mask (T, T) with T = N."""

        def __init__(self):
            super().__init__()
            self.query, self.out = nn.Linear(4, 4).double(), nn.Linear(4, 3).double()

        def forward(self, x, mask):
            scores = (self.query(x) @ x.transpose(1, 2)).masked_fill(~mask, -1e9)
            return self.out((scores.softmax(-1) @ x).mean(1))

    model, x = Attention(), torch.randn(6, 6, 4).double()
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    hessian_matvec(model, [((x, mask), torch.arange(6) % 3)])

    class Fixed(nn.Module):
        def __init__(self):
            super().__init__()
            self.out = nn.Linear(50, 3).double()

        def forward(self, x):
            return self.out(x.reshape(12, 50))

    hessian_matvec(Fixed(), [(IMAGES, LABELS)])


def test_the_empirical_fisher_matrix_of_one_output():
    class Single(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = flat_network(classes=1)

        def forward(self, x):
            return self.layers(x)[:, 0]

    model, targets = Single(), torch.randn(12).double()
    rows = []
    for x, y in zip(IMAGES, targets, strict=True):
        parts = torch.autograd.grad((model(x[None]) - y).square().sum(), list(model.parameters()))
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    exact = torch.stack(rows).T @ torch.stack(rows) / 12
    matvec, dimension = hessian_matvec(model, [(IMAGES, targets)], "mse", curvature="empirical_fisher")
    assert_close(dense(matvec, dimension), exact)


def test_a_gauss_newton_matrix_needs_no_second_derivatives():
    model = nn.Sequential(nn.Conv2d(2, 3, 3), nn.Hardsigmoid(), nn.Flatten(), nn.Linear(27, 3)).double()
    with pytest.raises(ValueError, match="cannot be differentiated twice"):
        hessian_matvec(model, [(IMAGES, LABELS)])
    same: Any = copy.deepcopy(model)
    same[1] = nn.Sequential()
    same[1].forward = lambda x: F.relu6(x + 3) / 6
    vector = vector_for(model)
    expected = hessian_matvec(same, [(IMAGES, LABELS)], curvature="ggn")[0](vector)
    assert_close(hessian_matvec(model, [(IMAGES, LABELS)], curvature="ggn")[0](vector), expected)


@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_tensors_that_a_model_stores_are_as_they_were():
    class Storing(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = flat_network()
            self.last = torch.zeros(())

        def forward(self, x):
            self.last = self.layers(x)
            self.newest = self.last
            return self.last

    model = Storing()
    hessian_matvec(model, [(IMAGES, LABELS)])[0](vector_for(model))
    assert model.last.shape == ()
    assert not hasattr(model, "newest")
    copy.deepcopy(model)


def test_loaders_draw_no_random_numbers_of_the_caller():
    loader = DataLoader(TensorDataset(IMAGES, LABELS), batch_size=4)
    model = flat_network()
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    matvec, dimension = hessian_matvec(model, loader)
    matvec(torch.ones(dimension).double())
    assert torch.equal(torch.rand(3), expected)


def test_a_derivative_that_is_not_finite_is_named():
    class Norm(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = flat_network()

        def forward(self, x):
            return self.layers(x) * (0 * x).flatten(1).mul(self.layers[1].weight.sum()).norm(dim=1, keepdim=True)

    with pytest.raises(ValueError, match="not finite"):
        hessian_matvec(Norm(), [(IMAGES, LABELS)])


def test_the_weight_norm_of_pytorch_is_right_or_refused():
    """The second derivative of torch._weight_norm is wrong in PyTorch 2.14."""
    model = nn.Sequential(nn.Flatten(), nn.utils.parametrizations.weight_norm(nn.Linear(50, 3))).double()
    vector = vector_for(model)

    def loss_at(offset):
        start = torch.nn.utils.parameters_to_vector(model.parameters()).detach()
        nn.utils.vector_to_parameters(start + offset, model.parameters())
        loss = F.cross_entropy(model(IMAGES), LABELS)
        gradient = torch.cat([g.reshape(-1) for g in torch.autograd.grad(loss, list(model.parameters()))])
        nn.utils.vector_to_parameters(start, model.parameters())
        return gradient

    try:
        matvec, _ = hessian_matvec(model, [(IMAGES, LABELS)])
    except ValueError as error:
        assert "not the derivative of the gradient" in str(error)  # noqa: PT017
    else:
        assert_close(matvec(vector), (loss_at(1e-6 * vector) - loss_at(-1e-6 * vector)) / 2e-6, rtol=1e-4, atol=1e-6)


class _OnceDifferentiable(torch.autograd.Function):
    """tanh with a backward pass that cannot be differentiated again."""

    @staticmethod
    def forward(ctx, x):
        y = x.tanh()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient):
        return gradient * (1 - ctx.saved_tensors[0] ** 2)


class Applied(nn.Module):
    def __init__(self, function):
        super().__init__()
        self.layers, self.function, self.last = flat_network(classes=5), function, nn.Linear(5, 3).double()

    def forward(self, x):
        return self.last(self.function(self.layers(x)))


@pytest.mark.parametrize("curvature", ["hessian", "ggn", "empirical_fisher"])
def test_a_backward_pass_that_cannot_be_differentiated_is_refused(curvature):
    with pytest.raises(ValueError, match=r"cannot be differentiated|not the derivative"):
        hessian_matvec(Applied(_OnceDifferentiable.apply), [(IMAGES, LABELS)], curvature=curvature)


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_a_model_that_clips_its_gradients_is_refused(curvature):
    def clipped(x):
        if x.requires_grad:
            x.register_hook(lambda gradient: gradient.clamp(-1e-2, 1e-2))
        return x

    with pytest.raises(ValueError, match=r"clips gradients|wrong|not the derivative"):
        hessian_matvec(Applied(clipped), [(IMAGES, LABELS)], curvature=curvature)


def test_attributes_of_a_model_are_as_they_were():
    class Caching(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = flat_network()
            self.cache, self.rows, self.calls = None, None, 0
            self.average = torch.zeros(3, dtype=DOUBLE)

        def forward(self, x):
            self.calls += 1
            if self.rows != len(x):
                self.cache, self.rows = torch.ones(len(x), 1, dtype=DOUBLE), len(x)
            result = self.layers(x) * self.cache
            self.average.mul_(0.9).add_(result.detach().mean(0), alpha=0.1)
            return result

    model: Any = Caching()
    vector = vector_for(model)
    matvec, _ = hessian_matvec(model, [(IMAGES[:5], LABELS[:5]), (IMAGES[5:], LABELS[5:])])
    assert_close(matvec(vector), double_backward(model.layers, IMAGES, LABELS, vector))
    assert (model.cache, model.rows, model.calls) == (None, None, 0)
    assert model.average.abs().max() == 0


def test_conversions_to_float32_inside_are_checked_in_float64(recwarn):
    class Upcasting(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = flat_network().float()

        def forward(self, x):
            return torch.softmax(self.layers(x).float(), 1, dtype=torch.float32) * 3

    hessian_matvec(Upcasting(), [(IMAGES, LABELS)])
    assert not [each for each in recwarn if "finite differences" in str(each.message)]


@pytest.mark.parametrize("curvature", ["hessian", "ggn", "empirical_fisher"])
@pytest.mark.parametrize("keep_graphs", [False, True])
def test_float32_has_its_digits_near_a_loss_of_zero(curvature, keep_graphs):
    if keep_graphs and curvature != "hessian":
        pytest.skip("kept graphs are of the Hessian")
    torch.manual_seed(0)
    model = flat_network()
    with torch.no_grad():
        model.get_parameter("3.weight").mul_(30)
    labels = model(IMAGES).argmax(1)
    with torch.no_grad():
        model.get_parameter("3.bias").copy_(20 * F.one_hot(labels, 3).double().mean(0))
        labels = model(IMAGES).argmax(1)
    vector = vector_for(model)
    options = {"curvature": curvature, "keep_graphs": keep_graphs}
    exact = hessian_matvec(model, [(IMAGES, labels)], **options)[0](vector)
    assert loss_and_gradient(model, [(IMAGES, labels)])[0] < 0.1
    found = hessian_matvec(model.float(), [(IMAGES, labels)], **options)[0](vector.float())
    assert (found.double() - exact).norm() < 1e-4 * exact.norm()


def test_the_filters_of_a_grouped_transposed_convolution():
    model: Any = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, groups=2))
    weight = model[0].weight.detach()  # (4, 3, 3, 3): inputs 0 and 1 belong to the first group
    scales = parameter_scales(model, "filter")[: weight.numel()].view_as(weight)
    assert_close(scales[0, 1, 0, 0], weight[:2, 1].norm())
    assert_close(scales[3, 2, 1, 1], weight[2:, 2].norm())


def test_blocks_larger_than_the_pool_are_refused():
    with pytest.raises(ValueError, match="do not fit a pool"):
        ImageBlocks([lambda v: v, lambda v: v], [5, 5], 9)

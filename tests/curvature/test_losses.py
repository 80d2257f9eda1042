"""Any loss and any batch: products against dense matrices in float64, and means over unequal batches."""

from functools import partial
from typing import Any

import pytest
import torch
from curvature_helpers import dense, perturbed
from torch import nn
from torch.func import functional_call
from torch.nn import functional as F
from torch.testing import assert_close

from normstudy.curvature import hessian_matvec, loss_and_gradient

DOUBLE = torch.float64


def small(outputs=3):
    """Return a network of 4 inputs without kinks."""
    return perturbed(nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, outputs)))


def function_of(model, call):
    """Return call(outputs function of the flat parameters) and the parameters."""
    parameters = dict(model.named_parameters())
    sizes = [each.numel() for each in parameters.values()]
    flat = torch.cat([each.detach().reshape(-1) for each in parameters.values()])

    def value(vector):
        parts = zip(parameters.items(), vector.split(sizes), strict=True)
        return call(partial(functional_call, model, {name: part.view_as(p) for (name, p), part in parts}))

    return value, flat


def exact_hessian(model, call):
    """Compute the Hessian of call(outputs function) densely."""
    value, flat = function_of(model, call)
    return torch.autograd.functional.hessian(value, flat)


def exact_ggn(model, inputs, mean_loss):
    """Compute Jᵀ H_out J densely, with the mean loss as a function of the outputs."""
    outputs, flat = function_of(model, lambda run: run(inputs))
    jacobian = torch.autograd.functional.jacobian(outputs, flat)
    jacobian = jacobian.reshape(-1, len(flat))
    z = model(*inputs).detach()
    curvature = torch.autograd.functional.hessian(lambda v: mean_loss(v.view_as(z)), z.reshape(-1))
    return jacobian.T @ curvature @ jacobian


INPUTS = torch.randn(7, 4, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
LABELS = torch.tensor([0, 1, 2, 0, -100, 1, 2])
WEIGHTS = torch.tensor([1.0, 2.0, 0.5], dtype=DOUBLE)
PROBABILITIES = torch.softmax(torch.randn(7, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(4)), 1)
VALUES = torch.randn(7, 3, dtype=DOUBLE, generator=torch.Generator().manual_seed(5))
LOSSES: dict[str, tuple[Any, Any, torch.Tensor]] = {
    "cross_entropy, ignored": ("cross_entropy", nn.CrossEntropyLoss(), LABELS),
    "class weights": (nn.CrossEntropyLoss(weight=WEIGHTS), nn.CrossEntropyLoss(weight=WEIGHTS), LABELS),
    "smoothing and weights": (
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
        nn.CrossEntropyLoss(weight=WEIGHTS, label_smoothing=0.1),
        LABELS,
    ),
    "ignore_index": (nn.CrossEntropyLoss(ignore_index=2), nn.CrossEntropyLoss(ignore_index=2), LABELS.clamp(min=0)),
    "probabilities": ("cross_entropy", nn.CrossEntropyLoss(), PROBABILITIES),
    "sum": (nn.CrossEntropyLoss(reduction="sum"), nn.CrossEntropyLoss(reduction="sum"), LABELS),
    "mse": ("mse", nn.MSELoss(), VALUES),
    "huber": (nn.HuberLoss(delta=0.7), nn.HuberLoss(delta=0.7), VALUES),
    "bce_with_logits": ("bce_with_logits", nn.BCEWithLogitsLoss(), (VALUES > 0).double()),
    "bce with weights": (
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS),
        nn.BCEWithLogitsLoss(pos_weight=WEIGHTS),
        (VALUES > 0).long(),
    ),
    "kl": (nn.KLDivLoss(reduction="batchmean"), nn.KLDivLoss(reduction="batchmean"), PROBABILITIES),
    "function": (lambda z, y: (z - y).abs().pow(3).sum(1), lambda z, y: (z - y).abs().pow(3).sum(1).mean(), VALUES),
}


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("name", LOSSES)
def test_unequal_batches_have_the_curvature_of_one(name, curvature):
    loss, whole, targets = LOSSES[name]
    model = small()
    batches = [(INPUTS[:4], targets[:4]), (INPUTS[4:5], targets[4:5]), (INPUTS[5:], targets[5:])]

    def mean(z):
        return whole(z, targets if targets.is_floating_point() or name != "bce with weights" else targets.double())

    exact = (
        exact_hessian(model, lambda run: mean(run((INPUTS,))))
        if curvature == "hessian"
        else exact_ggn(model, (INPUTS,), mean)
    )
    matvec, dimension = hessian_matvec(model, batches, loss, curvature=curvature)
    assert_close(dense(matvec, dimension), exact, rtol=1e-8, atol=1e-10)
    value, gradient = loss_and_gradient(model, batches, loss)
    assert value == pytest.approx(mean(model(INPUTS)).item(), rel=1e-12)
    parts = torch.autograd.grad(mean(model(INPUTS)), list(model.parameters()))
    assert_close(gradient, torch.cat([part.reshape(-1) for part in parts]))


def test_the_empirical_fisher_matrix_is_the_mean_of_squared_gradients():
    model, labels = small(), LABELS.clamp(min=0)
    rows = []
    for x, y in zip(INPUTS, labels, strict=True):
        parts = torch.autograd.grad(F.cross_entropy(model(x[None]), y[None]), list(model.parameters()))
        rows.append(torch.cat([part.reshape(-1) for part in parts]))
    exact = torch.stack(rows).T @ torch.stack(rows) / len(rows)
    batches = [(INPUTS[:4], labels[:4]), (INPUTS[4:], labels[4:])]
    matvec, dimension = hessian_matvec(model, batches, curvature="empirical_fisher")
    assert_close(dense(matvec, dimension), exact, rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match="batch statistics"):
        hessian_matvec(model, batches, curvature="empirical_fisher", bn_mode="train")


class Tagger(nn.Module):
    """A token model whose embedding and output weight are tied; it returns an object, and takes keywords."""

    class Result:
        def __init__(self, logits):
            self.logits = logits

    def __init__(self):
        super().__init__()
        self.embedding = nn.Embedding(6, 4)
        self.norm = nn.LayerNorm(4)
        self.mix = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True, norm_first=True)
        self.head = nn.Linear(4, 6)
        self.head.weight = self.embedding.weight

    def forward(self, input_ids, scale=None):
        x = self.norm(self.mix(self.embedding(input_ids)))
        return self.Result(self.head(x if scale is None else x * scale))


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
def test_a_token_model_with_tied_weights_and_keywords(curvature):
    torch.manual_seed(0)
    model = Tagger().double()
    tokens = torch.randint(0, 6, (5, 3))
    scale = torch.rand(5, 1, 1, dtype=DOUBLE)
    labels = tokens.roll(-1, 1).masked_fill(torch.arange(3) == 2, -100)
    labels[0] = -100
    batches = [({"input_ids": tokens[:2], "scale": scale[:2]}, labels[:2])]
    batches.append(({"input_ids": tokens[2:], "scale": scale[2:]}, labels[2:]))

    def pick(result):
        return result.logits.transpose(1, 2)

    class Picked(nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, tokens, scale):
            return pick(self.model(tokens, scale))

    def mean(z):
        return F.cross_entropy(z, labels)

    picked = Picked().eval()
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        if curvature == "hessian":
            exact = exact_hessian(picked, lambda run: mean(run((tokens, scale))))
        else:
            exact = exact_ggn(picked, (tokens, scale), mean)
    matvec, dimension = hessian_matvec(model, batches, curvature=curvature, outputs=pick)
    assert dimension == len(exact) == sum(each.numel() for each in model.parameters())
    assert_close(dense(matvec, dimension), exact, rtol=1e-8, atol=1e-10)


def test_several_inputs_are_the_arguments_of_the_model():
    class Sum(nn.Module):
        def __init__(self):
            super().__init__()
            self.left, self.right = nn.Linear(4, 3).double(), nn.Linear(2, 3).double()

        def forward(self, x, y):
            return self.left(x) * torch.tanh(self.right(y))

    model, second = Sum(), torch.randn(7, 2, dtype=DOUBLE)
    exact = exact_hessian(model, lambda run: F.mse_loss(run((INPUTS, second)), VALUES))
    for pair in ((INPUTS, second), [INPUTS, second], {"x": INPUTS, "y": second}):
        matvec, dimension = hessian_matvec(model, [(pair, VALUES)], "mse")
        assert_close(dense(matvec, dimension), exact, rtol=1e-9, atol=1e-11)


def test_labels_of_each_pixel_count_one_by_one():
    model = perturbed(nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Tanh(), nn.Conv2d(3, 3, 1)))
    images, labels = torch.randn(4, 2, 3, 3, dtype=DOUBLE), torch.randint(0, 3, (4, 3, 3))
    labels[0, 0] = -100
    exact = exact_hessian(model, lambda run: F.cross_entropy(run((images,)), labels))
    matvec, dimension = hessian_matvec(model, [(images[:1], labels[:1]), (images[1:], labels[1:])])
    assert_close(dense(matvec, dimension), exact, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize(
    ("loss", "outputs", "targets", "words"),
    [
        ("cross_entropy", 3, LABELS[:, None], "takes labels of shape"),
        ("cross_entropy", 3, LABELS.double(), "labels must be integers"),
        (
            "cross_entropy",
            3,
            torch.tensor([0, 1, 2, 3, 0, 1, 2]),
            r"labels are in \[0, 3\], but the model has 3 outputs",
        ),
        ("cross_entropy", 3, torch.tensor([0, 1, 2, -1, 0, 1, 2]), r"labels are in \[-1, 2\]"),
        ("cross_entropy", 3, torch.full((7,), -100), "all targets are ignored"),
        ("cross_entropy", 3, LABELS[:5], "differ in the number of samples"),
        ("cross_entropy", 1, LABELS.clamp(0, 0), "at least two classes"),
        ("mse", 1, VALUES[:, 0], "would broadcast"),
        ("mse", 3, LABELS, "would broadcast"),
        ("bce_with_logits", 3, 2 * (VALUES > 0).double() - 1, r"targets lie in \[-1, 1\]"),
        (F.cross_entropy, 3, LABELS, "returns a single number"),
        (lambda z, y: (z - y).square().mean(0), 3, VALUES, "returns shape"),
        (nn.MSELoss(reduction="none"), 3, VALUES, 'reduction="none"'),
        ("hinge", 3, LABELS, "is not one of"),
        (nn.NLLLoss(), 3, LABELS, "not log-probabilities"),
        (lambda z, y: (z - z.mean(0)).square().sum(1), 3, LABELS, "depends on the other samples of its batch"),
    ],
)
def test_targets_that_do_not_fit_the_loss_are_refused(loss, outputs, targets, words):
    with pytest.raises(ValueError, match=words):
        hessian_matvec(small(outputs), [(INPUTS, targets)], loss)


def test_later_batches_are_checked_as_well():
    labels = LABELS.clamp(min=0)
    with pytest.raises(ValueError, match=r"labels are in \[0, 7\]"):
        hessian_matvec(small(), [(INPUTS, labels), (INPUTS, labels + 5)])


@pytest.mark.parametrize("last", [nn.Softmax(1), nn.Sequential(nn.Linear(3, 3), nn.Softmax(-1))])
def test_probabilities_are_no_logits(last):
    model = nn.Sequential(small(), last).double()
    with pytest.raises(ValueError, match="the outputs are probabilities"):
        hessian_matvec(model, [(INPUTS, LABELS)])
    loss = partial(F.cross_entropy, reduction="none")
    hessian_matvec(model, [(INPUTS, LABELS)], loss)  # somebody who trained with it can say so


def test_classes_in_the_last_dimension_are_refused_with_the_way_out():
    model = nn.Sequential(nn.Embedding(6, 4), nn.Linear(4, 6))
    tokens = torch.randint(0, 6, (5, 3))
    with pytest.raises(ValueError, match=r"movedim\(-1, 1\)"):
        hessian_matvec(model, [(tokens, tokens)])
    hessian_matvec(model, [(tokens, tokens)], outputs=lambda result: result.movedim(-1, 1))


@pytest.mark.parametrize(
    ("batches", "words"),
    [
        ([{"x": INPUTS, "labels": LABELS}], r"batch.pop\('labels'\)"),
        ({"x": INPUTS, "labels": LABELS}, "list of pairs"),
        ([INPUTS], "list of pairs"),
        ([(INPUTS, LABELS, LABELS)], "a tuple of length 3"),
        ([(INPUTS, torch.tensor(1))], "row per sample"),
        ([(INPUTS[:0], LABELS[:0])], "row per sample"),
        ([(INPUTS[:, :2], LABELS)], r"the model fails on inputs torch.float64 \(7, 2\)"),
        ([({"wrong": INPUTS}, LABELS)], "unexpected keyword argument"),
    ],
)
def test_batches_of_another_form_are_refused(batches, words):
    with pytest.raises(ValueError, match=words):
        hessian_matvec(small(), batches)


def test_a_model_that_returns_no_tensor_is_refused_with_the_way_out():
    with pytest.raises(ValueError, match=r"returns a Result, not a tensor; pass outputs="):
        hessian_matvec(Tagger(), [(torch.randint(0, 6, (5, 3)), torch.randint(0, 6, (5, 3)))])

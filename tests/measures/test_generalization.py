"""Each generalization measure against a closed form or brute force in float64."""

import contextlib
import math
from typing import Any

import pytest
import torch
from networks_helpers import shrink
from torch import nn
from torch.func import functional_call, grad, vmap
from torch.nn import functional as F

import config
from models import build_model
from normstudy.measures import adaptive_sharpness, generalization, weight_noise
from normstudy.measures.adaptive_sharpness import Ascent, sharpness_measures
from normstudy.measures.distance_from_init import distance_from_init
from normstudy.measures.generalization import effective_dimension, generalization_measures
from normstudy.measures.gradient_path import BLOCKS, FACTORS, NAMES, path_measures
from normstudy.measures.gradient_statistics import gradient_measures, gradient_products, noise_scale
from normstudy.measures.margins import margin_measures
from normstudy.measures.network_loss import NetworkLoss
from normstudy.measures.simple_measures import simple_measures
from normstudy.measures.weight_noise import noise_measures

NETWORKS: dict[str, dict[str, Any]] = {
    "vgg": {"arch": "vgg"},
    "resnet-56": {"arch": "resnet-56"},
    "vit": {"arch": "vit", "image_size": 16, "patch_size": 8},
}


@pytest.fixture(autouse=True)
def small(monkeypatch):
    shrink(monkeypatch)


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small_network(norm_type="BatchNorm", samples=12):
    """Return (model, batches) in float64, with running statistics away from their start."""
    torch.manual_seed(0)
    model = build_model("vgg", norm_type=norm_type, num_classes=3).double()
    images, labels = torch.randn(samples, 3, 16, 16).double(), torch.arange(samples) % 3
    with torch.no_grad():
        for _ in range(3):
            model.train()(images)
    return model.eval(), [(images[:7], labels[:7]), (images[7:], labels[7:])]


def linear(weight, labels):
    """Return (model, batches) of a linear classifier without bias, on one-hot images."""
    model = nn.Linear(weight.shape[1], len(weight), bias=False).double()
    model.weight.data.copy_(weight)
    return model, [(torch.eye(weight.shape[1], dtype=torch.float64), labels)]


# Outputs and weights


def test_margins_losses_and_entropies_by_hand():
    logits = torch.randn(60, 4, dtype=torch.float64, generator=seeded())
    labels = torch.randint(4, (60,), generator=seeded(1))
    network = NetworkLoss(*linear(logits.T, labels))
    found = margin_measures(network, seeded()) | simple_measures(network, "margin")
    margins = sorted(
        row[y].item() - max(row[j].item() for j in range(4) if j != y)
        for row, y in zip(logits, labels.tolist(), strict=True)
    )
    expected = margins[5] + 0.9 * (margins[6] - margins[5])  # the 10th percentile lies at 0.1 · 59
    assert found["margin_10"] == pytest.approx(expected)
    assert found["inverse_squared_margin"] is None  # the margin is negative
    probabilities = logits.exp() / logits.exp().sum(1, keepdim=True)
    losses = -probabilities.log()[range(60), labels]
    assert found["cross_entropy"] == pytest.approx(losses.mean().item())
    assert found["cross_entropy_standard_error"] == pytest.approx(losses.std().item() / math.sqrt(60))
    entropy = -(probabilities * probabilities.log()).sum(1)
    assert found["output_entropy"] == pytest.approx(entropy.mean().item())
    sure = NetworkLoss(*linear(2 * torch.eye(3, dtype=torch.float64), torch.arange(3)))
    assert margin_measures(sure, seeded())["inverse_squared_margin"] == pytest.approx(0.25)


def test_the_error_of_the_percentile_is_that_of_fresh_images():
    """200 sets of 200 images, whose margins are normal: the spread of their percentiles is known."""
    logits = torch.zeros(200, 2, dtype=torch.float64)
    labels = torch.zeros(200, dtype=torch.int64)
    model, batches = linear(logits.T, labels)
    network = NetworkLoss(model, batches)
    found, errors = [], []
    for seed in range(100):
        with torch.no_grad():
            model.weight[0] = torch.randn(200, dtype=torch.float64, generator=seeded(seed))
        measures = margin_measures(network, seeded(seed))
        found.append(measures["margin_10"])
        errors.append(measures["margin_10_standard_error"])
    spread = torch.tensor(found).std().item()
    assert torch.tensor(errors).mean().item() == pytest.approx(spread, rel=0.25)


def test_norms_of_weights_are_those_of_all_entries():
    model, batches = small_network()
    torch.manual_seed(5)
    initial = build_model("vgg", norm_type="BatchNorm", num_classes=3).double()
    weights = [torch.cat([p.flatten() for n, p in each.named_parameters() if p.dim() > 1]) for each in (model, initial)]
    found = simple_measures(NetworkLoss(model, batches), "weights")
    assert found == {"l2_norm": pytest.approx(weights[0].norm().item())}
    assert distance_from_init(model, initial) == pytest.approx((weights[0] - weights[1]).norm().item())
    assert distance_from_init(model, None) is None
    with pytest.raises(ValueError, match="other shapes"):
        distance_from_init(model, nn.Linear(3, 2))


# Noise in the weights


@pytest.mark.parametrize("size", [0.3, 5.0])
def test_sigma_of_a_linear_model_has_a_closed_form(size):
    """Every image has its own two weights, ±size/2, so noise σ makes it wrong with probability Φ(−size/(σ√2))."""
    labels = torch.arange(400) % 2
    weight = torch.full((2, 400), -size / 2, dtype=torch.float64)
    weight[labels, torch.arange(400)] = size / 2
    network = NetworkLoss(*linear(weight, labels))
    before = weight.clone()
    measures, _ = noise_measures(network, seeded())
    exact = size / math.sqrt(2) / 1.2815515655446004  # Φ(1.2816) = 0.9
    for name, expected in (("pac_bayes_sigma", exact), ("pac_bayes_magnitude_sigma", 2 * exact / size)):
        found, error = measures[name], measures[f"{name}_standard_error"]
        assert found is not None
        assert error is not None
        assert error == pytest.approx(0.021 * expected, rel=0.6)
        assert abs(found - expected) < 4 * error + 0.01 * expected
    assert torch.equal(network.weights[0].detach(), before)


def test_sigma_is_null_at_chance_and_where_no_noise_matters():
    labels = torch.arange(40) % 2
    chance = NetworkLoss(*linear(torch.randn(2, 40, dtype=torch.float64, generator=seeded()) * 0 + 1e-3, labels))
    assert set(noise_measures(chance, seeded())[0].values()) == {None}
    model = nn.Sequential(nn.Linear(2, 1, bias=False), Constant()).double()
    images = torch.randn(8, 2, dtype=torch.float64, generator=seeded())
    constant = NetworkLoss(model, [(images, torch.zeros(8, dtype=torch.int64))])
    assert set(noise_measures(constant, seeded())[0].values()) == {None}


class Constant(nn.Module):
    """Logits (2, −1) whatever the input, with a gradient of zero."""

    def forward(self, x):
        return torch.cat([0 * x + 2, 0 * x - 1], dim=1)


# Sharpness


class Quadratic:
    """The loss gᵀδ + ½ δᵀHδ in place of a network's."""

    def __init__(self, weight, gradient, hessian):
        self.start, self.weights = weight.clone(), [weight.clone()]
        self.linear, self.hessian = gradient, hessian

    @contextlib.contextmanager
    def moved(self, steps):
        self.weights[0] += steps[0]
        yield
        self.weights[0] -= steps[0]

    def gradient(self):
        delta = self.weights[0] - self.start
        loss = self.linear @ delta + delta @ self.hessian @ delta / 2
        return loss, [self.linear + self.hessian @ delta]


def rise(network, ball, radius, steps):
    return Ascent(network, ball, radius, seeded()).ascend(steps, lambda: None)[0]


def test_sharpness_of_a_plane_is_the_dual_norm_of_its_gradient():
    weight, gradient = (torch.randn(9, dtype=torch.float64, generator=seeded(seed)) for seed in (1, 2))
    plane = Quadratic(weight, gradient, torch.zeros(9, 9, dtype=torch.float64))
    scaled = weight.abs() * gradient
    assert rise(plane, "l2", 0.3, adaptive_sharpness.STEPS) == pytest.approx(0.3 * scaled.norm().item(), rel=1e-3)
    assert rise(plane, "linf", 0.3, adaptive_sharpness.STEPS) == pytest.approx(
        0.3 * scaled.abs().sum().item(), rel=1e-9
    )


def test_sharpness_at_a_minimum_is_half_the_largest_scaled_eigenvalue():
    weight = torch.randn(6, dtype=torch.float64, generator=seeded(3))
    factor = torch.randn(6, 6, dtype=torch.float64, generator=seeded(4))
    hessian, zero = factor @ factor.T, torch.zeros(6, dtype=torch.float64)
    scaled = weight.abs()[:, None] * hessian * weight.abs()
    exact = 0.2**2 / 2 * torch.linalg.eigvalsh(scaled)[-1].item()
    found = [rise(Quadratic(weight, zero, hessian), "l2", 0.2, steps) for steps in (adaptive_sharpness.STEPS, 200)]
    assert found[1] == pytest.approx(exact, rel=1e-2)
    assert 0.85 * exact < found[0] <= exact * (1 + 1e-9)
    diagonal = torch.rand(6, dtype=torch.float64, generator=seeded(5)).diag()
    exact = 0.2**2 / 2 * (diagonal.diagonal() * weight.square()).sum().item()
    assert rise(Quadratic(weight, zero, diagonal), "linf", 0.2, adaptive_sharpness.STEPS) == pytest.approx(exact)


# Gradients


def test_gradients_of_single_images_are_those_of_vmap():
    model, batches = small_network()
    images, labels = (torch.cat(part) for part in zip(*batches, strict=True))
    parameters = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(values, image, label):
        return F.cross_entropy(functional_call(model, values, (image[None],)), label[None])

    each = vmap(grad(loss), in_dims=(None, 0, 0))(parameters, images, labels)
    rows = torch.cat([gradient.flatten(1) for gradient in each.values()], dim=1)
    mean = rows.mean(0)
    squares, products, mean_square = gradient_products(NetworkLoss(model, batches))
    torch.testing.assert_close(squares, rows.square().sum(1))
    torch.testing.assert_close(products, rows @ mean)
    assert mean_square == pytest.approx((mean @ mean).item())
    found = gradient_measures(NetworkLoss(model, batches))
    assert found["gradient_norm"] == pytest.approx(mean.norm().item())
    assert found["empirical_fisher_trace"] == pytest.approx(rows.square().sum(1).mean().item())


def gaussian_gradients(mean, samples, seed):
    """Return the arguments of noise_scale for gradients of this mean and of covariance diag(1, …, d)/d."""
    scales = (torch.arange(1, len(mean) + 1, dtype=torch.float64) / len(mean)).sqrt()
    rows = mean + scales * torch.randn(samples, len(mean), dtype=torch.float64, generator=seeded(seed))
    average = rows.mean(0)
    return rows.square().sum(1), rows @ average, (average @ average).item()


def test_the_noise_scale_of_gaussian_gradients_is_trace_over_squared_mean():
    mean = torch.full((20,), 1.0, dtype=torch.float64)
    exact = 10.5 / 20  # the trace is Σ k/20
    results = [noise_scale(*gaussian_gradients(mean, 60, seed)) for seed in range(300)]
    found = torch.tensor([each["gradient_noise_scale"] for each in results])
    errors = torch.tensor([each["gradient_noise_scale_standard_error"] for each in results])
    assert found.mean().item() == pytest.approx(exact, rel=0.02)
    assert errors.mean().item() == pytest.approx(found.std().item(), rel=0.15)
    covered = ((found - exact).abs() < 1.96 * errors).double().mean().item()
    assert 0.9 < covered < 0.99


def test_the_noise_scale_is_null_for_gradients_of_mean_zero():
    results = [noise_scale(*gaussian_gradients(torch.zeros(20).double(), 60, seed)) for seed in range(200)]
    null = sum(each["gradient_noise_scale"] is None for each in results) / 200
    assert null > 0.94
    assert noise_scale(torch.ones(2), torch.ones(2), 1.0)["gradient_noise_scale"] is None


@pytest.mark.parametrize("norm_type", ["BatchNorm", "LayerNorm"])
def test_the_path_is_that_of_a_loop_with_batch_statistics(norm_type):
    model, batches = small_network(norm_type)
    weights = [parameter for parameter in model.parameters() if parameter.dim() > 1]
    before = [weight.detach().clone() for weight in weights]
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}

    def loss_and_gradient(rate, gradient):
        for weight, old, slope in zip(weights, before, gradient, strict=True):
            weight.data = old - rate * slope
        model.train()
        loss = torch.stack([F.cross_entropy(model(x), y, reduction="sum") for x, y in batches]).sum() / 12
        return loss.item(), torch.autograd.grad(loss, weights)

    network = NetworkLoss(model, batches)
    _, start = loss_and_gradient(0.0, [torch.zeros_like(weight) for weight in weights])
    losses, distances = [], []
    for factor in FACTORS:
        loss, there = loss_and_gradient(0.3 * factor, start)
        losses.append(loss)
        distances.append(math.sqrt(sum((a - b).square().sum().item() for a, b in zip(start, there, strict=True))))
    for weight, old in zip(weights, before, strict=True):
        weight.data = old
    model.load_state_dict(buffers, strict=False)
    model.eval()
    length = math.sqrt(sum(slope.square().sum().item() for slope in start))
    found, _ = path_measures(network, 0.3)
    assert found["loss_range"] == pytest.approx(max(losses) - min(losses))
    assert found["gradient_predictiveness"] == pytest.approx(max(distances))
    smoothness = max(d / (0.3 * factor * length) for d, factor in zip(distances, FACTORS, strict=True))
    assert found["effective_smoothness"] == pytest.approx(smoothness)
    assert not model.training
    assert all(torch.equal(buffer, buffers[name]) for name, buffer in model.named_buffers())


def test_a_path_without_a_gradient_is_not_defined():
    model = nn.Sequential(nn.Linear(2, 1, bias=False), Constant()).double()
    network = NetworkLoss(model, [(torch.randn(8, 2, dtype=torch.float64), torch.zeros(8, dtype=torch.int64))])
    assert set(path_measures(network, 0.1)[0].values()) == {None}


def test_the_errors_along_a_path_are_those_of_fresh_images():
    """100 sets of 160 images of three overlapping classes: the spread of the measures over sets is known."""
    torch.manual_seed(0)
    model = nn.Linear(6, 3).double()
    found, errors = [], []
    for seed in range(100):
        labels = torch.arange(160) % 3
        images = torch.randn(160, 6, dtype=torch.float64, generator=seeded(seed))
        images[torch.arange(160), labels] += 1
        measures, _ = path_measures(NetworkLoss(model, [(images, labels)], checks=False), 0.5)
        found.append([measures[name] for name in NAMES])
        errors.append([measures[f"{name}_standard_error"] for name in NAMES])
    spread = torch.tensor(found, dtype=torch.float64).std(0)
    torch.testing.assert_close(torch.tensor(errors, dtype=torch.float64).mean(0), spread, rtol=0.2, atol=0)


def test_the_errors_along_a_path_leave_each_block_of_each_batch_out():
    model = nn.Linear(5, 3).double()
    images, labels = torch.randn(40, 5, dtype=torch.float64, generator=seeded()), torch.arange(40) % 3
    batches = [(images[:24], labels[:24]), (images[24:], labels[24:])]
    found, _ = path_measures(NetworkLoss(model, batches), 0.05)
    values = []
    for block in range(BLOCKS):
        kept = []
        for x, y in batches:
            dealt = [index for label in range(3) for index in range(len(y)) if y[index] == label]
            chosen = sorted(index for place, index in enumerate(dealt) if place % BLOCKS != block)
            kept.append((x[chosen], y[chosen]))
        part, _ = path_measures(NetworkLoss(model, kept), 0.05)
        values.append([part[name] for name in NAMES])
    spread = torch.tensor(values, dtype=torch.float64)
    expected = ((BLOCKS - 1) / BLOCKS * (spread - spread.mean(0)).square().sum(0)).sqrt()
    assert [found[f"{name}_standard_error"] for name in NAMES] == pytest.approx(expected.tolist(), rel=1e-3)
    few, _ = path_measures(NetworkLoss(model, [(images[:11], labels[:11])]), 0.05)
    assert few["loss_range"] is not None
    assert few["loss_range_standard_error"] is None


def test_effective_dimension_counts_large_eigenvalues():
    probes = [{"nodes": [-1.0, 1e9, 1.0], "weights": [0.5, 0.2, 0.3]}, {"nodes": [0.0, 1e9], "weights": [0.5, 0.5]}]
    value, error = effective_dimension(probes, 10)
    assert value == pytest.approx(10 * (0.2 + 0.15 + 0.5) / 2)
    assert error == pytest.approx(10 * (0.5 - 0.35) / 2)  # half the difference of two values
    assert effective_dimension(probes[:1], 10)[1] is None


# Invariance, and every norm in every network


def test_larger_filters_before_a_norm_change_neither_margins_nor_losses_nor_sharpness():
    results = []
    for factor in (1.0, 7.0):
        model, batches = small_network(samples=9)
        with torch.no_grad():
            for name in ("blocks.0", "blocks.3"):
                model.get_submodule(f"{name}.conv").weight.mul_(factor)
                norm = model.get_submodule(f"{name}.norm")
                norm.running_mean.mul_(factor)
                norm.running_var.mul_(factor**2)
        network = NetworkLoss(model, batches)
        sharpness, _ = sharpness_measures(network, seeded())
        found = margin_measures(network, seeded()) | sharpness
        results.append({name: value for name, value in found.items() if value is not None})
    assert results[1] == pytest.approx(results[0], rel=1e-3)
    assert results[0]["adaptive_sharpness_l2"] > 0


@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
@pytest.mark.parametrize("arch", NETWORKS)
def test_every_norm_in_every_network(monkeypatch, arch, norm_type):
    monkeypatch.setattr(weight_noise, "DRAWS", 2)
    monkeypatch.setattr(weight_noise, "PRECISION", 2.0)
    monkeypatch.setattr(adaptive_sharpness, "STEPS", 1)
    torch.manual_seed(0)
    model = build_model(**NETWORKS[arch], norm_type=norm_type, num_classes=10).eval()
    initial = build_model(**NETWORKS[arch], norm_type=norm_type, num_classes=10)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    batches = [(torch.randn(6, 3, 16, 16), torch.arange(6))]
    found = generalization_measures(model, initial, batches, seeded(), learning_rate=0.1)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(value is None or math.isfinite(value) for value in found.values())
    defined = {"l2_norm", "distance_from_init", "margin_10", "cross_entropy", "output_entropy", "gradient_norm"}
    assert all(found[name] is not None for name in defined | {"empirical_fisher_trace", "adaptive_sharpness_l2"})


def test_outputs_that_depend_on_other_images_are_refused():
    class Mixing(nn.Linear):
        def forward(self, x):
            return super().forward(x) - x.mean()

    images, labels = torch.randn(8, 3), torch.arange(8) % 2
    with pytest.raises(ValueError, match="sample"):
        generalization.generalization_measures(Mixing(3, 2), None, [(images, labels)], seeded(), learning_rate=0.1)


@pytest.mark.parametrize(
    ("what", "words"), [("computed", "is computed from other parameters"), ("frozen", "is frozen")]
)
def test_weights_that_a_step_cannot_change_are_refused(what, words):
    """Noise added to a weight that another parameter determines would change nothing, and σ would look infinite."""
    model = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    if what == "computed":
        nn.utils.parametrizations.weight_norm(model[0])
    else:
        model[0].weight.requires_grad_(False)
    with pytest.raises(ValueError, match=f"the weight of 0 {words}"):
        NetworkLoss(model, [(torch.randn(8, 3), torch.arange(8) % 2)])

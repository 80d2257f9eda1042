"""The loss along lines through the weights, against direct evaluation and dense Hessians in float64."""

import copy
import math
from typing import Any

import pytest
import torch
from networks_helpers import shrink
from torch import nn
from torch.func import functional_call, hessian
from torch.nn import functional as F

import config
import layer_defs
from models import build_model
from normstudy.measures.landscape import Landscape, barriers

WITH_RUNNING = [name for name, traits in config.NORM_TRAITS.items() if traits.has_batch_statistics]


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def small_network(monkeypatch, norm_type="BatchNorm", samples=12):
    """Return (model, batches) in float64, with running statistics away from their start."""
    shrink(monkeypatch)
    torch.manual_seed(0)
    model = build_model("vgg", norm_type=norm_type, num_classes=3).double()
    images, labels = torch.randn(samples, 3, 16, 16).double(), torch.arange(samples) % 3
    with torch.no_grad():
        for _ in range(3):
            model.train()(images + 0.3)
    return model.eval(), [(images[:7], labels[:7]), (images[7:], labels[7:])]


def mean_loss(model, batches):
    with torch.no_grad():
        return torch.cat([F.cross_entropy(model(x), y, reduction="none") for x, y in batches]).mean().item()


def test_a_random_direction_has_the_filter_norms_of_the_weights(monkeypatch):
    model, batches = small_network(monkeypatch)
    landscape = Landscape(model, batches)
    direction = landscape.random_direction(seeded())
    for parameter, step in zip(model.parameters(), direction, strict=True):
        if parameter.dim() == 1:
            assert not step.any()
        else:
            torch.testing.assert_close(step.flatten(1).norm(dim=1), parameter.detach().flatten(1).norm(dim=1))
    others = torch.cat([each.flatten() for each in landscape.random_direction(seeded(1))])
    first = torch.cat([each.flatten() for each in direction])
    assert abs(F.cosine_similarity(first, others, dim=0)) < 0.1


@pytest.mark.parametrize("norm_type", ["BatchNorm", "GroupNorm"])
def test_losses_along_a_direction_are_those_of_moved_networks(monkeypatch, norm_type):
    model, batches = small_network(monkeypatch, norm_type)
    before = {name: each.clone() for name, each in model.state_dict().items()}
    landscape = Landscape(model, batches)
    direction = landscape.random_direction(seeded())
    points = landscape.along(direction, [-0.4, 0.0, 0.3])
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    for distance, point in zip([-0.4, 0.0, 0.3], points, strict=True):
        moved = copy.deepcopy(model)
        with torch.no_grad():
            for parameter, step in zip(moved.parameters(), direction, strict=True):
                parameter.add_(distance * step)
        assert point["stored"] == pytest.approx(mean_loss(moved, batches))
    assert (points[0]["reestimated"] is None) == (norm_type == "GroupNorm")


@pytest.mark.parametrize("norm_type", WITH_RUNNING)
def test_reestimated_statistics_are_those_of_all_images(monkeypatch, norm_type):
    """A running statistic that forgets everything before holds exactly those of the images."""
    model, batches = small_network(monkeypatch, norm_type)
    landscape = Landscape(model, batches)
    found = landscape.here()
    images, labels = (torch.cat(each) for each in zip(*batches, strict=True))
    monkeypatch.setattr(layer_defs, "RUNNING_UPDATE", 1.0)
    with torch.no_grad():
        model.train()(images)
    assert found[0]["reestimated"] == pytest.approx(mean_loss(model.eval(), [(images, labels)]), rel=1e-9)
    assert found[0]["reestimated"] != pytest.approx(found[0]["stored"], rel=1e-3)
    right = (model(images).argmax(1) == labels).double().mean().item()
    assert found[1]["reestimated"] == pytest.approx(right)


class Small(nn.Module):
    """A network of two layers whose Hessian can be written out."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 5), nn.Linear(5, 3)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_the_sharpest_direction_is_the_top_eigenvector_of_the_dense_scaled_hessian():
    torch.manual_seed(0)
    model = Small().double()
    images, labels = torch.randn(20, 4, dtype=torch.float64), torch.arange(20) % 3
    landscape = Landscape(model, [(images, labels)])
    found = landscape.sharpest_direction(seeded(), lambda products: None)
    names = [name for name, _ in model.named_parameters()]
    sizes = [each.numel() for each in model.parameters()]
    shapes = [each.shape for each in model.parameters()]

    def loss(flat):
        parts = [part.view(shape) for part, shape in zip(flat.split(sizes), shapes, strict=True)]
        return F.cross_entropy(functional_call(model, dict(zip(names, parts, strict=True)), (images,)), labels)

    flat = torch.cat([each.detach().flatten() for each in model.parameters()])
    scales = torch.cat(
        [
            (each.norm(dim=1, keepdim=True).expand_as(each) if each.dim() > 1 else each.abs()).flatten()
            for each in (parameter.detach() for parameter in model.parameters())
        ]
    )
    values, vectors = torch.linalg.eigh(scales[:, None] * hessian(loss)(flat) * scales)
    assert found.eigenvalue == pytest.approx(values[-1].item(), rel=1e-3)
    assert found.residual < 0.02 * found.eigenvalue
    direction = torch.cat([each.flatten() for each in found.direction])
    cosine = F.cosine_similarity(direction, scales * vectors[:, -1], dim=0)
    assert abs(cosine) > 0.999
    assert (direction / scales).norm().item() == pytest.approx(1)
    low, here, high = (point["stored"] for point in landscape.along(found.direction, [-1e-3, 0.0, 1e-3]))
    assert low is not None
    assert here is not None
    assert high is not None
    assert (high - low) / 2e-3 == pytest.approx(found.slope, rel=1e-3)
    assert (high - 2 * here + low) / 1e-6 == pytest.approx(found.eigenvalue, rel=1e-3)


def test_the_line_between_two_networks_meets_both_and_their_average(monkeypatch):
    model, batches = small_network(monkeypatch)
    torch.manual_seed(1)
    other = build_model("vgg", norm_type="BatchNorm", num_classes=3).double()
    with torch.no_grad():
        other.train()(batches[0][0])
    other.eval()
    before = {name: each.clone() for name, each in model.state_dict().items()}
    average = copy.deepcopy(model)
    average.load_state_dict({name: (each + other.state_dict()[name]) / 2 for name, each in before.items()})
    found = list(Landscape(model, batches).between(other.state_dict(), [0, 0.5, 1]))
    for (losses, accuracies), network in zip(found, (model, average, other), strict=True):
        assert losses["stored"] == pytest.approx(mean_loss(network, batches))
        labels = torch.cat([y for _, y in batches])
        right = torch.cat([network(x).argmax(1) for x, _ in batches]) == labels
        assert accuracies["stored"] == pytest.approx(right.double().mean().item())
    assert all(torch.equal(each, before[name]) for name, each in model.state_dict().items())
    with pytest.raises(ValueError, match="different parameters or running statistics"):
        list(Landscape(model, batches).between(nn.Linear(3, 2).state_dict(), [0.5]))


def test_a_barrier_is_the_largest_excess_over_the_straight_line():
    losses: list[Any] = [{"stored": value, "reestimated": None} for value in (1.0, 4.0, 2.5, 3.0)]
    assert barriers([0, 0.25, 0.5, 1], losses) == {"stored": pytest.approx(4 - 1.5), "reestimated": None}
    convex: list[Any] = [{"stored": value, "reestimated": value} for value in (4.0, 1.0, 2.0)]
    assert barriers([0, 0.5, 1], convex) == {"stored": 0, "reestimated": 0}
    assert barriers([0, 0.5, 1], [*convex[:1], {"stored": math.inf, "reestimated": 1.0}, convex[2]])["stored"] is None


@pytest.mark.parametrize("arch", ["vgg", "resnet-56", "vit"])
@pytest.mark.parametrize("norm_type", config.NORM_TYPES)
def test_every_norm_in_every_network(monkeypatch, arch, norm_type):
    shrink(monkeypatch)
    torch.manual_seed(0)
    options: dict[str, Any] = {"image_size": 16, "patch_size": 8} if arch == "vit" else {}
    model = build_model(arch, norm_type=norm_type, num_classes=3, **options).double()
    nn.init.normal_(model.classifier.weight)  # that of a new ViT is zero
    batches = [(torch.randn(6, 3, 16, 16).double(), torch.arange(6) % 3)]
    landscape = Landscape(model, batches, checks=False)
    [here, there] = landscape.along(landscape.random_direction(seeded()), [0.0, 0.2])
    assert here["stored"] == pytest.approx(mean_loss(model.eval(), batches))
    assert there["stored"] != here["stored"]
    assert (here["reestimated"] is not None) == (norm_type in WITH_RUNNING)

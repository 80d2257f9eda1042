"""The optimizers give the steps of torch.optim, and the state of other parameters is refused."""

import math

import pytest
import torch
from torch import nn

from config import parse_args
from models import build_model, weight_names
from normstudy.training.optimizer import Optimizer

RECIPES = {
    "sgd": (["--momentum=0"], torch.optim.SGD, {}),
    "momentum": ([], torch.optim.SGD, {"momentum": 0.9}),
    "nesterov": (["--nesterov"], torch.optim.SGD, {"momentum": 0.9, "nesterov": True}),
    "adamw": (["--optimizer=adamw"], torch.optim.AdamW, {}),
}


class Small(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.conv, self.norm, self.linear = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)
        self.scalar = nn.Parameter(torch.zeros(()))


def set_gradients(model, seed):
    generator = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter.grad = torch.randn(parameter.shape, generator=generator)


@pytest.mark.parametrize("decay_on", ["all", "weights"])
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_steps_are_those_of_torch(recipe, decay_on):
    flags, kind, options = RECIPES[recipe]
    settings = parse_args([*flags, "--weight_decay=0.1", f"--weight_decay_on={decay_on}"])
    own, other = Small(), Small()
    optimizer = Optimizer(settings, own)
    weights = [other.conv.weight, other.linear.weight]
    rest = [p for p in other.parameters() if all(p is not weight for weight in weights)]
    decay = 0.1 if decay_on == "all" else 0.0
    groups = [{"params": weights, "weight_decay": 0.1}, {"params": rest, "weight_decay": decay}]
    expected = kind(groups, lr=1.0, foreach=False, **options)
    for index in range(5):
        for group in expected.param_groups:
            group["lr"] = 0.01 / (1 + index)
        for model in (own, other):
            set_gradients(model, index)
        expected.step()
        optimizer.step(0.01 / (1 + index))
        if index == 2:  # continued from its state
            state, optimizer = optimizer.state_dict(), Optimizer(settings, own)
            optimizer.load_state_dict(state)
    for mine, theirs in zip(own.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(mine, theirs)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in own.parameters())


def test_the_state_exists_before_the_first_step():
    for flags, names in ((["--optimizer=adamw"], 3), ([], 1), (["--momentum=0"], 0)):
        model = Small()
        assert len(Optimizer(parse_args(flags), model).tensors()) == names * len(list(model.parameters()))


def test_the_state_of_other_parameters_is_refused():
    with_momentum = Optimizer(parse_args([]), Small())
    wider = Small()
    wider.linear = nn.Linear(4, 3)
    for other in (Optimizer(parse_args([]), wider), Optimizer(parse_args(["--momentum=0"]), Small())):
        with pytest.raises(ValueError, match="other parameters"):
            with_momentum.load_state_dict(other.state_dict())


def test_the_state_of_the_version_with_its_own_sgd_continues():
    model = Small()
    optimizer = Optimizer(parse_args([]), model)
    velocities = [torch.randn_like(parameter) for parameter in model.parameters()]
    optimizer.load_state_dict({"velocities": velocities})
    assert all(map(torch.equal, optimizer.tensors(), velocities))
    without = Optimizer(parse_args(["--momentum=0"]), Small())
    without.load_state_dict({"velocities": [None] * len(velocities)})


def test_gradients_are_clipped_to_a_norm():
    model = Small()
    optimizer = Optimizer(parse_args([]), model)
    set_gradients(model, 0)
    before = torch.cat([gradient.flatten() for gradient in optimizer.gradients()])
    optimizer.clip(None)
    assert torch.equal(torch.cat([gradient.flatten() for gradient in optimizer.gradients()]), before)
    optimizer.clip(0.5)
    after = torch.cat([gradient.flatten() for gradient in optimizer.gradients()])
    torch.testing.assert_close(after, before * (0.5 / before.norm()), rtol=1e-5, atol=1e-7)
    optimizer.clip(0.6)
    assert torch.equal(torch.cat([gradient.flatten() for gradient in optimizer.gradients()]), after)


@pytest.mark.parametrize("scale", [0, 1e-40, 1e20, 1e38])
def test_gradients_whose_squares_leave_float32_are_clipped_too(scale):
    model = Small()
    optimizer = Optimizer(parse_args([]), model)
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, scale)
    optimizer.clip(0.5)
    after = torch.cat([gradient.flatten() for gradient in optimizer.gradients()])
    expected = min(scale, 0.5 / math.sqrt(len(after)))
    torch.testing.assert_close(after, torch.full_like(after, expected), rtol=1e-5, atol=0)


@pytest.mark.parametrize("arch", ["vgg", "resnet-56", "vit"])
def test_weights_are_those_of_convolutions_and_linear_layers(arch):
    model = build_model(arch, norm_type="BatchNorm", num_classes=10)
    named = dict(model.named_parameters())
    weights = set(weight_names(model))
    assert all(named[name].dim() >= 2 for name in weights)
    others = {name for name in named if name not in weights}
    assert all(named[name].dim() <= 1 or name in ("class_token", "positions") for name in others), others

"""The probe recorder: what it records, keeps and forgets, and that it leaves training unchanged."""

import copy
import math
from typing import Any

import pytest
import torch
from probes_helpers import activation_statistics, recorded
from torch.nn import functional as F

import config
from models import build_model
from normstudy.kernels.probe_statistics import norms_and_angles
from normstudy.storage import ACTIVATION_KEYS, CONV_KEYS, PROBE_KEYS
from normstudy.training.probe_recorder import ProbeRecorder

SMALL_VIT = {"image_size": 16, "patch_size": 8}


pytestmark = pytest.mark.usefixtures("form")  # each test runs in every form of the kernels


def train_steps(arch, recorder_of=None, steps=3, **options):
    """Take a few SGD steps; return (losses, model, recorder)."""
    torch.manual_seed(0)
    model = build_model(arch, num_classes=10, **options).to(memory_format=torch.channels_last)
    keys_before = list(model.state_dict())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.05, momentum=0.9)
    recorder = recorder_of(model) if recorder_of else None
    losses = []
    for step in range(steps):
        x, y = torch.randn(4, 3, 16, 16), torch.randint(10, (4,))
        if recorder is None:
            loss = F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
        else:
            with recorded(recorder, step):
                loss = F.cross_entropy(model(x), y)
                optimizer.zero_grad()
                loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert list(model.state_dict()) == keys_before
    return losses, model, recorder


@pytest.mark.parametrize(
    ("arch", "options"),
    [
        ("vgg", {"norm_type": "BatchNorm"}),
        ("resnet-56", {"norm_type": "GroupNorm"}),
        ("resnet-56", {"norm_type": "EvoNormBO", "preact": True, "skipinit": True}),
        ("vit", {"norm_type": "LayerNorm", **SMALL_VIT}),
    ],
)
def test_probing_changes_neither_losses_nor_weights(arch, options):
    plain_losses, plain, _ = train_steps(arch, **options)
    losses, probed, recorder = train_steps(arch, ProbeRecorder, **options)
    assert losses == plain_losses
    assert all(
        torch.equal(a, b) for a, b in zip(plain.state_dict().values(), probed.state_dict().values(), strict=True)
    )
    dump = recorder.dump()
    assert all(dump[key].isfinite().all() for key in PROBE_KEYS)


@pytest.mark.parametrize("arch", config.ARCHS)
def test_recorded_values_are_those_of_the_sites(arch):
    """The reference outputs and gradients come from the test's own hooks."""
    torch.manual_seed(0)
    options: dict[str, Any] = SMALL_VIT if arch == "vit" else {}
    model = build_model(arch, norm_type="BatchNorm", num_classes=10, **options)
    x, y = torch.randn(5, 3, 16, 16), torch.randint(10, (5,))
    if arch == "vit":  # a classifier initialized to 0 sends no gradient back
        torch.nn.init.normal_(model.classifier.weight)
    reference = copy.deepcopy(model)
    outputs = {}

    def keep(name):
        def hook(module, inputs, output):
            output.retain_grad()
            outputs[name] = output

        return hook

    for kind, names in reference.probe_sites().items():
        for name in names:
            reference.get_submodule(name).register_forward_hook(keep((kind, name)))
    F.cross_entropy(reference(x), y).backward()
    recorder = ProbeRecorder(model)
    with recorded(recorder, 0):
        F.cross_entropy(model(x), y).backward()
    dump = recorder.dump()
    for kind, names in reference.probe_sites().items():
        assert dump["sites"][kind] == names
        for index, name in enumerate(names):
            output = outputs[kind, name].detach()
            maps = output.transpose(1, 2).unsqueeze(3) if output.dim() == 3 else output
            if kind == "conv":
                deviation = maps.double().var((0, 2, 3), correction=0).sqrt().mean()
                gradient = outputs[kind, name].grad.double().square().sum().sqrt()
                expected = {"std": deviation, "grad_norm": gradient}
            else:
                expected = activation_statistics(output.double())
            for key, value in expected.items():
                torch.testing.assert_close(dump[key][0, index], value.float(), rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("rate", [0.1, 1e-6, 1e-12, 0.0])
def test_the_angle_of_an_update_is_exact_however_small_it_is(rate):
    torch.manual_seed(0)
    model = build_model("vgg", norm_type="BatchNorm", num_classes=10).double()
    model.classifier.weight.data.zero_()
    recorder = ProbeRecorder(model)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    x, y = torch.randn(5, 3, 16, 16).double(), torch.randint(10, (5,))
    with recorded(recorder, 0):
        F.cross_entropy(model(x), y).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.grad is not None:
                    parameter.sub_(rate * parameter.grad)
    dump = recorder.dump()
    assert dump["sites"]["weight"] == [f"blocks.{index}.conv.weight" for index in range(10)] + ["classifier.weight"]
    for index, name in enumerate(dump["sites"]["weight"]):
        old, new = before[name].flatten(), model.get_parameter(name).detach().flatten()
        if not old.any():
            assert (dump["weight_norm"][0, index], dump["update_angle"][0, index]) == (0, 0)
            continue
        torch.testing.assert_close(dump["weight_norm"][0, index].double(), old.norm(), rtol=1e-6, atol=0)
        update = new - old
        across = (update - (update @ old) / (old @ old) * old).norm()
        angle = torch.atan2(across, old.norm() + update @ old / old.norm())
        torch.testing.assert_close(dump["update_angle"][0, index].double(), angle, rtol=1e-3, atol=3e-16)


@pytest.mark.parametrize("shape", [(64, 3, 3, 3), (256, 128, 3, 3), (10, 512)])
@pytest.mark.parametrize("size", [1e2, 1.0, 1e-3, 1e-7])
@pytest.mark.parametrize("along", [0.0, 1.0, 30.0, 1000.0])
def test_the_angle_is_exact_in_float32_even_if_the_update_is_almost_along_the_weight(form, shape, size, along):
    tolerance = 1e-3 if form == "device" else 1e-5  # on the CPU, torch._foreach_norm adds all entries at once
    generator = torch.Generator().manual_seed(0)
    old, other = (torch.randn(shape, generator=generator) for _ in range(2))
    new = old + size * (other + along * old)
    [norm], [angle] = norms_and_angles([old], [new])
    a, b = old.double().flatten(), new.double().flatten()
    torch.testing.assert_close(norm.double(), a.norm(), rtol=tolerance, atol=0)
    update = b - a
    across = (update - (update @ a) / (a @ a) * a).norm()
    expected = torch.atan2(across, a.norm() + update @ a / a.norm())
    torch.testing.assert_close(angle.double(), expected, rtol=tolerance, atol=0)


def test_the_angle_of_a_weight_that_is_zero_or_not_finite():
    weight = torch.randn(50, 40, generator=torch.Generator().manual_seed(0))
    zeros = torch.zeros_like(weight)
    _, angles = norms_and_angles([weight, zeros, zeros, weight], [zeros, weight, zeros, weight])
    assert angles.tolist() == [0, 0, 0, 0]
    for bad in (math.nan, math.inf):
        other = weight.clone()
        other[3, 4] = bad
        assert norms_and_angles([weight, other], [other, weight])[1].isnan().all()


def test_a_state_of_the_version_without_weights_is_continued():
    _, model, recorder = train_steps("vgg", ProbeRecorder, norm_type="BatchNorm", steps=2)
    old = {key: value for key, value in recorder.state_dict().items() if key in ("iteration", "sites", *PROBE_KEYS)}
    other = ProbeRecorder(model)
    other.load_state_dict(old)
    dump = other.dump()
    assert torch.equal(dump["stable_rank"], old["stable_rank"])
    assert all(dump[key].isnan().all() for key in ("weight_norm", "update_angle", "learning_rate"))


def test_a_dump_holds_the_iterations_since_the_last_one():
    _, model, recorder = train_steps("vgg", ProbeRecorder, norm_type="BatchNorm", steps=3)
    first = recorder.dump()
    with recorded(recorder, 7):
        model(torch.randn(2, 3, 16, 16)).sum().backward()
    second = recorder.dump()
    assert first["iteration"].tolist() == [0, 1, 2]
    assert second["iteration"].tolist() == [7]
    assert {key: tuple(first[key].shape) for key in PROBE_KEYS} == dict.fromkeys(PROBE_KEYS, (3, 10))
    assert all(first[key].dtype == torch.float32 for key in PROBE_KEYS)


def test_a_step_that_fails_is_not_kept():
    _, model, recorder = train_steps("vgg", ProbeRecorder, norm_type="BatchNorm", steps=1)
    with pytest.raises(RuntimeError, match="channels"), recorded(recorder, 1):
        model(torch.randn(2, 1, 16, 16))
    assert recorder.dump()["iteration"].tolist() == [0]


def test_state_survives_saving_and_drop_after_forgets():
    _, model, recorder = train_steps("vgg", ProbeRecorder, norm_type="BatchNorm", steps=3)
    copy_of_state = recorder.state_dict()
    other = ProbeRecorder(model)
    other.load_state_dict(copy_of_state)
    other.drop_after(1)
    dump = other.dump()
    assert dump["iteration"].tolist() == [0, 1]
    assert torch.equal(dump["stable_rank"], copy_of_state["stable_rank"][:2])


def test_close_takes_every_hook_off():
    model = build_model("vgg", norm_type="BatchNorm", num_classes=10)
    ProbeRecorder(model).close()
    assert not any(module._forward_hooks for module in model.modules())


def test_keys_are_split_between_the_sites():
    assert PROBE_KEYS == CONV_KEYS + ACTIVATION_KEYS


class Chain(torch.nn.Sequential):
    """Two convolutions and three activations, of which only ReLU's and the sigmoid's have no negative entries."""

    def __init__(self):
        nn = torch.nn
        super().__init__(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.Tanh(), nn.Sigmoid())

    def probe_sites(self):
        return {"conv": ["0", "2"], "activation": ["1", "3", "4"]}


def test_sites_are_recorded_in_their_order():
    torch.manual_seed(0)
    model = Chain()
    x = torch.randn(128, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    recorder = ProbeRecorder(model)  # type: ignore[arg-type]  # it names its sites as our networks do
    with recorded(recorder, 0):
        outputs = [x := layer(x) for layer in model]
        outputs[-1].sum().backward()
    dump = recorder.dump()
    activations = [outputs[1], outputs[3], outputs[4]]
    for index, output in enumerate(activations):
        for key, value in activation_statistics(output.detach()).items():
            torch.testing.assert_close(dump[key][0, index], value, rtol=1e-6, atol=0)

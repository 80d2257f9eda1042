"""Activation and gradient statistics against float64 textbook values."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch.nn import functional as F

import config
from models import build_model
from normstudy.kernels import gram_statistics
from normstudy.kernels.probe_statistics import activation_statistics, gram_matrix, power_iteration_statistics
from normstudy.storage import ACTIVATION_KEYS, CONV_KEYS, PROBE_KEYS
from normstudy.training.probe_recorder import ProbeRecorder

SMALL_VIT = {"image_size": 16, "patch_size": 8}


def textbook(x):
    """The four statistics in float64 by their definitions: loops over pairs, an SVD. x is (N, C, H, W)."""
    x = x.double()
    rows = [sample.flatten() for sample in x]
    norms = [row.square().sum().sqrt() for row in rows]
    cosines = [(a @ b) / (norms[i] * norms[j]) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    unit = torch.stack([row / norm for row, norm in zip(rows, norms, strict=True)])
    variances = [((x[:, c] - x[:, c].mean()) ** 2).mean() for c in range(x.shape[1])]
    singular_values = torch.linalg.svdvals(unit)
    return {
        "activation_norm": torch.stack(norms).mean(),
        "activation_variance": torch.stack(variances).mean(),
        "cosine_similarity": torch.stack(cosines).mean(),
        "stable_rank": unit.square().sum() / singular_values[0] ** 2,
    }


def inputs():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(12, 5, 4, 3, generator=generator)
    return {
        "normal": noise,
        "rectified": noise.relu(),
        "far from zero": noise + 30,
        "tiny": noise * 1e-12,
        "huge": noise * 1e12,
        "two clusters": noise * 0.01 + torch.tensor([1.0, -1.0]).repeat(6)[:, None, None, None],
        "orthogonal": torch.eye(12).view(12, 1, 4, 3),
    }


@pytest.mark.parametrize("name", inputs())
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("key", ACTIVATION_KEYS)
def test_statistics_equal_their_definitions(name, memory_format, key):
    x = inputs()[name]
    expected = textbook(x)[key].float()
    found = activation_statistics(x.contiguous(memory_format=memory_format))[key]
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize("key", ACTIVATION_KEYS)
def test_statistics_in_float64_are_exact(key):
    x = inputs()["rectified"].double()
    torch.testing.assert_close(activation_statistics(x)[key], textbook(x)[key], rtol=1e-9, atol=0)


@pytest.mark.parametrize("key", ACTIVATION_KEYS)
def test_statistics_of_half_precision_keep_two_digits(key):
    x = inputs()["rectified"].bfloat16()
    torch.testing.assert_close(activation_statistics(x)[key], textbook(x)[key].float(), rtol=1e-2, atol=1e-3)


def test_stable_rank_of_a_nearly_degenerate_spectrum():
    """256 random directions in 2048 dimensions: the largest singular values lie as close as they can."""
    x = torch.randn(256, 512, 2, 2, generator=torch.Generator().manual_seed(0))
    singular_values = torch.linalg.svdvals(F.normalize(x.double().flatten(1)))
    expected = 256 / singular_values[0] ** 2
    torch.testing.assert_close(activation_statistics(x)["stable_rank"], expected.float(), rtol=1e-3, atol=0)


def test_tokens_are_samples_of_positions_and_channels():
    tokens = torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(0))
    as_maps = activation_statistics(tokens.transpose(1, 2).unsqueeze(3).contiguous())
    torch.testing.assert_close(activation_statistics(tokens), as_maps)


def test_zero_samples_give_finite_numbers():
    x = torch.zeros(4, 3, 2, 2)
    x[1:3] = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert all(value.isfinite() for value in activation_statistics(x).values())
    assert all(value.isfinite() for value in activation_statistics(torch.zeros(4, 3, 2, 2)).values())


def test_a_zero_sample_counts_as_orthogonal_to_every_other():
    x = torch.ones(3, 2, 1, 1)
    x[2] = 0
    found = activation_statistics(x)
    assert found["cosine_similarity"].item() == pytest.approx(2 / 6)
    assert found["stable_rank"].item() == pytest.approx(1)


def test_statistics_are_zero_dimensional_and_off_the_graph():
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    assert all(value.dim() == 0 and not value.requires_grad for value in activation_statistics(x).values())


@pytest.mark.parametrize(
    ("arch", "options", "conv", "activation"),
    [
        ("vgg", {}, 10, 10),
        ("vgg", {"cfg": "cfg_40"}, 40, 40),
        ("resnet-56", {}, 57, 55),
        ("resnet-56", {"preact": True}, 57, 55),
        ("vit", SMALL_VIT, 12, 6),
    ],
)
@pytest.mark.parametrize("norm_type", ["BatchNorm", "EvoNormSO", "FilterResponseNorm", "WeightNorm"])
def test_every_convolution_and_activation_is_a_site(arch, options, conv, activation, norm_type):
    sites = build_model(arch, norm_type=norm_type, num_classes=10, **options).probe_sites()
    assert (len(sites["conv"]), len(sites["activation"])) == (conv, activation)


def train_steps(arch, recorder_of=None, steps=3, **options):
    """The losses and the final weights of a few SGD steps."""
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
            with recorder.step(step):
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
    """Against outputs and gradients that plain hooks of the test's own collect."""
    torch.manual_seed(0)
    options = SMALL_VIT if arch == "vit" else {}
    model = build_model(arch, norm_type="BatchNorm", num_classes=10, **options)
    x, y = torch.randn(5, 3, 16, 16), torch.randint(10, (5,))
    if arch == "vit":  # a classifier from 0 sends no gradient back
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
    with recorder.step(0):
        F.cross_entropy(model(x), y).backward()
    dump = recorder.dump()
    for kind, names in dump["sites"].items():
        for index, name in enumerate(names):
            output = outputs[kind, name].detach()
            maps = output.transpose(1, 2).unsqueeze(3) if output.dim() == 3 else output
            if kind == "conv":
                deviation = maps.double().var((0, 2, 3), correction=0).sqrt().mean()
                gradient = outputs[kind, name].grad.double().square().sum().sqrt()
                expected = {"std": deviation, "grad_norm": gradient}
            else:
                expected = textbook(maps)
            for key, value in expected.items():
                torch.testing.assert_close(dump[key][0, index], value.float(), rtol=1e-4, atol=1e-7)


def test_a_dump_holds_the_iterations_since_the_last_one():
    _, model, recorder = train_steps("vgg", ProbeRecorder, norm_type="BatchNorm", steps=3)
    first = recorder.dump()
    with recorder.step(7):
        model(torch.randn(2, 3, 16, 16)).sum().backward()
    second = recorder.dump()
    assert first["iteration"].tolist() == [0, 1, 2]
    assert second["iteration"].tolist() == [7]
    assert {key: tuple(first[key].shape) for key in PROBE_KEYS} == dict.fromkeys(PROBE_KEYS, (3, 10))
    assert all(first[key].dtype == torch.float32 for key in PROBE_KEYS)


def test_a_step_that_fails_is_not_kept():
    _, model, recorder = train_steps("vgg", ProbeRecorder, norm_type="BatchNorm", steps=1)
    with pytest.raises(RuntimeError, match="channels"), recorder.step(1):
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


def large_batches():
    """128 samples without negative entries, whose leading direction is more and less easy to find."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(128, 8, 4, 4, generator=generator)
    basis = torch.eye(128).view(128, 8, 4, 4)
    clusters = basis[torch.arange(128) % 2]
    alike = basis.clone()
    alike[:8] = basis[0]
    dead = noise.clone()
    dead[::3] = 0
    return {
        "rectified": torch.randn(128, 8, 4, 4, generator=generator).relu(),
        "positive": noise,
        "orthogonal": basis,
        "two clusters as large": clusters,
        "two clusters": basis[(torch.arange(128) < 70).long()] + 0.1 * noise,
        "eight alike": alike,
        "dead samples": dead,
        "all dead": torch.zeros(128, 8, 4, 4),
        "negative entries": noise - 0.5,
    }


@pytest.mark.parametrize("name", large_batches())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_of_large_batches(name, dtype):
    x = large_batches()[name].to(dtype, memory_format=torch.channels_last)
    rows = x.double().flatten(1)
    cosines = F.normalize(rows) @ F.normalize(rows).T
    eigenvalues = torch.linalg.eigvalsh(cosines)
    expected = {
        "activation_norm": rows.norm(dim=1).mean(),
        "activation_variance": x.double().var((0, 2, 3), correction=0).mean(),
        "cosine_similarity": (cosines.sum() - cosines.trace()) / (128 * 127),
        "stable_rank": cosines.trace() / eigenvalues[-1].clamp_min(1e-300),
    }
    for key, value in activation_statistics(x).items():
        tolerance = 1e-3 if key == "stable_rank" else 2e-5 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(value.double(), expected[key], rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize("name", ["rectified", "positive", "dead samples"])
def test_activations_of_relu_take_the_quick_way(name):
    x = large_batches()[name]
    statistics = power_iteration_statistics(x)
    gram = gram_statistics(gram_matrix(x)[None])
    for key, value in gram.items():
        torch.testing.assert_close(statistics[key], value[0], rtol=1e-5, atol=1e-6)


def test_sites_of_both_ways_are_recorded_in_their_order():
    torch.manual_seed(0)
    layers = [torch.nn.Conv2d(3, 4, 3), torch.nn.ReLU(), torch.nn.Conv2d(4, 4, 3), torch.nn.Tanh(), torch.nn.Sigmoid()]
    names = ["conv1", "activation1", "conv2", "activation2", "activation3"]
    model = torch.nn.Sequential(OrderedDict(zip(names, layers, strict=True)))
    x = torch.randn(128, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    recorder = ProbeRecorder(model)
    with recorder.step(0):
        outputs = [x := layer(x) for layer in model]
        outputs[-1].sum().backward()
    dump = recorder.dump()
    activations = [outputs[1], outputs[3], outputs[4]]
    assert [power_iteration_statistics(output) is None for output in activations] == [False, True, False]
    for index, output in enumerate(activations):
        for key, value in activation_statistics(output.detach()).items():
            torch.testing.assert_close(dump[key][0, index], value, rtol=1e-6, atol=0)


@pytest.mark.parametrize("name", ["all dead", "negative entries", "nan", "small", "half"])
def test_what_power_iteration_is_not_sure_of_goes_another_way(name):
    batches = large_batches()
    positive = batches["positive"]
    cases = {"nan": positive * torch.nan, "small": positive[:64], "half": positive.bfloat16()}
    assert power_iteration_statistics((batches | cases)[name]) is None


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-3)])
@pytest.mark.parametrize("offset", [0.0, 1.0, 2.9, 3.1, 30.0])
def test_variance_of_a_large_batch_keeps_its_digits(offset, dtype, tolerance):
    """Whether it comes from the mean square or, where that would cancel, from the centred map."""
    noise = torch.randn(128, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    x = (noise + offset).to(dtype, memory_format=torch.channels_last)
    expected = x.double().var((0, 2, 3), correction=0).mean().float()
    torch.testing.assert_close(activation_statistics(x)["activation_variance"], expected, rtol=tolerance, atol=0)

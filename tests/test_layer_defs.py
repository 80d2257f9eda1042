"""Every layer against its formula, written out here in float64, and against the layers of other libraries.

The notation is that of layer_defs: x is (N, C, H, W). A norm_type without an entry in TEXTBOOK, or a conv_type without
one in WEIGHTS, fails these tests.
"""

import copy
import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.func import functional_call
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm
from torch.testing import assert_close

import config
import layer_defs
from config import convolution_of
from layer_defs import build_conv, build_linear, build_norm, build_token_norm

pytestmark = pytest.mark.usefixtures("form")  # each test runs in every form of the kernels

CHANNELS, GROUPS = 6, 2
SHAPE = (4, CHANNELS, 5, 3)
EXACT: dict[str, Any] = {"rtol": 1e-10, "atol": 1e-12}
FLOAT32: dict[str, Any] = {"rtol": 1e-5, "atol": 1e-5}  # for peers that always compute in float32
RELU_STD = math.sqrt((math.pi - 1) / (2 * math.pi))  # standard deviation of ReLU(z), z standard normal
WEIGHT_BASED = ("Plain", "WeightNorm", "ScaledWeightStandardization")

every_conv = pytest.mark.parametrize("conv_type", config.CONV_TYPES)
both_modes = pytest.mark.parametrize("training", [True, False], ids=["train", "eval"])


def images(seed=0, shape=SHAPE):
    """Return images whose channels differ in mean and spread, so that statistics differ between dimensions."""
    generator = torch.Generator().manual_seed(seed)
    spread = torch.rand(1, shape[1], 1, 1, generator=generator, dtype=torch.float64) + 0.5
    offset = torch.randn(1, shape[1], 1, 1, generator=generator, dtype=torch.float64)
    return torch.randn(shape, generator=generator, dtype=torch.float64) * spread + offset


def randomized(module, seed=1):
    """Return the module in float64, with random parameters and running statistics away from their initial values."""
    generator = torch.Generator().manual_seed(seed)
    module.double()
    for name, tensor in module.state_dict().items():
        values = torch.randn(tensor.shape, generator=generator, dtype=torch.float64)
        if name.endswith("eps_l"):
            values = torch.full_like(values, -0.3)  # negative, so that the absolute value matters
        elif "running_" in name and not name.endswith("running_mean"):
            values = values.square() + 0.2
        tensor.copy_(values)
    return module


def random_pair(norm_type, training=True, channels=CHANNELS):
    """Return the norm and activation of norm_type in one module, at random values."""
    return randomized(nn.Sequential(*build_norm(norm_type, channels, GROUPS))).train(training)


def run_backward(module, x):
    """Run forward, and backward from a random weighting of the output; return the output."""
    out = module(x)
    (out * torch.rand(out.shape, generator=torch.Generator().manual_seed(5), dtype=out.dtype)).sum().backward()
    return out


def tensors_of(module):
    """Return {last part of the name: tensor} of parameters and buffers."""
    return {name.rpartition(".")[2]: tensor for name, tensor in module.state_dict().items()}


# The formulas. p holds the layer's parameters, and its statistics (C,) under the names of the running ones. In training
# they are those of the batch.


def maps(per_channel):
    return per_channel[None, :, None, None]


def batch_mean(x):
    return torch.stack([x[:, channel].mean() for channel in range(x.shape[1])])


def batch_variance(x):
    return torch.stack([(x[:, channel] - x[:, channel].mean()).square().mean() for channel in range(x.shape[1])])


def by_group(x, groups, function):
    """Apply function(part) to the channels of each group of each sample and put the results together."""
    size = x.shape[1] // groups
    out = torch.empty_like(x)
    for sample in range(len(x)):
        for first in range(0, x.shape[1], size):
            out[sample, first : first + size] = function(x[sample, first : first + size])
    return out


def deviation(part):
    return ((part - part.mean()).square().mean() + 1e-5).sqrt()


def standardized(x, groups):
    return by_group(x, groups, lambda part: (part - part.mean()) / deviation(part))


def affine(x, p):
    return maps(p["weight"]) * x + maps(p["bias"])


def plain(x, p):
    return x


def batch_norm(x, p):
    return affine((x - maps(p["running_mean"])) / (maps(p["running_var"]) + 1e-5).sqrt(), p)


def layer_norm(x, p):
    return affine(standardized(x, 1), p)


def instance_norm(x, p):
    return affine(standardized(x, x.shape[1]), p)


def group_norm(x, p):
    return affine(standardized(x, GROUPS), p)


def filter_response_norm(x, p):
    nu_squared = by_group(x, x.shape[1], lambda part: part.square().mean().expand_as(part))
    return affine(x / (nu_squared + 1e-6 + p["eps_l"].abs()).sqrt(), p)


def evo_norm_s0(x, p):
    swish = x / (1 + torch.exp(-maps(p["v"]) * x))
    return affine(swish / by_group(x, GROUPS, lambda part: deviation(part).expand_as(part)), p)


def evo_norm_b0(x, p):
    instance = by_group(x, x.shape[1], lambda part: deviation(part).expand_as(part))
    grown, batch = maps(p["v"]) * x + instance, (maps(p["running_var"]) + 1e-5).sqrt().expand_as(x)
    return affine(x / torch.where(grown > batch, grown, batch), p)


def variance_norm(x, p):
    return affine(x / (maps(p["running_var"]) + 1e-5).sqrt(), p)


def mean_centering(x, p):
    return affine(x - maps(p["running_mean"]), p)


def rms_norm(x, p):
    return maps(p["weight"]) * by_group(x, 1, lambda part: part / (part.square().mean() + 1e-5).sqrt())


def dynamic_tanh(x, p):
    grown = torch.exp(2 * p["alpha"] * x)
    return affine((grown - 1) / (grown + 1), p)


def relu(x, p):
    return torch.where(x > 0, x, 0.0)


def thresholded(x, p):
    return torch.where(x > maps(p["tau"]), x, maps(p["tau"]))


def scaled_relu(x, p):
    return (relu(x, p) - 1 / math.sqrt(2 * math.pi)) / RELU_STD


def no_activation(x, p):
    return x


# norm_type: (norm slot, activation slot, initial values of all parameters and buffers)
AFFINE = {"weight": 1.0, "bias": 0.0}
TEXTBOOK = {
    "Plain": (plain, relu, {}),
    "BatchNorm": (batch_norm, relu, AFFINE | {"running_mean": 0.0, "running_var": 1.0}),
    "LayerNorm": (layer_norm, relu, AFFINE),
    "InstanceNorm": (instance_norm, relu, AFFINE),
    "GroupNorm": (group_norm, relu, AFFINE),
    "FilterResponseNorm": (filter_response_norm, thresholded, AFFINE | {"eps_l": 1e-5, "tau": 0.0}),
    "WeightNorm": (plain, scaled_relu, {}),
    "ScaledWeightStandardization": (plain, relu, {}),
    "EvoNormSO": (evo_norm_s0, no_activation, AFFINE | {"v": 1.0}),
    "EvoNormBO": (evo_norm_b0, no_activation, AFFINE | {"v": 1.0, "running_var": 1.0}),
    "VarianceNorm": (variance_norm, relu, AFFINE | {"running_var": 1.0}),
    "MeanCentering": (mean_centering, relu, AFFINE | {"running_mean": 0.0}),
    "RMSNorm": (rms_norm, relu, {"weight": 1.0}),
    "DynamicTanh": (dynamic_tanh, relu, AFFINE | {"alpha": 0.5}),
}
# running statistic: (its value for a batch, its start value)
STATISTICS = {"running_mean": (batch_mean, 0.0), "running_var": (batch_variance, 1.0)}
RUNNING = [name for name, (_, _, initial) in TEXTBOOK.items() if any(key.startswith("running_") for key in initial)]
every_norm = pytest.mark.parametrize("norm_type", [name for name in config.NORM_TYPES if name in TEXTBOOK])


def textbook_norm(norm_type, x, module):
    """Return the output of the norm slot of norm_type for x, with the parameters and the mode of `module`."""
    p = tensors_of(module)
    if module.training:
        p |= {name: of_batch(x) for name, (of_batch, _) in STATISTICS.items() if name in p}
    return TEXTBOOK[norm_type][0](x, p)


def textbook_pair(norm_type, x, module):
    return TEXTBOOK[norm_type][1](textbook_norm(norm_type, x, module), tensors_of(module))


# The registry.


def test_the_registries_hold_exactly_the_names_of_config():
    assert (tuple(layer_defs.NORMS), tuple(layer_defs.CONVS)) == (config.NORM_TYPES, config.CONV_TYPES)


def test_every_name_has_its_formula_in_this_file():
    assert set(TEXTBOOK) ^ set(config.NORM_TYPES) == set(), "these lack an entry in TEXTBOOK"
    assert set(WEIGHTS) ^ set(config.CONV_TYPES) == set(), "these lack an entry in WEIGHTS"
    running = {name for _, _, initial in TEXTBOOK.values() for name in initial if name.startswith("running_")}
    assert running - set(STATISTICS) == set(), "these lack an entry in STATISTICS"


@every_norm
def test_norm_starts_from_the_values_of_its_paper(norm_type):
    found = tensors_of(nn.Sequential(*build_norm(norm_type, CHANNELS, GROUPS)))
    initial = TEXTBOOK[norm_type][2]
    assert found.keys() == initial.keys()
    for name, value in initial.items():
        shape = () if name in ("eps_l", "alpha") else (CHANNELS,)
        assert_close(found[name], torch.full(shape, value))


def test_unknown_names_are_refused():
    with pytest.raises(KeyError, match="NoNorm"):
        build_norm("NoNorm", CHANNELS)
    with pytest.raises(KeyError, match="NoConv"):
        build_conv("NoConv", 3, CHANNELS)


@pytest.mark.parametrize("build", [build_norm, build_token_norm])
@pytest.mark.parametrize("norm_type", [*config.GROUPED_NORMS, "EvoNormSO"])
@pytest.mark.parametrize("groups", [4, 0, 12])
def test_groups_that_do_not_divide_are_an_error_naming_layer_width_and_groups(build, norm_type, groups):
    with pytest.raises(ValueError, match=rf"{norm_type}.*\b6 channels.*\b{groups} groups"):
        build(norm_type, 6, groups)


# Norms against their formulas.


@both_modes
@every_norm
def test_norm_and_activation_compute_the_textbook_formula(norm_type, training):
    pair = random_pair(norm_type, training)
    assert_close(pair(images()), textbook_pair(norm_type, images(), pair), **EXACT)


@both_modes
@every_norm
def test_gradients_are_those_of_the_textbook_formula(norm_type, training):
    pair = random_pair(norm_type, training)
    direct, written_out = images().requires_grad_(), images().requires_grad_()
    run_backward(pair, direct)
    run_backward(lambda x: textbook_pair(norm_type, x, pair), written_out)
    assert_close(direct.grad, written_out.grad, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("norm_type", RUNNING)
def test_running_statistics_average_population_statistics_nine_to_one(norm_type):
    norm = build_norm(norm_type, CHANNELS, GROUPS)[0].double()
    expected = {name: torch.full((CHANNELS,), start).double() for name, (_, start) in STATISTICS.items()}
    for seed in range(4):
        norm(images(seed))
        for name, (of_batch, _) in STATISTICS.items():
            expected[name] = 0.9 * expected[name] + 0.1 * of_batch(images(seed))
    for name, buffer in norm.named_buffers():
        assert_close(buffer, expected[name], **EXACT)


@pytest.mark.parametrize("norm_type", RUNNING)
def test_evaluation_leaves_running_statistics_alone(norm_type):
    norm = random_pair(norm_type, training=False)
    before = copy.deepcopy(norm.state_dict())
    norm(images())
    assert all(torch.equal(tensor, before[name]) for name, tensor in norm.state_dict().items())


@pytest.mark.parametrize("norm_type", ["BatchNorm", "LayerNorm", "InstanceNorm", "GroupNorm"])
def test_output_is_standardized_where_the_formula_says(norm_type):
    out = build_norm(norm_type, CHANNELS, GROUPS)[0].double()(images())
    by_statistic = {
        "BatchNorm": out.transpose(0, 1).reshape(CHANNELS, -1),
        "LayerNorm": out.reshape(len(out), -1),
        "InstanceNorm": out.reshape(len(out) * CHANNELS, -1),
        "GroupNorm": out.reshape(len(out) * GROUPS, -1),
    }[norm_type]
    moments = torch.stack([by_statistic.mean(1), by_statistic.var(1, correction=0)], 1)
    assert_close(moments, torch.tensor([0.0, 1.0]).double().expand_as(moments), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("groups", "same_as"), [(1, "LayerNorm"), (CHANNELS, "InstanceNorm")])
def test_group_norm_with_one_group_or_one_a_channel(groups, same_as):
    grouped, other = randomized(build_norm("GroupNorm", CHANNELS, groups)[0]), build_norm(same_as, CHANNELS)[0].double()
    other.load_state_dict(grouped.state_dict())
    assert_close(grouped(images()), other(images()), **EXACT)


def test_the_threshold_acts_on_some_values_and_not_on_others():
    pair = random_pair("FilterResponseNorm")
    acted = pair(images()) != pair[0](images())
    assert 0.2 < acted.double().mean() < 0.8


def test_scaled_relu_of_a_standard_normal_has_mean_zero_and_variance_one():
    count = 1_000_000
    quantiles = (torch.arange(count, dtype=torch.float64) + 0.5) / count
    out = build_norm("WeightNorm", 1)[1](math.sqrt(2) * torch.erfinv(2 * quantiles - 1))
    assert_close(torch.stack([out.mean(), out.var()]), torch.tensor([0.0, 1.0]).double(), rtol=0, atol=1e-4)


# Norms against the layers of other libraries.


def same_affine(peer, norm):
    peer.double().load_state_dict(dict(norm.named_parameters()), strict=False)
    return peer


def test_batch_norm_is_torch_batch_norm_2d_but_for_the_running_variance():
    norm = random_pair("BatchNorm")[0]
    peer = same_affine(nn.BatchNorm2d(CHANNELS), norm)
    norm.running_mean.zero_()
    norm.running_var.fill_(1.0)
    assert_close(norm(images()), peer(images()), **EXACT)
    assert_close(norm.running_mean, peer.running_mean, **EXACT)
    count = images().numel() // CHANNELS
    assert_close(0.9 + (norm.running_var - 0.9) * count / (count - 1), peer.running_var, **EXACT)
    peer.load_state_dict(norm.state_dict(), strict=False)
    assert_close(norm.eval()(images(1)), peer.eval()(images(1)), **EXACT)


@pytest.mark.parametrize(
    ("norm_type", "peer"),
    [
        ("GroupNorm", nn.GroupNorm(GROUPS, CHANNELS)),
        ("InstanceNorm", nn.InstanceNorm2d(CHANNELS, affine=True)),
        ("LayerNorm", nn.GroupNorm(1, CHANNELS)),
    ],
)
def test_norm_is_torch_s(norm_type, peer):
    norm = random_pair(norm_type)[0]
    assert_close(norm(images()), same_affine(peer, norm)(images()), **EXACT)


@pytest.mark.parametrize(("norm_type", "peer"), [("LayerNorm", nn.LayerNorm), ("RMSNorm", nn.RMSNorm)])
def test_norm_is_torch_s_over_channels_and_positions(norm_type, peer):
    norm = random_pair(norm_type)[0]
    normalized = peer(SHAPE[1:], eps=1e-5, elementwise_affine=False)(images())
    p = tensors_of(norm)
    assert_close(norm(images()), maps(p["weight"]) * normalized + maps(p.get("bias", torch.zeros(1))), **EXACT)


@both_modes
@pytest.mark.parametrize(
    ("norm_type", "peer_name", "settings"),
    [
        ("EvoNormSO", "EvoNorm2dS0", {"groups": GROUPS, "eps": 1e-5}),
        ("EvoNormBO", "EvoNorm2dB0", {"eps": 1e-5}),
        ("FilterResponseNorm", "FilterResponseNormTlu2d", {"eps": 1e-6 + 0.3}),
    ],
)
def test_norm_and_activation_are_timm_s(norm_type, peer_name, settings, training):
    layers = pytest.importorskip("timm.layers")
    pair = random_pair(norm_type, training)
    peer = getattr(layers, peer_name)(CHANNELS, **settings).double().train(training)
    peer.load_state_dict({name: value for name, value in tensors_of(pair).items() if name != "eps_l"})
    assert_close(pair(images()), peer(images()), **FLOAT32)


def test_filter_response_norm_thresholded_at_zero_is_timm_s_with_relu():
    layers = pytest.importorskip("timm.layers")
    pair = random_pair("FilterResponseNorm")
    nn.init.zeros_(pair[1].tau)
    peer = same_affine(layers.FilterResponseNormAct2d(CHANNELS, eps=1e-6 + 0.3), pair[0])
    assert_close(pair(images()), peer(images()), **FLOAT32)


# Properties that every norm must have.


def as_function(module):
    """Return (function of (x, *parameters), the parameters) of a module, for gradcheck."""
    names = [name for name, _ in module.named_parameters()]
    parameters = [parameter.detach().clone().requires_grad_() for parameter in module.parameters()]
    return lambda x, *values: functional_call(module, dict(zip(names, values, strict=True)), (x,)), parameters


def assert_differentiates_twice(module, x):
    function, parameters = as_function(module)
    inputs = (x.requires_grad_(), *parameters)
    assert gradcheck(function, inputs)
    assert gradgradcheck(function, inputs)


@both_modes
@every_norm
def test_norm_and_activation_differentiate_twice(norm_type, training):
    assert_differentiates_twice(random_pair(norm_type, training, channels=4), images(3, shape=(3, 4, 3, 2)))


@every_norm
def test_running_statistics_stay_off_the_graph_and_the_layer_copies(norm_type):
    pair = random_pair(norm_type)
    run_backward(pair, images().requires_grad_())
    assert not any(buffer.requires_grad for buffer in pair.buffers())
    twin = copy.deepcopy(pair)
    assert_close(twin.eval()(images(1)), pair.eval()(images(1)), rtol=0, atol=0)


@both_modes
@every_norm
def test_neither_norm_nor_activation_writes_on_its_input(norm_type, training):
    norm, activation = random_pair(norm_type, training)
    x = images()
    normalized = norm(x)
    kept = normalized.detach().clone()
    activation(normalized)
    assert torch.equal(x, images())
    assert torch.equal(normalized, kept)


@both_modes
@every_norm
def test_channels_last_input_gives_the_same_output_gradient_and_statistics(norm_type, training):
    results = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        pair = random_pair(norm_type, training)
        x = images().contiguous(memory_format=memory_format).requires_grad_()
        out = run_backward(pair, x)
        results.append([out, x.grad, *[parameter.grad for parameter in pair.parameters()], *pair.buffers()])
    assert_close(*results, rtol=1e-10, atol=1e-11)


@both_modes
@every_norm
def test_bfloat16_input_gives_what_float32_gives_with_statistics_in_float32(norm_type, training):
    half = images().bfloat16()
    narrow, wide = random_pair(norm_type, training).float(), random_pair(norm_type, training).float()
    out, expected = narrow(half), wide(half.float())
    assert out.dtype == torch.bfloat16
    assert_close(out.float(), expected, rtol=2e-2, atol=2e-2)
    assert_close(list(narrow.buffers()), list(wide.buffers()), rtol=1e-5, atol=1e-6)


@both_modes
@every_norm
def test_float32_input_far_from_zero_keeps_its_variance(norm_type, training):
    """The formula E[x²] − E[x]² in float32 would fail here."""
    x = (images() + 1000).float().double()
    pair = nn.Sequential(*build_norm(norm_type, CHANNELS, GROUPS)).train(training)
    expected = copy.deepcopy(pair).double()(x)
    assert_close(pair(x.float()).double(), expected, rtol=1e-3, atol=1e-3)


@every_norm
def test_one_sample_of_one_position_stays_finite(norm_type):
    pair = random_pair(norm_type)
    x = images(shape=(1, CHANNELS, 1, 1)).requires_grad_()
    out = run_backward(pair, x)
    assert all(torch.isfinite(tensor).all() for tensor in (out, x.grad, *pair.buffers()))


@every_norm
def test_forward_mode_and_torch_func_go_through_every_norm(norm_type):
    """Only in eval mode: in training, running statistics are written, which torch.func does not allow."""
    pair, direction = random_pair(norm_type, training=False), images(7)
    found = torch.func.jvp(pair, (images(),), (direction,))[1]
    shift = 1e-6
    expected = (pair(images() + shift * direction) - pair(images() - shift * direction)) / (2 * shift)
    assert_close(found, expected, rtol=1e-6, atol=1e-7)
    many = torch.stack([images(), images(7)])
    assert_close(torch.func.vmap(pair)(many), torch.stack([pair(each) for each in many]))


# Norms on tokens (N, tokens, C).

TOKENS = (4, 7, CHANNELS)


def tokens(seed=0):
    return images(seed, (TOKENS[0], CHANNELS, TOKENS[1], 1)).squeeze(3).transpose(1, 2).contiguous()


def per_token(x, centred):
    """Standardize each token over its own channels, or divide it by its root mean square."""
    out = torch.empty_like(x)
    for index in [(sample, token) for sample in range(x.shape[0]) for token in range(x.shape[1])]:
        row = x[index] - x[index].mean() if centred else x[index]
        out[index] = row / (row.square().mean() + 1e-5).sqrt()
    return out


def textbook_tokens(norm_type, x, module):
    """Compute only the norm slot, with the tokens of a sample in place of the positions of an image."""
    p = tensors_of(module)
    if norm_type in ("LayerNorm", "RMSNorm"):
        return p["weight"] * per_token(x, norm_type == "LayerNorm") + p.get("bias", 0.0)
    as_images = x.permute(0, 2, 1)[..., None]
    out = textbook_norm(norm_type, as_images, module)
    if norm_type == "FilterResponseNorm":
        out = thresholded(out, p)
    return out[..., 0].permute(0, 2, 1)


def random_token_norm(norm_type, training=True):
    return randomized(build_token_norm(norm_type, CHANNELS, GROUPS)).train(training)


@both_modes
@every_norm
def test_token_norm_computes_the_textbook_formula(norm_type, training):
    norm = random_token_norm(norm_type, training)
    assert_close(norm(tokens()), textbook_tokens(norm_type, tokens(), norm), **EXACT)


@pytest.mark.parametrize(
    ("norm_type", "peer"),
    [
        ("BatchNorm", nn.BatchNorm1d(CHANNELS)),
        ("InstanceNorm", nn.InstanceNorm1d(CHANNELS, affine=True)),
        ("GroupNorm", nn.GroupNorm(GROUPS, CHANNELS)),
    ],
)
def test_token_norm_is_torch_s_of_sequences(norm_type, peer):
    norm = random_token_norm(norm_type)
    peer.double().load_state_dict(tensors_of(norm), strict=False)
    assert_close(norm(tokens()), peer(tokens().transpose(1, 2)).transpose(1, 2), **EXACT)


@pytest.mark.parametrize("norm_type", WEIGHT_BASED)
def test_token_norm_of_plain_and_weight_based_norms_is_the_identity(norm_type):
    x = tokens()
    assert torch.equal(build_token_norm(norm_type, CHANNELS)(x), tokens())


@pytest.mark.parametrize("norm_type", RUNNING)
def test_token_norm_keeps_running_statistics_over_samples_and_tokens(norm_type):
    norm = build_token_norm(norm_type, CHANNELS, GROUPS).double()
    norm(tokens())
    x = tokens().transpose(1, 2)[..., None]
    for name, buffer in norm.named_buffers():
        of_batch, start = STATISTICS[name.rpartition(".")[2]]
        assert_close(buffer, 0.9 * start + 0.1 * of_batch(x), **EXACT)


@both_modes
@every_norm
def test_token_norm_differentiates_twice_and_leaves_its_input_alone(norm_type, training):
    x = tokens()[:2, :3].clone()
    kept = x.clone()
    assert_differentiates_twice(random_token_norm(norm_type, training), x)
    assert torch.equal(x, kept)


# Convolutions and linear layers with transformed weights.


def by_output(weight, function):
    return torch.stack([function(row) for row in weight])


def weight_standardized(weight, gain):
    scaled = by_output(weight, lambda w: (w - w.mean()) / ((w - w.mean()).square().mean().sqrt() * w.numel() ** 0.5))
    return scaled / RELU_STD * gain


def weight_normalized(weight, gain):
    return by_output(weight, lambda w: w / w.square().sum().sqrt()) * gain


def weight_centred(weight, gain):
    return by_output(weight, lambda w: w - w.mean())


# conv_type: (weight that it computes with, whether it has a gain)
WEIGHTS = {
    "Plain": (lambda weight, gain: weight, False),
    "sWS": (weight_standardized, True),
    "WeightNormalized": (weight_normalized, True),
    "WeightCentered": (weight_centred, False),
}


def textbook_weight(conv_type, layer):
    gain = layer.gain.view(-1, *[1] * (layer.weight.dim() - 1)) if WEIGHTS[conv_type][1] else None
    return WEIGHTS[conv_type][0](layer.weight, gain)


def random_conv(conv_type, **settings):
    return randomized(build_conv(conv_type, 3, 4, **settings))


@every_conv
@pytest.mark.parametrize("settings", [{}, {"stride": 2, "bias": True}, {"kernel_size": 2, "padding": 0, "stride": 2}])
def test_conv_computes_with_the_transformed_weight(conv_type, settings):
    conv, x = random_conv(conv_type, **settings), images(shape=(2, 3, 6, 4))
    stride, padding = settings.get("stride", 1), settings.get("padding", 1)
    expected = F.conv2d(x, textbook_weight(conv_type, conv), conv.bias, stride, padding)
    assert (conv.bias is not None) == settings.get("bias", False)
    assert_close(conv(x), expected, **EXACT)


@every_conv
def test_linear_computes_with_the_transformed_weight_and_a_bias(conv_type):
    linear = randomized(build_linear(conv_type, CHANNELS, 5))
    expected = tokens() @ textbook_weight(conv_type, linear).T + linear.bias
    assert_close(linear(tokens()), expected, **EXACT)


@every_conv
@pytest.mark.parametrize("layer", [lambda name: build_conv(name, 3, 4), lambda name: build_linear(name, 3, 4)])
def test_gain_is_one_an_output_channel_from_one(conv_type, layer):
    gain = getattr(layer(conv_type), "gain", None)
    if WEIGHTS[conv_type][1]:
        assert gain is not None
        assert torch.equal(gain, torch.ones(4))
    else:
        assert gain is None


def test_sws_conv_is_timm_s_scaled_standardized_conv():
    layers = pytest.importorskip("timm.layers")
    conv = random_conv("sWS", bias=True)
    peer = layers.ScaledStdConv2d(3, 4, 3, padding=1, gamma=1 / RELU_STD, eps=1e-30).double()
    peer.load_state_dict({"weight": conv.weight, "bias": conv.bias, "gain": conv.gain.view(-1, 1, 1, 1)})
    x = images(shape=(2, 3, 6, 4))
    assert_close(conv(x), peer(x), **EXACT)


@pytest.mark.parametrize(
    ("layer", "peer", "shape"),
    [
        (lambda: build_conv("WeightNormalized", 3, 4, bias=True), lambda: nn.Conv2d(3, 4, 3, padding=1), (2, 3, 6, 4)),
        (lambda: build_linear("WeightNormalized", 4, 5), lambda: nn.Linear(4, 5), (2, 3, 6, 4)),
    ],
    ids=["conv", "linear"],
)
def test_weight_normalized_is_torch_s_weight_norm(layer, peer, shape):
    layer, peer = randomized(layer()), weight_norm(peer().double())
    with torch.no_grad():
        peer.parametrizations.weight.original0.copy_(layer.gain.view_as(peer.parametrizations.weight.original0))
        peer.parametrizations.weight.original1.copy_(layer.weight)
        peer.bias.copy_(layer.bias)
    assert_close(layer(images(shape=shape)), peer(images(shape=shape)), **EXACT)


@every_conv
def test_conv_and_linear_differentiate_twice(conv_type):
    assert_differentiates_twice(randomized(build_conv(conv_type, 2, 3, 2, bias=True)), images(shape=(2, 2, 2, 3)))
    assert_differentiates_twice(randomized(build_linear(conv_type, 4, 3)), images(shape=(1, 1, 2, 4)))


@every_conv
def test_conv_copies_after_backward_and_leaves_input_and_weight_alone(conv_type):
    conv, x = random_conv(conv_type, bias=True), images(shape=(2, 3, 6, 4))
    run_backward(conv, x)
    untouched = random_conv(conv_type, bias=True)
    assert torch.equal(x, images(shape=(2, 3, 6, 4)))
    assert torch.equal(conv.weight, untouched.weight)
    assert torch.equal(copy.deepcopy(conv)(x), untouched(x))


@every_conv
def test_conv_of_channels_last_and_bfloat16_input(conv_type):
    conv, x = random_conv(conv_type), images(shape=(2, 3, 6, 4))
    assert_close(conv(x.contiguous(memory_format=torch.channels_last)), conv(x), **EXACT)
    with torch.autocast("cpu", torch.bfloat16):
        narrow = conv.float()(x.float())
    assert narrow.dtype == torch.bfloat16
    assert_close(narrow.float(), conv(x.float()), rtol=2e-2, atol=0.1)


@every_conv
@pytest.mark.parametrize("constant", [False, True], ids=["fan_in_1", "constant_weights"])
def test_degenerate_weights_stay_finite(conv_type, constant):
    """A single weight, and weights that are all equal, have no deviation to divide by."""
    conv = build_conv(conv_type, 3 if constant else 1, 4, 1, padding=0, bias=True).double()
    if constant:
        nn.init.constant_(conv.weight, 0.0)
    out = run_backward(conv, images(shape=(2, conv.in_channels, 3, 2)))
    assert all(torch.isfinite(tensor).all() for tensor in (out, *[p.grad for p in conv.parameters()]))


@pytest.mark.parametrize("conv_type", ["sWS", "WeightCentered"])
def test_a_single_weight_centred_on_itself_is_zero(conv_type):
    linear = randomized(build_linear(conv_type, 1, 4))
    assert_close(linear(torch.ones(1, 1).double()), linear.bias[None], **EXACT)


# Which convolution goes with which norm.


@pytest.mark.parametrize("norm_type", [name for name in config.NORM_TYPES if name not in config.WEIGHT_NORMS])
@every_conv
def test_activation_based_norms_take_any_convolution_without_bias(norm_type, conv_type):
    assert convolution_of(norm_type, conv_type) == (conv_type, False)


@pytest.mark.parametrize(
    ("norm_type", "own"), [("WeightNorm", "WeightNormalized"), ("ScaledWeightStandardization", "sWS")]
)
def test_weight_based_norms_bring_their_convolution_with_bias_and_refuse_another(norm_type, own):
    assert convolution_of(norm_type) == (own, True)
    for another in set(config.CONV_TYPES) - {"Plain", own}:
        with pytest.raises(ValueError, match=f"{norm_type}.*{another}"):
            convolution_of(norm_type, another)

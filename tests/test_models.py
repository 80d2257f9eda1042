"""The three networks: sizes, every combination of choices, and comparisons with the networks of other libraries.

Images are tiny: 16×16 (VGG: 32×32, so that its last feature map has more than one position), four patches for ViT.
Every norm runs at full depth and width. Tests that only check that layers fit together use `small` networks.
"""

import contextlib
import copy
import math
from functools import partial
from typing import Any

import pytest
import torch
from networks_helpers import shrink
from torch import nn
from torch.autograd import gradcheck, gradgradcheck
from torch.nn import functional as F
from torch.testing import assert_close

import config
from layer_defs import GroupNorm
from models import build_model
from transformer_model import GELU, Attention, EncoderBlock, VisionTransformer

EXACT: dict[str, Any] = {"rtol": 1e-9, "atol": 1e-11}
TINY_VIT = {"image_size": 16, "patch_size": 8}
SIDE = {"vgg": 32, "resnet-56": 16, "vit": 16}
FEATURE_SHAPE = {"vgg": (512, 2, 2), "resnet-56": (128, 4, 4), "vit": (5, 384)}
SMALL_FEATURE_SHAPE = {"vgg": (64, 8, 8), "resnet-56": (128, 4, 4), "vit": (5, 96)}
COMBINATIONS = [
    (arch, norm_type, conv_type)
    for arch in config.ARCHS
    for norm_type in config.NORM_TYPES
    for conv_type in config.CONV_TYPES
    if conv_type == "Plain" or norm_type not in config.WEIGHT_NORMS
]
ENDS_OF_P_GROUPING = ("InstanceNorm", "LayerNorm")  # p_grouping=1 and, in networks of convolutions, 1e-7
P_GROUPINGS = (1, 0.5, 0.25, 0.125, 0.0625, 0.03125, 1e-7, 8, 16, 32, 64)

every_arch = pytest.mark.parametrize("arch", config.ARCHS)
every_norm = pytest.mark.parametrize("norm_type", config.NORM_TYPES)
skipinit_or_not = pytest.mark.parametrize("skipinit", [False, True], ids=["", "skipinit"])
preact_or_not = pytest.mark.parametrize("preact", [False, True], ids=["", "preact"])


def build(arch, norm_type="BatchNorm", num_classes=10, seed=0, **settings):
    """Build a seeded network; a ViT is for 16×16 images."""
    torch.manual_seed(seed)
    settings = (TINY_VIT if arch == "vit" else {}) | settings
    return build_model(arch, norm_type=norm_type, num_classes=num_classes, **settings)


def skeleton(arch, **settings):
    """Build a network without memory behind its tensors, which is quick and enough for counting."""
    with torch.device("meta"):
        return build(arch, **settings)


def images(samples=2, side=16, dtype=torch.float32, seed=0):
    return torch.randn(samples, 3, side, side, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.fixture
def small(monkeypatch):
    shrink(monkeypatch)


def run_backward(logits):
    """Run backward from a random weighting of the logits; unlike a loss, it never saturates."""
    (logits * torch.randn(logits.shape, generator=torch.Generator().manual_seed(4))).sum().backward()


def pool(arch, features):
    return features[:, 0] if arch == "vit" else features.flatten(2).mean(2)


# Sizes.


@pytest.mark.parametrize(
    ("settings", "parameters"),
    [
        ({"arch": "vgg", "cfg": "cfg_10"}, 9_413_066),
        ({"arch": "vgg", "cfg": "cfg_20"}, 13_324_490),
        ({"arch": "vgg", "cfg": "cfg_40"}, 42_387_146),
        ({"arch": "resnet-56"}, 3_494_314),
        ({"arch": "vit", "norm_type": "LayerNorm", "image_size": 224, "patch_size": 16}, 11_022_730),
    ],
    ids=["cfg_10", "cfg_20", "cfg_40", "resnet-56", "vit"],
)
def test_number_of_parameters(settings, parameters):
    assert sum(parameter.numel() for parameter in skeleton(**settings).parameters()) == parameters


def test_vit_is_of_224_pixels_and_patches_of_16_by_default():
    with torch.device("meta"):
        model = build_model("vit", norm_type="LayerNorm", num_classes=10)
    assert isinstance(model, VisionTransformer)
    assert (model.image_size, model.positions.shape[1], model.patches.kernel_size) == (224, 14 * 14 + 1, (16, 16))


LAYERS_OF_CFG = {
    "cfg_10_narrow": "16 16/2 32 32/2 64 64/2 128 128/2 128 128",
    "cfg_10": "64 64/2 128 128/2 256 256/2 512 512/2 512 512",
    "cfg_20": "64 64 64 64/2 128 128 128 128/2 256 256 256 256/2 256 256 256 256/2 512 512 512 512",
    "cfg_40": " ".join(f"{7 * f'{width} '}{width}/2" for width in (64, 128, 256, 512)) + 8 * " 512",
}


@pytest.mark.parametrize("cfg", config.VGG_LAYERS)
def test_vgg_has_the_widths_and_strides_of_its_list(cfg):
    convs = [module for module in skeleton("vgg", cfg=cfg).modules() if isinstance(module, nn.Conv2d)]
    written = [f"{conv.out_channels}/2" if conv.stride == (2, 2) else f"{conv.out_channels}" for conv in convs]
    assert " ".join(written) == LAYERS_OF_CFG[cfg]
    assert all((conv.kernel_size, conv.padding) == ((3, 3), (1, 1)) for conv in convs)


@preact_or_not
def test_resnet_56_has_56_layers_and_two_projection_shortcuts(preact):
    model = skeleton("resnet-56", preact=preact)
    convs = {name: module for name, module in model.named_modules() if isinstance(module, nn.Conv2d)}
    shortcuts = [conv for name, conv in convs.items() if "shortcut" in name]
    assert len(convs) - len(shortcuts) + 1 == 56
    assert [(conv.out_channels, conv.stride) for conv in shortcuts] == [(64, (2, 2)), (128, (2, 2))]
    assert all(conv.kernel_size == (3, 3) for conv in convs.values())


# Every network with every norm and every convolution.


@pytest.fixture(scope="module", params=COMBINATIONS, ids="-".join)
def trained(request):
    """Return (arch, feature shape, model, input, features, logits) after one backward pass in training mode.

    Each norm runs at full size with its own or a plain convolution; the other convolutions run on small networks.
    """
    arch, norm_type, conv_type = request.param
    full = conv_type == "Plain"
    with pytest.MonkeyPatch.context() as monkeypatch:
        if not full:
            shrink(monkeypatch)
        model = build(arch, norm_type, conv_type=conv_type)
    nn.init.normal_(model.classifier.weight, std=0.05)  # that of ViT starts at zero, which lets no gradient through
    x = images(side=SIDE[arch])
    features, logits = model.features(x), model(x)
    run_backward(logits)
    return arch, (FEATURE_SHAPE if full else SMALL_FEATURE_SHAPE)[arch], model, x, features, logits


def test_shapes_of_features_and_logits(trained):
    _, feature_shape, _, _, features, logits = trained
    assert (features.shape, logits.shape) == ((2, *feature_shape), (2, 10))


def test_logits_are_the_classifier_of_the_pooled_features(trained):
    arch, _, model, _, features, logits = trained
    expected = model.classifier(pool(arch, features))
    assert_close(logits, expected, rtol=1e-5, atol=1e-5 * expected.abs().max().item())


def test_every_parameter_has_a_finite_gradient(trained):
    wrong = [n for n, p in trained[2].named_parameters() if p.grad is None or not torch.isfinite(p.grad).all()]
    assert wrong == []


def test_the_gradient_reaches_the_first_convolution(trained):
    first = next(module for module in trained[2].modules() if isinstance(module, nn.Conv2d))
    assert first.weight.grad is not None
    assert first.weight.grad.abs().sum() > 0


def test_the_input_is_untouched(trained):
    arch, x = trained[0], trained[3]
    assert torch.equal(x, images(side=SIDE[arch]))


def test_bfloat16_autocast_gives_finite_logits(trained):
    model, x = trained[2], trained[3]
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert torch.isfinite(model(x)).all()


@every_arch
def test_one_logit_a_class(arch):
    model = build(arch, num_classes=100)
    assert model(images()).shape == (2, 100)


@pytest.mark.parametrize("cfg", config.VGG_LAYERS)
def test_vgg_s_feature_map_is_a_sixteenth_of_the_image(cfg):
    features = skeleton("vgg", cfg=cfg).features(torch.empty(1, 3, 64, 32, device="meta"))
    assert features.shape == (1, int(LAYERS_OF_CFG[cfg].split()[-1]), 4, 2)


# Groups.


def expected_groups(p_grouping, width):
    """Return the number of groups by the rule in the help of --p_grouping: p groups, or groups of 1/p channels."""
    return p_grouping if p_grouping > 1 else max(1, round(width * p_grouping))


@pytest.mark.parametrize(
    ("arch", "p_grouping"),
    [(arch, p) for arch in config.ARCHS for p in P_GROUPINGS if (arch, p) != ("resnet-56", 64)],
)
def test_p_grouping_gives_each_layer_the_groups_of_its_own_width(arch, p_grouping):
    model = skeleton(arch, norm_type="GroupNorm", p_grouping=p_grouping)
    norms = [module for module in model.modules() if isinstance(module, GroupNorm)]
    assert len(norms) == {"vgg": 10, "resnet-56": 57, "vit": 13}[arch]
    assert [norm.num_groups for norm in norms] == [expected_groups(p_grouping, norm.num_channels) for norm in norms]
    assert model(images().to("meta")).shape == (2, 10)


@pytest.mark.parametrize(
    ("arch", "p_grouping", "words"),
    [
        ("resnet-56", 64, r"stage 1 of resnet-56.*\b32\b.*\b64 groups"),
        ("resnet-56", 3, r"stage 1 of resnet-56.*\b32\b.*\b3 groups"),
        ("vgg", 128, r"convolution 1 of vgg.*\b64\b.*\b128 groups"),
        ("vgg", 1 / 3, r"convolution 1 of vgg.*\b64\b.*groups of 3 channels"),
        ("vit", 256, r"vit.*\b384\b.*\b256 groups"),
        ("vit", 1 / 256, r"vit.*\b384\b.*groups of 256 channels"),
    ],
)
def test_groups_that_do_not_divide_a_width_are_an_error_naming_layer_width_and_groups(arch, p_grouping, words):
    with pytest.raises(ValueError, match=words):
        skeleton(arch, norm_type="GroupNorm", p_grouping=p_grouping)


def logits_and_gradients(arch, norm_type, **settings):
    """Return the logits and the gradients of all parameters, at parameters that a seed disturbs."""
    model = build(arch, norm_type, **settings)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    logits = model(images(side=SIDE[arch]))
    run_backward(logits)
    return [logits, *(parameter.grad for parameter in model.parameters())]


def are_equal(found, others):
    return len(found) == len(others) and all(map(torch.equal, found, others))


@pytest.mark.parametrize(
    ("arch", "settings"),
    [
        ("vgg", {}),
        ("vgg", {"conv_type": "sWS"}),
        ("resnet-56", {}),
        ("resnet-56", {"skipinit": True}),
        ("resnet-56", {"preact": True}),
        ("vit", {}),
    ],
)
@pytest.mark.parametrize("p_grouping", [1.0, 1e-7])
def test_the_ends_of_p_grouping_are_the_canonical_norm_in_output_and_gradient(arch, settings, p_grouping):
    found = logits_and_gradients(arch, "GroupNorm", p_grouping=p_grouping, **settings)
    canonical, _ = config.canonical_norm(arch, "GroupNorm", p_grouping)
    is_same = {each: are_equal(found, logits_and_gradients(arch, each, **settings)) for each in ENDS_OF_P_GROUPING}
    assert is_same == {each: each == canonical for each in ENDS_OF_P_GROUPING}
    assert canonical == ("GroupNorm" if (arch, p_grouping) == ("vit", 1e-7) else ENDS_OF_P_GROUPING[p_grouping == 1e-7])


@pytest.mark.parametrize(
    ("arch", "settings"),
    [*((arch, {}) for arch in config.ARCHS), ("vgg", {"cfg": "cfg_20"}), ("vgg", {"cfg": "cfg_40"})],
)
@pytest.mark.parametrize("p_grouping", [*P_GROUPINGS, 1 / 128, 1 / 384, 1 / 512, 1e-6, 1e-12, 384])
def test_networks_with_the_groups_of_another_norm_are_those_with_its_canonical_name(arch, settings, p_grouping):
    """Compare the number of groups of each layer. LayerNorm in a ViT has none, and some groupings fit no layer."""

    def groups(norm_type, **grouping):
        model = skeleton(arch, norm_type=norm_type, **grouping, **settings)
        return [module.num_groups for module in model.modules() if isinstance(module, GroupNorm)]

    same = []
    with contextlib.suppress(ValueError):
        found = groups("GroupNorm", p_grouping=p_grouping)
        same = [norm for norm in ENDS_OF_P_GROUPING if groups(norm) == found]
    canonical, _ = config.canonical_norm(arch, "GroupNorm", p_grouping)
    assert same == ([] if canonical == "GroupNorm" else [canonical])


@skipinit_or_not
def test_the_final_norm_of_a_preactivation_resnet_has_its_own_width_s_groups(skipinit):
    model = skeleton("resnet-56", norm_type="GroupNorm", p_grouping=0.5, preact=True, skipinit=skipinit)
    assert (model.final_norm.num_channels, model.final_norm.num_groups) == (128, 64)


# Residual blocks.

FIRST, PROJECTING = 0, 2  # blocks of the small ResNet with an identity and with a projection shortcut


def block_input(block, samples=2, side=4, dtype=torch.float32):
    generator = torch.Generator().manual_seed(2)
    return torch.randn(samples, block.conv1.in_channels, side, side, generator=generator).to(dtype)


@every_norm
@pytest.mark.parametrize(
    "settings", [{"preact": True}, {"skipinit": True}, {"preact": True, "skipinit": True}], ids="-".join
)
def test_resnet_56_has_finite_gradients_with_every_norm_in_every_kind_of_block(norm_type, settings):
    model = build("resnet-56", norm_type, **settings)
    run_backward(model(images(side=8)))
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters())


@every_norm
@preact_or_not
def test_with_skipinit_a_fresh_block_is_its_shortcut(small, norm_type, preact):
    model = build("resnet-56", norm_type, preact=preact, skipinit=True)
    for index in (FIRST, PROJECTING):
        block = model.blocks[index]
        x = block_input(block)
        if not preact:
            expected = block.activation2(block.shortcut(x))
        elif index == FIRST:
            expected = x
        else:
            expected = block.shortcut(block.activation1(block.norm1(x)))
        assert torch.equal(block(x), expected)


@pytest.mark.parametrize("index", [FIRST, PROJECTING])
@skipinit_or_not
def test_a_basic_block_is_the_activation_of_branch_plus_shortcut(small, index, skipinit):
    block = build("resnet-56", skipinit=skipinit).double().blocks[index]
    x, stride = block_input(block, dtype=torch.float64), 2 if index == PROJECTING else 1
    scale = 0.7 if skipinit else 1.0
    if skipinit:
        nn.init.constant_(block.skipinit.scale, scale)

    def standardized(maps):
        return (maps - maps.mean((0, 2, 3), True)) / (maps.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt()

    branch = F.relu(standardized(F.conv2d(x, block.conv1.weight, None, stride, 1)))
    branch = standardized(F.conv2d(branch, block.conv2.weight, None, 1, 1))
    shortcut = x
    if index == PROJECTING:
        shortcut = standardized(F.conv2d(x, block.shortcut[0].weight, None, stride, 1))
    assert_close(block(x), F.relu(shortcut + scale * branch), **EXACT)


@pytest.mark.parametrize("index", [FIRST, PROJECTING])
@skipinit_or_not
def test_a_preactivation_block_adds_its_branch_to_an_untouched_shortcut(small, index, skipinit):
    block = build("resnet-56", "VarianceNorm", preact=True, skipinit=skipinit).double().blocks[index]
    x, stride = block_input(block, dtype=torch.float64), 2 if index == PROJECTING else 1
    scale = 0.7 if skipinit else 1.0
    if skipinit:
        nn.init.constant_(block.skipinit.scale, scale)

    def activated(maps):
        return F.relu(maps / (maps.var((0, 2, 3), correction=0, keepdim=True) + 1e-5).sqrt())

    branch = F.conv2d(activated(x), block.conv1.weight, None, stride, 1)
    branch = F.conv2d(activated(branch), block.conv2.weight, None, 1, 1)
    shortcut = F.conv2d(activated(x), block.shortcut.weight, None, stride, 1) if index == PROJECTING else x
    assert_close(block(x), shortcut + scale * branch, **EXACT)


# The Vision Transformer.


@pytest.fixture(scope="module")
def torchvision_vit():
    """Return torchvision's ViT with our sizes. Skip if torchvision is missing or does not fit torch."""
    try:
        from torchvision.models import VisionTransformer
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision cannot be imported: {error}")
    torch.manual_seed(1)
    return VisionTransformer(
        image_size=16,
        patch_size=8,
        num_layers=6,
        num_heads=12,
        hidden_dim=384,
        mlp_dim=1536,
        num_classes=10,
        norm_layer=partial(nn.LayerNorm, eps=1e-5),
    )


def torchvision_names():
    """Return {our parameter's name: torchvision's}."""
    names = {
        "class_token": "class_token",
        "positions": "encoder.pos_embedding",
        **{f"patches.{part}": f"conv_proj.{part}" for part in ("weight", "bias")},
        **{f"norm.{part}": f"encoder.ln.{part}" for part in ("weight", "bias")},
        **{f"classifier.{part}": f"heads.head.{part}" for part in ("weight", "bias")},
    }
    layers = {
        "norm1.": "ln_1.",
        "attention.qkv.": "self_attention.in_proj_",
        "attention.out.": "self_attention.out_proj.",
        "norm2.": "ln_2.",
        "mlp.hidden.": "mlp.0.",
        "mlp.out.": "mlp.3.",
    }
    for block in range(6):
        for ours, theirs in layers.items():
            for part in ("weight", "bias"):
                names[f"blocks.{block}.{ours}{part}"] = f"encoder.layers.encoder_layer_{block}.{theirs}{part}"
    return names


def test_vit_has_torchvision_s_parameters_and_initial_values(torchvision_vit):
    """Means and spreads are equal, parameter by parameter (exactly for constants)."""
    ours, theirs = build("vit", "LayerNorm").state_dict(), torchvision_vit.state_dict()
    names = torchvision_names()
    assert (ours.keys(), theirs.keys()) == (names.keys(), set(names.values()))
    for name, peer in names.items():
        assert ours[name].shape == theirs[peer].shape
        spread = theirs[peer].std().item()
        assert abs(ours[name].std().item() - spread) <= 5 * spread / math.sqrt(ours[name].numel()), name
        difference = abs(ours[name].mean() - theirs[peer].mean()).item()
        assert difference <= 7 * spread / math.sqrt(ours[name].numel()), name


def test_vit_computes_what_torchvision_s_computes_with_the_same_weights(torchvision_vit):
    ours, theirs = build("vit", "LayerNorm").double(), copy.deepcopy(torchvision_vit).double()
    generator = torch.Generator().manual_seed(3)
    for parameter in theirs.parameters():  # including biases, class token and classifier, which start at zero
        parameter.data += 0.05 * torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
    weights = theirs.state_dict()
    ours.load_state_dict({name: weights[peer] for name, peer in torchvision_names().items()})
    x = images(dtype=torch.float64)
    assert_close(ours(x), theirs(x), **EXACT)


def attentions(width=24, num_heads=3, conv_type="Plain"):
    """Return the fused attention and the step-by-step one with the same weights and nonzero biases."""
    torch.manual_seed(0)
    fused = Attention(conv_type, width, num_heads, fused=True).double()
    for bias in (fused.qkv.bias, fused.out.bias):
        nn.init.normal_(bias)
    stepwise = Attention(conv_type, width, num_heads, fused=False).double()
    stepwise.load_state_dict(fused.state_dict())
    return fused, stepwise


def test_gelu_with_kept_derivatives_is_gelu():
    ours, x = GELU(), torch.linspace(-9, 9, 361, dtype=torch.float64, requires_grad=True)
    ours.keeps_derivatives = True
    torch.testing.assert_close(ours(x), F.gelu(x), rtol=1e-12, atol=1e-14)
    small = torch.randn(5, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(ours, (small,))
    assert torch.autograd.gradgradcheck(ours, (small,))
    seconds = []
    for gelu in (ours, F.gelu):
        (slopes,) = torch.autograd.grad(gelu(x).sum(), x, create_graph=True)
        seconds.append(torch.autograd.grad(slopes.sum(), x)[0])
    torch.testing.assert_close(*seconds, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("conv_type", config.CONV_TYPES)
def test_step_by_step_attention_equals_the_fused_one_in_output_and_gradient(conv_type):
    results = []
    for attention in attentions(conv_type=conv_type):
        x = torch.randn(2, 5, 24, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
        out = attention(x)
        out.square().sum().backward()
        results.append([out, x.grad, *[parameter.grad for parameter in attention.parameters()]])
    assert_close(*results, **EXACT)


def test_step_by_step_attention_differentiates_twice():
    _, attention = attentions(width=4, num_heads=2)
    x = torch.randn(1, 3, 4, generator=torch.Generator().manual_seed(1)).double().requires_grad_()
    assert gradcheck(attention, x)
    assert gradgradcheck(attention, x)


@every_norm
def test_the_gradient_of_an_encoder_block_in_training_stays_finite_on_huge_tokens(norm_type):
    """For 65 tokens of size 1e6, the backward pass of fused attention overflows if the norm does not bound them."""
    torch.manual_seed(0)
    block = EncoderBlock(norm_type, "Plain", 32)
    tokens = (1e6 * torch.randn(2, 65, config.VIT_WIDTH)).requires_grad_()
    block(tokens).sum().backward()
    assert tokens.grad is not None
    assert torch.isfinite(tokens.grad).all()


# Initial values, copies, state.


@pytest.mark.parametrize("arch", ["vgg", "resnet-56"])
@pytest.mark.parametrize("norm_type", ["BatchNorm", "WeightNorm"])
def test_convolutions_start_from_kaiming_normal_and_biases_from_zero(arch, norm_type):
    model = build(arch, norm_type)
    for conv in (module for module in model.modules() if isinstance(module, nn.Conv2d)):
        count, std = conv.weight.numel(), math.sqrt(2 / (conv.in_channels * 9))
        assert abs(conv.weight.std().item() / std - 1) < 5 / math.sqrt(2 * count)
        assert abs(conv.weight.mean().item()) < 5 * std / math.sqrt(count)
    biases = [bias for name, bias in model.named_parameters() if name.endswith("bias")]
    assert biases
    assert not any(bias.any() for bias in biases)


@every_arch
def test_the_seed_decides_the_weights(arch):
    first, again, other = (build(arch, "WeightNorm", seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(tensor, again[name]) for name, tensor in first.items())
    assert not any(torch.equal(first[name], other[name]) for name in first if name.endswith("conv.weight"))


@every_arch
@every_norm
def test_copies_and_state_dicts_carry_the_whole_network(small, arch, norm_type):
    """After a backward pass, gradients and graphs must not prevent deepcopy; running statistics must be copied."""
    model, loaded = build(arch, norm_type), build(arch, norm_type, seed=1)
    nn.init.normal_(model.classifier.weight)
    run_backward(model(images()))
    loaded.load_state_dict(model.state_dict())
    expected = model.eval()(images())
    assert torch.equal(copy.deepcopy(model)(images()), expected)
    assert torch.equal(loaded.eval()(images()), expected)


@every_arch
def test_two_networks_share_no_tensor(small, arch):
    first, second = build(arch), build(arch)
    addresses = [{tensor.data_ptr() for tensor in model.state_dict().values()} for model in (first, second)]
    assert not addresses[0] & addresses[1]


# Errors.


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"arch": "resnet-50"}, "arch 'resnet-50'"),
        ({"norm_type": "batchnorm2d"}, "norm_type 'batchnorm2d'"),
        ({"conv_type": "sws2"}, "conv_type 'sws2'"),
        ({"cfg": "cfg_16"}, "cfg_16"),
    ],
    ids=["arch", "norm_type", "conv_type", "cfg"],
)
def test_unknown_names_are_an_error_that_says_them(wrong, words):
    with pytest.raises(ValueError, match=words):
        skeleton(**{"arch": "vgg"} | wrong)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"arch": "vgg", "skipinit": True}, "skipinit.*vgg"),
        ({"arch": "vgg", "preact": True}, "preact.*vgg"),
        ({"arch": "vit", "skipinit": True}, "skipinit.*vit"),
        ({"arch": "vit", "preact": True}, "preact.*vit"),
        ({"arch": "vgg", "norm_type": "WeightNorm", "conv_type": "sWS"}, "WeightNorm.*sWS"),
        ({"arch": "vit", "norm_type": "ScaledWeightStandardization", "conv_type": "WeightCentered"}, "WeightCentered"),
        ({"arch": "vgg", "norm_type": "BatchNorm", "p_grouping": 0.5}, "p_grouping.*BatchNorm"),
        ({"arch": "resnet-56", "cfg": "cfg_20"}, "cfg.*resnet-56"),
    ],
    ids=lambda value: "-".join(str(entry) for entry in value.values()) if isinstance(value, dict) else "",
)
def test_a_choice_that_network_or_norm_cannot_honour_is_an_error(settings, words):
    with pytest.raises(ValueError, match=words):
        skeleton(**settings)


def test_patches_that_do_not_tile_the_image_are_an_error():
    with pytest.raises(ValueError, match=r"patches of 5 .*image_size of 16"):
        build("vit", patch_size=5)


# Probe sites and convolution–norm pairs.

NETWORKS = [
    ("vgg", {}),
    ("vgg", {"cfg": "cfg_20"}),
    ("resnet-56", {}),
    ("resnet-56", {"preact": True, "skipinit": True}),
    ("vit", {"image_size": 16, "patch_size": 8}),
]
each_network = pytest.mark.parametrize(("arch", "options"), NETWORKS, ids=str)


@each_network
@pytest.mark.parametrize("norm_type", ["BatchNorm", "EvoNormSO", "FilterResponseNorm", "WeightNorm"])
def test_probe_sites_are_every_convolution_and_activation_from_the_input_on(arch, options, norm_type):
    """They are in the order of the forward pass. Those of a ViT are the branches and blocks."""
    model = build_model(arch, norm_type=norm_type, num_classes=10, **options)
    named = dict(model.named_modules())
    if arch == "vit":
        conv = [name for name in named if name.endswith((".attention", ".mlp"))]
        activation = [name for name in named if name.startswith("blocks.") and name.count(".") == 1]
    else:
        conv = [name for name, module in named.items() if isinstance(module, nn.Conv2d)]
        activation = [name for name in named if "activation" in name.rpartition(".")[2]]
    assert model.probe_sites() == {"conv": conv, "activation": activation}


@each_network
def test_the_norm_of_a_pair_and_nothing_else_reads_the_convolution(arch, options):
    """With the norm's output replaced by ones, a change of the convolution's output changes nothing."""
    torch.manual_seed(0)
    model = build_model(arch, norm_type="BatchNorm", num_classes=10, **options).eval()
    x = torch.randn(2, 3, 16, 16)
    for conv, norm in model.conv_norm_pairs():
        outputs: list[torch.Tensor] = []
        inputs: list[torch.Tensor] = []
        handles = [
            model.get_submodule(conv).register_forward_hook(lambda m, i, output, kept=outputs: kept.append(output)),
            model.get_submodule(norm).register_forward_pre_hook(lambda m, args, kept=inputs: kept.append(args[0])),
        ]
        model(x)
        assert outputs[0] is inputs[0]
        handles.append(model.get_submodule(norm).register_forward_hook(lambda m, i, output: torch.ones_like(output)))
        clean = model(x)
        handles.append(model.get_submodule(conv).register_forward_hook(lambda m, i, output: output + 100))
        assert torch.equal(model(x), clean)
        for handle in handles:
            handle.remove()


@pytest.mark.parametrize(
    ("arch", "options", "count"),
    [("vgg", {}, 10), ("resnet-56", {}, 57), ("resnet-56", {"preact": True}, 27), ("vit", {}, 0)],
)
def test_every_convolution_with_a_norm_of_its_own_is_in_a_pair(arch, options, count):
    assert len(build_model(arch, norm_type="BatchNorm", num_classes=10, **options).conv_norm_pairs()) == count

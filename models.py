"""VGG and ResNet-56 for small images, and `build_model` for all three networks.

Every network has `features(x)`, what its classifier pools, `pool(features)`, and `forward(x)`, the logits.
A block's NORM_OF_CONV says which norm takes a convolution's output and nothing else does.
"""

from typing import ClassVar

import torch
from torch import nn

import config
from convolutions import FoldedConv2d, build_conv
from layer_defs import build_norm, conv_of
from transformer_model import VisionTransformer


class Layers:
    """Builds the convolutions and norms of one network: the choices made once, the width given each time."""

    def __init__(self, norm_type, conv_type, p_grouping):
        self.norm_type = norm_type
        self.conv_type, self.bias = conv_of(norm_type, conv_type)
        self.p_grouping = p_grouping

    def conv(self, in_channels, out_channels, stride=1):
        """A 3×3 convolution, padding 1, Kaiming normal (fan_in), bias (where the norm brings one) from 0."""
        conv = build_conv(self.conv_type, in_channels, out_channels, stride=stride, bias=self.bias)
        nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        return conv

    def norm(self, width, layer):
        """(norm, activation) for `width` channels. Raises ValueError naming `layer` where groups do not divide it."""
        groups = config.num_groups(self.p_grouping, width, layer) if self.norm_type in config.GROUPED_NORMS else 32
        return build_norm(self.norm_type, width, groups)


def _classifier(width, num_classes):
    classifier = nn.Linear(width, num_classes)
    nn.init.zeros_(classifier.bias)
    return classifier


class VGGBlock(nn.Module):
    """3×3 convolution → norm → activation."""

    NORM_OF_CONV: ClassVar = {"conv": "norm"}

    def __init__(self, layers, in_channels, width, stride, name):
        super().__init__()
        self.conv = layers.conv(in_channels, width, stride)
        self.norm, self.activation = layers.norm(width, name)

    def forward(self, x):
        return self.activation(self.norm(self.conv(x)))


class VGG(nn.Module):
    """A stack of VGGBlocks, mean over H,W, a linear classifier. Images (N, 3, H, W) to logits (N, num_classes)."""

    def __init__(self, layers, num_classes, cfg):
        super().__init__()
        blocks, channels = [], 3
        for index, entry in enumerate(config.VGG_LAYERS[cfg], start=1):
            width, stride = entry if isinstance(entry, tuple) else (entry, 1)
            blocks.append(VGGBlock(layers, channels, width, stride, f"convolution {index} of vgg"))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = _classifier(channels, num_classes)

    def features(self, x):
        """The last feature map, (N, 512, h, w)."""
        return self.blocks(x)

    def pool(self, features):
        """(N, 512): what the classifier reads."""
        return features.mean((2, 3))

    def forward(self, x):
        return self.classifier(self.pool(self.features(x)))


class SkipInit(nn.Module):
    """A learned scalar from 0 times the residual branch (De & Smith 2020)."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x):
        return self.scale.to(x.dtype) * x


class Shortcut(nn.Sequential):
    """Convolution → norm."""

    NORM_OF_CONV: ClassVar = {"0": "1"}


class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, activation after the sum (He 2016a).

    Where width or resolution change, the shortcut is a 3×3 convolution with a norm.
    """

    NORM_OF_CONV: ClassVar = {"conv1": "norm1", "conv2": "norm2"}

    def __init__(self, layers, in_channels, width, stride, name, skipinit):
        super().__init__()
        self.conv1 = layers.conv(in_channels, width, stride)
        self.norm1, self.activation1 = layers.norm(width, name)
        self.conv2 = layers.conv(width, width)
        self.norm2, self.activation2 = layers.norm(width, name)
        if isinstance(self.activation2, nn.ReLU):
            self.activation2.inplace = True  # into the sum, which nothing else looks at
        self.skipinit = SkipInit() if skipinit else nn.Identity()
        self.shortcut = nn.Identity()
        if stride != 1 or in_channels != width:
            self.shortcut = Shortcut(layers.conv(in_channels, width, stride), layers.norm(width, name)[0])

    def forward(self, x):
        branch = self.activation1(self.norm1(self.conv1(x)))
        branch = self.skipinit(self.norm2(self.conv2(branch)))
        return self.activation2(branch + self.shortcut(x))


class PreActivationBlock(nn.Module):
    """Norm and activation before each of two 3×3 convolutions, nothing after the sum (He 2016b).

    Where width or resolution change, the shortcut is a 3×3 convolution of the first activation.
    """

    NORM_OF_CONV: ClassVar = {"conv1": "norm2"}

    def __init__(self, layers, in_channels, width, stride, name, skipinit):
        super().__init__()
        self.norm1, self.activation1 = layers.norm(in_channels, name)
        self.conv1 = layers.conv(in_channels, width, stride)
        self.norm2, self.activation2 = layers.norm(width, name)
        self.conv2 = layers.conv(width, width)
        self.skipinit = SkipInit() if skipinit else nn.Identity()
        self.shortcut = layers.conv(in_channels, width, stride) if stride != 1 or in_channels != width else None

    def forward(self, x):
        activated = self.activation1(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        branch = self.conv2(self.activation2(self.norm2(self.conv1(activated))))
        return shortcut + self.skipinit(branch)


class ResNet(nn.Module):
    """ResNet-56 for small images: a convolution, 9+9+9 blocks of widths 32/64/128, mean over H,W, a classifier."""

    NORM_OF_CONV: ClassVar = {"conv": "norm"}

    def __init__(self, layers, num_classes, skipinit, preact):
        super().__init__()
        block = PreActivationBlock if preact else BasicBlock
        channels = config.RESNET_WIDTHS[0]
        self.preact = preact
        self.conv = layers.conv(3, channels)
        if not preact:
            self.norm, self.activation = layers.norm(channels, "stage 1 of resnet-56")
        blocks = []
        for stage, width in enumerate(config.RESNET_WIDTHS, start=1):
            for index in range(config.RESNET_BLOCKS_PER_STAGE):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(block(layers, channels, width, stride, f"stage {stage} of resnet-56", skipinit))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        if preact:
            self.final_norm, self.final_activation = layers.norm(channels, "stage 3 of resnet-56")
        self.classifier = _classifier(channels, num_classes)

    def features(self, x):
        """The last feature map, (N, 128, h, w)."""
        x = self.conv(x)
        if self.preact:
            return self.final_activation(self.final_norm(self.blocks(x)))
        return self.blocks(self.activation(self.norm(x)))

    def pool(self, features):
        """(N, 128): what the classifier reads."""
        return features.mean((2, 3))

    def forward(self, x):
        return self.classifier(self.pool(self.features(x)))


def build_model(
    arch,
    *,
    norm_type,
    num_classes,
    conv_type="Plain",
    p_grouping=32.0,
    cfg="cfg_10",
    skipinit=False,
    preact=False,
    image_size=None,
    patch_size=16,
):
    """A freshly initialized network: images (N, 3, H, W) to logits (N, num_classes).

    image_size and patch_size are for vit (224 and 16 by default), cfg for vgg, skipinit and preact for resnet-56,
    p_grouping for GroupNorm. Raises ValueError for an unknown name, for a choice that the network or norm cannot
    honour, and where groups do not divide a width (naming layer, width and groups).
    """
    for name, value, choices in (
        ("arch", arch, config.ARCHS),
        ("norm_type", norm_type, config.NORM_TYPES),
        ("conv_type", conv_type, config.CONV_TYPES),
        ("cfg", cfg, config.VGG_LAYERS),
    ):
        if value not in choices:
            raise ValueError(f"{name} {value!r} is none of {', '.join(choices)}")
    for name, is_asked in (
        ("skipinit", skipinit),
        ("preact", preact),
        ("cfg", cfg != "cfg_10"),
        ("patch_size", patch_size != 16),
        ("p_grouping", p_grouping != 32),
    ):
        owner, wanted = config.ONLY_WITH[name]
        chosen = {"arch": arch, "norm_type": norm_type}[owner]
        if is_asked and chosen not in wanted:
            raise ValueError(f"{name} is for {' and '.join(wanted)}; {chosen} cannot honour it")
    if arch == "vit":
        groups = config.num_groups(p_grouping, config.VIT_WIDTH, "vit") if norm_type in config.GROUPED_NORMS else 32
        image_size = image_size or config.VIT_IMAGE_SIZE
        return VisionTransformer(norm_type, num_classes, conv_type, groups, image_size, patch_size)
    layers = Layers(norm_type, conv_type, p_grouping)
    if arch == "vgg":
        return VGG(layers, num_classes, cfg)
    return ResNet(layers, num_classes, skipinit, preact)


def build_from_config(config, num_classes):
    """The network that a Config names. Raises as build_model does."""
    names = ("norm_type", "conv_type", "p_grouping", "cfg", "skipinit", "preact", "image_size", "patch_size")
    return build_model(config.arch, num_classes=num_classes, **{name: getattr(config, name) for name in names})


def twin(model, bn_mode="eval", *, forward_mode=True):
    """The same function of the same parameters as `model`, made for derivatives; the model itself stays untouched.

    The twin shares every parameter tensor, and has modules of its own: in eval mode, where running statistics stand
    for the batch's and a convolution takes in the norm behind it; with bn_mode="train" the layers that keep running
    statistics use the batch's, and update copies. forward_mode=True: what has a fused kernel whose forward-mode
    derivative cannot be differentiated again computes step by step. Raises ValueError for another bn_mode.
    """
    if bn_mode not in ("eval", "train"):
        raise ValueError(f"bn_mode {bn_mode!r} is neither eval nor train")
    twins = {}

    def copy(module):
        if id(module) in twins:
            return twins[id(module)]
        own = twins[id(module)] = module.__class__.__new__(module.__class__)
        own.__dict__ |= {
            name: value.copy() if name.startswith("_") and hasattr(value, "copy") else value
            for name, value in module.__dict__.items()
        }
        keeps_statistics = any(name.startswith("running_") for name, buffer in module.named_buffers(recurse=False))
        if hasattr(module, "elementary"):
            own.elementary = forward_mode
        if hasattr(module, "keeps_derivatives"):
            own.keeps_derivatives = not forward_mode
        own.training = bn_mode == "train" and keeps_statistics
        if own.training:
            own._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in own._buffers.items()}
        for name, child in own._modules.items():
            own._modules[name] = None if child is None else copy(child)
        for conv, norm in getattr(module, "NORM_OF_CONV", {}).items():
            _fold(own, conv, norm)
        return own

    return copy(model)


def _fold(block, conv, norm):
    """Replaces a block's convolution and norm by one module, where the norm is affine."""
    follower = block._modules.get(norm)
    if hasattr(follower, "eval_affine") and not follower.training and follower.eval_affine() is not None:
        setattr(block, conv, FoldedConv2d(getattr(block, conv), follower))
        setattr(block, norm, nn.Identity())

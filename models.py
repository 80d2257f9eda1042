"""VGG and ResNet-56 for small images, and `build_model` for all three networks.

Every network has `features(x)`, the tensor that its classifier pools, `pool(features)`, the vectors that its classifier
reads, and `forward(x)`, the logits. It lists its probe sites (`probe_sites`) and its pairs of a convolution and the
norm that is the only reader of its output (`conv_norm_pairs`), by their names in `named_modules`.
"""

import torch
from torch import nn

import config
from layer_defs import build_conv, build_norm
from normstudy.kernels import with_differentiable_jvp
from transformer_model import VisionTransformer


class Layers:
    """Builder of the convolutions and norms of one network, which share these settings."""

    def __init__(self, norm_type: str, conv_type: str, p_grouping: float) -> None:
        self.norm_type = norm_type
        self.conv_type, self.has_bias = config.convolution_of(norm_type, conv_type)
        self.p_grouping = p_grouping

    def conv(self, in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
        """Build a 3×3 convolution with padding 1, initialized with Kaiming normal (fan_in).

        Its bias, which only some norm types have, starts at 0.
        """
        conv = build_conv(self.conv_type, in_channels, out_channels, stride=stride, bias=self.has_bias)
        nn.init.kaiming_normal_(conv.weight, mode="fan_in", nonlinearity="relu")
        if conv.bias is not None:
            nn.init.zeros_(conv.bias)
        return conv

    def norm(self, width: int, layer: str) -> tuple[nn.Module, nn.Module]:
        """Build (norm, activation) for `width` channels.

        Raises ValueError, naming `layer`, if the groups do not divide the width.
        """
        groups = config.num_groups(self.p_grouping, width, layer) if self.norm_type in config.GROUPED_NORMS else 32
        return build_norm(self.norm_type, width, groups)


def _classifier(width: int, num_classes: int) -> nn.Linear:
    classifier = nn.Linear(width, num_classes)
    nn.init.zeros_(classifier.bias)
    return classifier


@with_differentiable_jvp
class VGGBlock(nn.Module):
    """3×3 convolution → norm → activation."""

    def __init__(self, layers: Layers, in_channels: int, width: int, stride: int, name: str) -> None:
        super().__init__()
        self.conv = layers.conv(in_channels, width, stride)
        self.norm, self.activation = layers.norm(width, name)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.norm(self.conv(x)))


@with_differentiable_jvp
class VGG(nn.Module):
    """A stack of VGGBlocks, the mean over H,W, and a linear classifier.

    It maps images (N, 3, H, W) to logits (N, num_classes).
    """

    def __init__(self, layers: Layers, num_classes: int, cfg: str) -> None:
        super().__init__()
        blocks, channels = [], 3
        for index, entry in enumerate(config.VGG_LAYERS[cfg], start=1):
            width, stride = entry if isinstance(entry, tuple) else (entry, 1)
            blocks.append(VGGBlock(layers, channels, width, stride, f"convolution {index} of vgg"))
            channels = width
        self.blocks = nn.Sequential(*blocks)
        self.classifier = _classifier(channels, num_classes)

    def probe_sites(self) -> dict[str, list[str]]:
        """Return {"conv": every convolution, "activation": every activation}, in order from the input."""
        blocks = [f"blocks.{index}" for index in range(len(self.blocks))]
        return {
            "conv": [f"{block}.conv" for block in blocks],
            "activation": [f"{block}.activation" for block in blocks],
        }

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """Return the (convolution, norm) pair of every block."""
        return [(f"blocks.{index}.conv", f"blocks.{index}.norm") for index in range(len(self.blocks))]

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (N, channels, h, w) with 512 channels (128 in cfg_10_narrow)."""
        return self.blocks(x)

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """Return the mean over H,W, (N, channels), which the classifier reads."""
        return features.mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.features(x)))


@with_differentiable_jvp
class SkipInit(nn.Module):
    """Multiply the residual branch by a learned scalar that starts at 0 (De & Smith 2020)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.zeros(()))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.scale.to(x.dtype) * x


@with_differentiable_jvp
class BasicBlock(nn.Module):
    """Two 3×3 convolutions and a shortcut, with an activation after the sum (He 2016a).

    If the width or resolution changes, the shortcut is a 3×3 convolution with a norm.
    """

    def __init__(
        self, layers: Layers, in_channels: int, width: int, stride: int, name: str, has_skipinit: bool
    ) -> None:
        super().__init__()
        self.conv1 = layers.conv(in_channels, width, stride)
        self.norm1, self.activation1 = layers.norm(width, name)
        self.conv2 = layers.conv(width, width)
        self.norm2, self.activation2 = layers.norm(width, name)
        if isinstance(self.activation2, nn.ReLU):
            self.activation2.inplace = True  # overwrites the sum, which nothing else reads
        self.skipinit = SkipInit() if has_skipinit else nn.Identity()
        self.shortcut: nn.Module = nn.Identity()
        if stride != 1 or in_channels != width:
            self.shortcut = nn.Sequential(layers.conv(in_channels, width, stride), layers.norm(width, name)[0])

    def conv_names(self) -> list[str]:
        """Return the names of the convolutions, with the shortcut's last."""
        return ["conv1", "conv2"] + ["shortcut.0"] * isinstance(self.shortcut, nn.Sequential)

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """Return the (convolution, norm) pairs, with the shortcut's last."""
        pairs = [("conv1", "norm1"), ("conv2", "norm2")]
        return pairs + [("shortcut.0", "shortcut.1")] * isinstance(self.shortcut, nn.Sequential)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        branch = self.activation1(self.norm1(self.conv1(x)))
        branch = self.skipinit(self.norm2(self.conv2(branch)))
        return self.activation2(branch + self.shortcut(x))


@with_differentiable_jvp
class PreActivationBlock(nn.Module):
    """A norm and an activation before each of two 3×3 convolutions, and nothing after the sum (He 2016b).

    If the width or resolution changes, the shortcut is a 3×3 convolution of the first activation.
    """

    def __init__(
        self, layers: Layers, in_channels: int, width: int, stride: int, name: str, has_skipinit: bool
    ) -> None:
        super().__init__()
        self.norm1, self.activation1 = layers.norm(in_channels, name)
        self.conv1 = layers.conv(in_channels, width, stride)
        self.norm2, self.activation2 = layers.norm(width, name)
        self.conv2 = layers.conv(width, width)
        self.skipinit = SkipInit() if has_skipinit else nn.Identity()
        self.shortcut = layers.conv(in_channels, width, stride) if stride != 1 or in_channels != width else None

    def conv_names(self) -> list[str]:
        """Return the names of the convolutions, with the shortcut last."""
        return ["conv1", "conv2"] + ["shortcut"] * (self.shortcut is not None)

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """Return the (convolution, norm) pair. No norm reads the second convolution; its output goes into the sum."""
        return [("conv1", "norm2")]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        activated = self.activation1(self.norm1(x))
        shortcut = x if self.shortcut is None else self.shortcut(activated)
        branch = self.conv2(self.activation2(self.norm2(self.conv1(activated))))
        return shortcut + self.skipinit(branch)


@with_differentiable_jvp
class ResNet(nn.Module):
    """ResNet-56 for small images: a convolution, 9+9+9 blocks of widths 32/64/128, mean over H,W and a classifier."""

    def __init__(self, layers: Layers, num_classes: int, has_skipinit: bool, is_preact: bool) -> None:
        super().__init__()
        block = PreActivationBlock if is_preact else BasicBlock
        channels = config.RESNET_WIDTHS[0]
        self.is_preact = is_preact
        self.conv = layers.conv(3, channels)
        if not is_preact:
            self.norm, self.activation = layers.norm(channels, "stage 1 of resnet-56")
        blocks: list[BasicBlock | PreActivationBlock] = []
        for stage, width in enumerate(config.RESNET_WIDTHS, start=1):
            for index in range(config.RESNET_BLOCKS_PER_STAGE):
                stride = 2 if stage > 1 and index == 0 else 1
                blocks.append(block(layers, channels, width, stride, f"stage {stage} of resnet-56", has_skipinit))
                channels = width
        self.blocks = nn.Sequential(*blocks)
        if is_preact:
            self.final_norm, self.final_activation = layers.norm(channels, "stage 3 of resnet-56")
        self.classifier = _classifier(channels, num_classes)

    def residual_blocks(self) -> list[BasicBlock | PreActivationBlock]:
        """Return the 27 blocks, in order from the input."""
        return [block for block in self.blocks if isinstance(block, (BasicBlock, PreActivationBlock))]

    def probe_sites(self) -> dict[str, list[str]]:
        """Return {"conv": every convolution, "activation": every activation}, in order from the input."""
        named = [(f"blocks.{index}", block) for index, block in enumerate(self.residual_blocks())]
        activations = [f"{name}.{each}" for name, _ in named for each in ("activation1", "activation2")]
        return {
            "conv": ["conv", *(f"{name}.{conv}" for name, block in named for conv in block.conv_names())],
            "activation": [*activations, "final_activation"] if self.is_preact else ["activation", *activations],
        }

    def conv_norm_pairs(self) -> list[tuple[str, str]]:
        """Return the (convolution, norm) pairs of the first layer and of every block."""
        pairs = [] if self.is_preact else [("conv", "norm")]
        for index, block in enumerate(self.residual_blocks()):
            pairs += [(f"blocks.{index}.{conv}", f"blocks.{index}.{norm}") for conv, norm in block.conv_norm_pairs()]
        return pairs

    def features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map, (N, 128, h, w)."""
        x = self.conv(x)
        if self.is_preact:
            return self.final_activation(self.final_norm(self.blocks(x)))
        return self.blocks(self.activation(self.norm(x)))

    def pool(self, features: torch.Tensor) -> torch.Tensor:
        """Return the mean over H,W, (N, 128), which the classifier reads."""
        return features.mean((2, 3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.classifier(self.pool(self.features(x)))


Network = VGG | ResNet | VisionTransformer


def weight_names(model: nn.Module) -> list[str]:
    """Return the names of the raw weights of all convolutions and linear layers, in order from the input."""
    return [f"{name}.weight" for name, module in model.named_modules() if isinstance(module, (nn.Conv2d, nn.Linear))]


def build_model(
    arch: str,
    *,
    norm_type: str,
    num_classes: int,
    conv_type: str = "Plain",
    p_grouping: float = 32.0,
    cfg: str = "cfg_10",
    skipinit: bool = False,
    preact: bool = False,
    image_size: int | None = None,
    patch_size: int = 16,
) -> Network:
    """Build a freshly initialized network that maps images (N, 3, H, W) to logits (N, num_classes).

    image_size and patch_size apply to vit (224 and 16 by default), cfg to vgg, skipinit and preact to resnet-56, and
    p_grouping to GroupNorm. Raises ValueError for an unknown name, for a choice that does not apply to the network or
    norm, and, naming layer, width and groups, if the groups do not divide a width.
    """
    for name, value, choices in (
        ("arch", arch, config.ARCHS),
        ("norm_type", norm_type, config.NORM_TYPES),
        ("conv_type", conv_type, config.CONV_TYPES),
        ("cfg", cfg, config.VGG_LAYERS),
    ):
        if value not in choices:
            raise ValueError(f"{name} {value!r} is not one of {', '.join(choices)}")
    settings = {"arch": arch, "norm_type": norm_type, "conv_type": conv_type, "p_grouping": p_grouping, "cfg": cfg}
    settings |= {"skipinit": skipinit, "preact": preact, "patch_size": patch_size}
    asked = [name for name, value in settings.items() if value != getattr(config.Config, name)]
    config.check_network_options(settings, asked)
    if arch == "vit":
        groups = config.num_groups(p_grouping, config.VIT_WIDTH, "vit") if norm_type in config.GROUPED_NORMS else 32
        return VisionTransformer(
            norm_type, num_classes, conv_type, groups, image_size or config.VIT_IMAGE_SIZE, patch_size
        )
    layers = Layers(norm_type, conv_type, p_grouping)
    if arch == "vgg":
        return VGG(layers, num_classes, cfg)
    return ResNet(layers, num_classes, skipinit, preact)


def build_from_config(settings: config.Config, num_classes: int) -> Network:
    """Build the network of a Config. Raises ValueError as build_model does."""
    names = ("norm_type", "conv_type", "p_grouping", "cfg", "skipinit", "preact", "image_size", "patch_size")
    return build_model(settings.arch, num_classes=num_classes, **{name: getattr(settings, name) for name in names})

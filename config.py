"""Every hyperparameter and its default, the command line of main.py, and the learning-rate schedule.

Needs nothing but the standard library, so that `--help` and flag errors answer at once.
"""

import argparse
import dataclasses
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normstudy.cli import Parser, UsageError, argparse_type, boolean, count, device_name, number

ARCHS = ("vgg", "resnet-56", "vit")
CONV_TYPES = ("Plain", "sWS", "WeightNormalized", "WeightCentered")


@dataclass(frozen=True)
class NormTraits:
    """What must be known of a norm before it is built; layer_defs.NORMS builds it."""

    has_groups: bool = False  # takes --p_grouping
    has_batch_statistics: bool = False  # its statistics run over samples
    conv_type: str | None = None  # the convolution that it brings, with bias


NORM_TRAITS = {
    "Plain": NormTraits(),
    "BatchNorm": NormTraits(has_batch_statistics=True),
    "LayerNorm": NormTraits(),
    "InstanceNorm": NormTraits(),
    "GroupNorm": NormTraits(has_groups=True),
    "FilterResponseNorm": NormTraits(),
    "WeightNorm": NormTraits(conv_type="WeightNormalized"),
    "ScaledWeightStandardization": NormTraits(conv_type="sWS"),
    "EvoNormSO": NormTraits(),
    "EvoNormBO": NormTraits(has_batch_statistics=True),
    "VarianceNorm": NormTraits(has_batch_statistics=True),
    "MeanCentering": NormTraits(has_batch_statistics=True),
    "RMSNorm": NormTraits(),
    "DynamicTanh": NormTraits(),
}
NORM_TYPES = tuple(NORM_TRAITS)
GROUPED_NORMS = tuple(name for name, traits in NORM_TRAITS.items() if traits.has_groups)
BATCH_NORMS = tuple(name for name, traits in NORM_TRAITS.items() if traits.has_batch_statistics)
WEIGHT_NORMS = tuple(name for name, traits in NORM_TRAITS.items() if traits.conv_type is not None)
DATASETS = ("CIFAR-10", "CIFAR-100", "ImageFolder", "Synthetic")
PRECISIONS = ("fp32", "bf16")
KEEP = ("all", "last")

# VGG: a width, or (width, stride) where the convolution halves the resolution.
VGG_LAYERS: dict[str, tuple[int | tuple[int, int], ...]] = {
    "cfg_10": (64, (64, 2), 128, (128, 2), 256, (256, 2), 512, (512, 2), 512, 512),
    "cfg_20": (*[64] * 3, (64, 2), *[128] * 3, (128, 2), *[256] * 3, (256, 2), *[256] * 3, (256, 2), *[512] * 4),
    "cfg_40": (*[64] * 7, (64, 2), *[128] * 7, (128, 2), *[256] * 7, (256, 2), *[512] * 7, (512, 2), *[512] * 8),
}
RESNET_WIDTHS = (32, 64, 128)
RESNET_BLOCKS_PER_STAGE = 9
VIT_WIDTH = 384
VIT_BLOCKS = 6
VIT_HEADS = 12
VIT_MLP_WIDTH = 1536
VIT_IMAGE_SIZE = 224

LEARNING_RATE_PER_256 = 0.1  # SGD's learning rate for a batch of 256; scales linearly with the batch
LEARNING_RATE_DROP = 10  # divides the rate for the last quarter of the steps after the warmup
WARMUP_EPOCHS = 5
SHORT_RUN_EPOCHS = 10  # runs of this length or less warm up for one epoch
EPOCHS = 60
SMALL_BATCH = 32  # smaller batches train for SMALL_BATCH_EPOCHS
SMALL_BATCH_EPOCHS = 10
DUMP_EVERY_EPOCHS = 5
EVALUATION_BATCH = 256


def _flag(
    default: Any,
    help: str,
    *,
    group: str | None = None,
    type: Callable[[str], object] = str,
    choices: Sequence[str] | None = None,
    flags: tuple[str, ...] = (),
    runtime: bool = False,
) -> Any:
    """A field of Config that is also a flag, if it has a group. Runtime fields do not change the numbers of a run."""
    metadata = {"help": help, "group": group, "type": type, "choices": choices, "flags": flags, "runtime": runtime}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """One run. Fields marked `runtime` say where and how it runs; all others change its numbers."""

    arch: str = _flag("vgg", "network", group="network", choices=ARCHS, flags=("-a", "-arch"))
    norm_type: str = _flag("BatchNorm", "normalization layer", group="network", choices=NORM_TYPES)
    conv_type: str = _flag(
        "Plain",
        "weight transform of every convolution, beside an activation-based norm "
        "(WeightNorm and ScaledWeightStandardization bring their own)",
        group="network",
        choices=CONV_TYPES,
    )
    p_grouping: float = _flag(
        32.0,
        f"groups of {', '.join(GROUPED_NORMS)}: above 1, the number of groups; up to 1, groups of 1/p channels "
        "(1: InstanceNorm, 0.5: pairs, 1e-7: one group)",
        group="network",
        type=number(float, low=1e-12, high=1e6),
    )
    cfg: str = _flag("cfg_10", "VGG's layer list", group="network", choices=tuple(VGG_LAYERS))
    skipinit: bool = _flag(
        False, "ResNet: residual branches times a learned scalar from 0", group="network", type=boolean
    )
    preact: bool = _flag(False, "ResNet: pre-activation blocks", group="network", type=boolean)
    patch_size: int = _flag(16, "ViT: side of a patch in pixels", group="network", type=count)
    image_size: int | None = _flag(
        None,
        "side in pixels that images are resized to (default: 224 for vit, else the data set's own)",
        group="network",
        type=count,
    )

    init_lr: float = _flag(
        1.0,
        f"factor on the learning rate {LEARNING_RATE_PER_256} · batch_size/256",
        group="training",
        type=number(float, above=0),
    )
    lr_warmup: bool = _flag(
        False,
        f"linear warmup over the first {WARMUP_EPOCHS} epochs (1 where the run has {SHORT_RUN_EPOCHS} or fewer)",
        group="training",
        type=boolean,
    )
    batch_size: int = _flag(256, "samples per step, over all processes", group="training", type=count)
    epochs: int = _flag(  # None until `resolve` sets the default
        None,
        f"passes over the training set (default: {EPOCHS}; {SMALL_BATCH_EPOCHS} where batch_size is below "
        f"{SMALL_BATCH})",
        group="training",
        type=count,
    )
    momentum: float = _flag(0.9, "SGD's momentum", group="training", type=number(float, low=0, below=1))
    weight_decay: float = _flag(
        1e-4, "L2 penalty on every parameter, in SGD", group="training", type=number(float, low=0)
    )
    precision: str = _flag(
        "fp32", "arithmetic of forward and backward (bf16: autocast)", group="training", choices=PRECISIONS
    )
    seed: int = _flag(
        0, "of initialization, data order and flips", group="training", type=number(int, low=0, high=2**32 - 1)
    )

    dataset: str = _flag("CIFAR-100", "images to train and test on", group="data", choices=DATASETS)
    data_dir: str = _flag(
        "data", "where CIFAR lies, or ImageFolder's train/<class>/ and test/<class>/", group="data", runtime=True
    )
    download: bool = _flag(False, "fetch CIFAR-10 or CIFAR-100 into data_dir", group="data", type=boolean, runtime=True)
    train_samples: int | None = _flag(
        None, "a class-balanced subset of the training set (default: all)", group="data", type=count
    )
    test_samples: int | None = _flag(
        None, "a class-balanced subset of the test set (default: all)", group="data", type=count
    )
    val_fraction: float = _flag(
        0.0, "part of the training set held out for validation", group="data", type=number(float, low=0, below=1)
    )

    probe_layers: bool = _flag(
        True, "record activation and gradient statistics of each layer", group="probes", type=boolean
    )
    probe_every: int = _flag(1, "record at every k-th iteration", group="probes", type=count)

    sync_bn: bool = _flag(
        False,
        f"under torchrun, batch statistics ({', '.join(BATCH_NORMS)}) of the whole batch, not of each process's share",
        group="run",
        type=boolean,
        runtime=True,
    )
    results_dir: str = _flag("results", "folder that holds the run directories", group="run", runtime=True)
    device: str = _flag("auto", "auto, cpu, cuda, cuda:N or mps", group="run", type=device_name, runtime=True)
    cuda_graph: bool = _flag(True, "on CUDA, launch each step as one graph", group="run", type=boolean, runtime=True)
    keep: str = _flag(
        "all",
        "which checkpoints to keep: of every fifth epoch and the last, or the last alone",
        group="run",
        choices=KEEP,
        runtime=True,
    )
    checkpoint_minutes: float = _flag(
        10.0,
        "most time between two saved states within an epoch; each epoch's end saves one too",
        group="run",
        type=number(float, above=0),
        runtime=True,
    )
    mix_versions: bool = _flag(
        False,
        "continue a run that was begun with another version of PyTorch; results.csv then names both",
        group="run",
        type=boolean,
        runtime=True,
    )
    overwrite: bool = _flag(False, "start over a run that exists", group="run", type=boolean, runtime=True)
    c_dir: str | None = _flag(
        None, "continue the run in this directory; its other settings come from there", group="run", runtime=True
    )
    batch_shares: int = _flag(
        1, "parts of each batch with statistics of their own: processes of torchrun without --sync_bn", type=count
    )

    def identity(self) -> dict[str, Any]:
        """The fields that change the numbers: {name: value}. Their hash names the run directory."""
        values = {f.name: getattr(self, f.name) for f in dataclasses.fields(self) if not f.metadata["runtime"]}
        if self.batch_shares == 1:
            del values["batch_shares"]
        return values


FLAGS = tuple(option for option in dataclasses.fields(Config) if option.metadata["group"])


GROUP_TITLES = {
    "network": "the network",
    "training": "training",
    "data": "data",
    "probes": "probes",
    "run": "the run",
}
EXAMPLES = """examples:
  python main.py --arch=vgg --norm_type=BatchNorm --dataset=CIFAR-10 --download=True
  python main.py --arch=resnet-56 --norm_type=GroupNorm --p_grouping=0.5 --skipinit=True
  python main.py --arch=vit --norm_type=LayerNorm --dataset=ImageFolder --data_dir=DIR --image_size=32 --patch_size=4
  python main.py --dataset=Synthetic --epochs=5         needs no data
The same command again continues an unfinished run and reports a finished one.
exit codes: 0 done, 1 a failure, 2 wrong flags, 130 Ctrl-C, 99 SIGTERM, SIGUSR1, SIGUSR2 (run it again)"""


def build_parser() -> Parser:
    """main.py's parser, made from the fields of Config. Flags that are not given stay out of the namespace."""
    parser = Parser(
        prog="main.py",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python main.py [--flag=value ...]",
        description="Train one network with one normalization layer, and record what happens inside it.",
        epilog=EXAMPLES,
    )
    groups = {name: parser.add_argument_group(title) for name, title in GROUP_TITLES.items()}
    for option in FLAGS:
        meta = option.metadata
        is_boolean = meta["type"] is boolean
        help_text = meta["help"]
        if meta["choices"]:
            help_text += ": " + ", ".join(meta["choices"])
        if option.default is not None:
            help_text += f" (default: {option.default})"
        groups[meta["group"]].add_argument(
            *meta["flags"],
            f"--{option.name}",
            dest=option.name,
            type=argparse_type(meta["type"], meta["choices"]),
            nargs="?" if is_boolean else None,
            const=True if is_boolean else None,
            metavar="True|False" if is_boolean else option.name.upper(),
            help=help_text.replace("%", "%%"),
        )
    return parser


def parse_args(argv: Sequence[str] | None = None) -> Config:
    """The frozen Config of a command line; a bad flag ends the program with exit code 2 and one line.

    With `--c_dir`, only runtime flags may be given; storage.open_run reads the rest from the run directory.
    """
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    try:
        config = resolve(given)
    except UsageError as error:
        parser.error(str(error))
    return config


def resolve(given: Mapping[str, Any]) -> Config:
    """A Config from the fields that were given explicitly: {name: value}. Raises UsageError."""
    config = Config(**given)
    if config.c_dir is not None:
        identity = [name for name in given if name in config.identity()]
        if identity:
            raise UsageError(f"--{identity[0]} cannot be changed on a run that exists: leave it out beside --c_dir")
        return config
    _check_applicable(config, given)
    changes: dict[str, Any] = {}
    if config.epochs is None:
        changes["epochs"] = SMALL_BATCH_EPOCHS if config.batch_size < SMALL_BATCH else EPOCHS
    if config.image_size is None and config.arch == "vit":
        changes["image_size"] = VIT_IMAGE_SIZE
    config = dataclasses.replace(config, **changes)
    _check_network(config)
    return config


def from_settings(settings: Mapping[str, Any]) -> Config:
    """The Config that a dict of stored settings describes; what it lacks has its default. Raises UsageError."""
    given = {}
    for option in dataclasses.fields(Config):
        value = settings.get(option.name, option.default)
        if value != option.default and option.name != "c_dir":
            try:
                parsed = argparse_type(option.metadata["type"], option.metadata["choices"])(str(value))
            except argparse.ArgumentTypeError as error:
                raise UsageError(f"{option.name}: {error}") from None
            if parsed != value:
                raise UsageError(f"{option.name} is {value!r}, which is no value of --{option.name}")
            given[option.name] = parsed
    return resolve(given)


# {flag: (owner, the owner's values that can honour the flag)}
ONLY_WITH = {
    "cfg": ("arch", ("vgg",)),
    "skipinit": ("arch", ("resnet-56",)),
    "preact": ("arch", ("resnet-56",)),
    "patch_size": ("arch", ("vit",)),
    "p_grouping": ("norm_type", GROUPED_NORMS),
}


def check_network_options(settings: Mapping[str, object], asked: Container[str], prefix: str = "") -> None:
    """Raise ValueError for an option in `asked` that the chosen network or norm cannot honour: it is never ignored.

    settings: the values of arch, norm_type and conv_type. prefix: what stands before the names in the message.
    """
    for name, (owner, wanted) in ONLY_WITH.items():
        if name in asked and settings[owner] not in wanted:
            raise ValueError(
                f"{prefix}{name} needs {prefix}{owner}={' or '.join(wanted)}; {settings[owner]} cannot honour it"
            )
    norm_type, conv_type = str(settings["norm_type"]), settings["conv_type"]
    if NORM_TRAITS[norm_type].conv_type is not None and conv_type != "Plain":
        own = f"{prefix}norm_type={norm_type} brings its own convolution"
        raise ValueError(f"{own}; leave {prefix}conv_type={conv_type} out")


def convolution_of(norm_type: str, conv_type: str = "Plain") -> tuple[str, bool]:
    """(conv_type, has bias) of a network's convolutions: a weight-based norm brings its own, with bias.

    Raises ValueError if another is asked for.
    """
    check_network_options({"norm_type": norm_type, "conv_type": conv_type}, ())
    own = NORM_TRAITS[norm_type].conv_type
    return own or conv_type, own is not None


def _check_applicable(config: Config, given: Container[str]) -> None:
    """A flag that the chosen network, norm or data set cannot honour is an error, not ignored."""
    switches = {name for name in ("skipinit", "preact") if getattr(config, name)}
    asked = switches | {name for name in ONLY_WITH if name in given and name not in ("skipinit", "preact")}
    try:
        check_network_options(vars(config), asked, prefix="--")
    except ValueError as error:
        raise UsageError(str(error)) from None
    if config.download and not config.dataset.startswith("CIFAR"):
        raise UsageError(f"--download fetches CIFAR-10 and CIFAR-100 only, not {config.dataset}")
    if config.dataset == "Synthetic" and "data_dir" in given:
        raise UsageError("--data_dir has no meaning for Synthetic, which is made from the seed")
    if "probe_every" in given and not config.probe_layers:
        raise UsageError("--probe_every needs --probe_layers=True")


def _check_network(config: Config) -> None:
    if config.arch == "vit":
        try:
            check_patches(config.image_size or VIT_IMAGE_SIZE, config.patch_size)
        except ValueError as error:
            raise UsageError(f"--patch_size={config.patch_size}: {error}") from None
    if config.norm_type in GROUPED_NORMS:
        widths = {"vgg": vgg_widths(config.cfg), "resnet-56": RESNET_WIDTHS, "vit": (VIT_WIDTH,)}[config.arch]
        layer = {"vgg": "convolution", "resnet-56": "stage", "vit": "block"}[config.arch]
        for index, width in enumerate(widths, start=1):
            try:
                num_groups(config.p_grouping, width, f"{layer} {index} of {config.arch}")
            except ValueError as error:
                raise UsageError(f"--p_grouping: {error}") from None


def shares_of_batch(config: Config, processes: int) -> int:
    """How many parts of each batch have statistics of their own where so many processes train."""
    return processes if config.norm_type in BATCH_NORMS and not config.sync_bn else 1


def vgg_widths(cfg: str) -> list[int]:
    """The width of each convolution in a VGG layer list."""
    return [entry[0] if isinstance(entry, tuple) else entry for entry in VGG_LAYERS[cfg]]


def check_patches(image_size: int, patch_size: int) -> None:
    """Raises ValueError unless whole patches tile the image."""
    if image_size % patch_size:
        raise ValueError(f"patches of {patch_size} pixels do not tile an image_size of {image_size}")


def num_groups(p_grouping: float, width: int, layer: str) -> int:
    """The number of groups of a grouped norm for `width` channels.

    p > 1: p groups. p ≤ 1: groups of 1/p channels, one group where 1/p is the width or more.
    Raises ValueError, naming layer, width and groups, where the groups do not divide the width.
    """
    if p_grouping <= 0:
        raise ValueError(f"{layer} cannot have {p_grouping:g} as its grouping")
    size_or_count = p_grouping if p_grouping > 1 else 1 / p_grouping
    if abs(size_or_count - round(size_or_count)) > 1e-6 * size_or_count:
        raise ValueError(f"{p_grouping:g} is neither a whole number of groups nor 1 over a whole group size")
    size_or_count = round(size_or_count)
    if p_grouping <= 1:
        size_or_count = min(size_or_count, width)
    if width % size_or_count:
        groups = f"{size_or_count} groups" if p_grouping > 1 else f"groups of {size_or_count} channels"
        raise ValueError(f"{layer} has {width} channels, which {groups} do not divide")
    return size_or_count if p_grouping > 1 else width // size_or_count


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """The learning rate of global step `step` (from 0): a pure function, defined for every step of every length.

    0.1 · init_lr · batch_size/256; a tenth of it for the last quarter of what follows the warmup; with
    lr_warmup it first rises linearly from 0.
    """
    peak = LEARNING_RATE_PER_256 * config.init_lr * config.batch_size / 256
    total = config.epochs * steps_per_epoch
    warmup = 0
    if config.lr_warmup:
        warmup = steps_per_epoch * (1 if config.epochs <= SHORT_RUN_EPOCHS else WARMUP_EPOCHS)
    if step < warmup:
        return peak * step / warmup
    decayed = 4 * (step - warmup) >= 3 * (total - warmup)
    return peak / LEARNING_RATE_DROP if decayed else peak

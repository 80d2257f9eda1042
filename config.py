"""Every hyperparameter and its default, the command line of main.py, and the learning-rate schedule.

It needs only the standard library, so that `--help` and wrong flags are answered immediately.
"""

import argparse
import dataclasses
import math
import os
from collections.abc import Callable, Container, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from normstudy.cli import (
    BALANCES,
    Parser,
    UsageError,
    argparse_type,
    boolean,
    count,
    device_name,
    number,
    path_name,
)

ARCHS = ("vgg", "resnet-56", "vit")
CONV_TYPES = ("Plain", "sWS", "WeightNormalized", "WeightCentered")


@dataclass(frozen=True)
class NormTraits:
    """The properties of a norm that are needed before it is built by layer_defs.NORMS."""

    has_groups: bool = False  # takes --p_grouping
    has_batch_statistics: bool = False  # statistics over the samples of a batch
    conv_type: str | None = None  # the convolution of a weight-based norm, which has a bias


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
PRECISIONS = ("fp32", "tf32", "bf16")
OPTIMIZERS = ("sgd", "adamw")
LR_SCHEDULES = ("step", "cosine", "constant")
SUBSET_FLAGS = ("train_samples", "test_samples", "val_fraction")
AUGMENTATIONS = ("flip", "crop", "none")
DECAYED = ("all", "weights")
KEEP = ("all", "last")

# Each entry is the width of a convolution, or (width, stride) if it halves the resolution.
VGG_LAYERS: dict[str, tuple[int | tuple[int, int], ...]] = {
    "cfg_10": (64, (64, 2), 128, (128, 2), 256, (256, 2), 512, (512, 2), 512, 512),
    "cfg_20": (*[64] * 3, (64, 2), *[128] * 3, (128, 2), *[256] * 3, (256, 2), *[256] * 3, (256, 2), *[512] * 4),
    "cfg_40": (*[64] * 7, (64, 2), *[128] * 7, (128, 2), *[256] * 7, (256, 2), *[512] * 7, (512, 2), *[512] * 8),
    "cfg_10_narrow": (16, (16, 2), 32, (32, 2), 64, (64, 2), 128, (128, 2), 128, 128),  # a quarter of cfg_10's widths
}
RESNET_WIDTHS = (32, 64, 128)
RESNET_BLOCKS_PER_STAGE = 9
VIT_WIDTH = 384
VIT_BLOCKS = 6
VIT_HEADS = 12
VIT_MLP_WIDTH = 1536
VIT_IMAGE_SIZE = 224

LEARNING_RATE_PER_256 = 0.1  # SGD's learning rate for a batch of 256; scales linearly with the batch
LEARNING_RATE_DROP = 10  # divides the learning rate in the last quarter of the steps after the warmup
WARMUP_EPOCHS = 5
SHORT_RUN_EPOCHS = 10  # runs with at most this many epochs warm up for one epoch
EPOCHS = 60
SMALL_BATCH = 32  # runs with smaller batches train for SMALL_BATCH_EPOCHS
SMALL_BATCH_EPOCHS = 10
EVALUATION_BATCH = 256


NEVER = object()  # no value: the field has been there from the first version
PROBE_FLAGS = ("probe_layers", "probe_every")  # they decide what is recorded, and change no result


def _flag(
    default: Any,
    help: str,
    *,
    group: str | None = None,
    type: Callable[[str], object] = str,
    choices: Sequence[str] | None = None,
    flags: tuple[str, ...] = (),
    runtime: bool = False,
    before: object = NEVER,
) -> Any:
    """Return a field of Config, which is also a flag if it has a group.

    Runtime fields do not change the results of a run. before: the value that all runs had before the field existed.
    """
    metadata: dict[str, object] = {"help": help, "group": group, "type": type, "choices": choices, "flags": flags}
    metadata |= {"runtime": runtime, "before": before}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Config:
    """The settings of one run. Fields marked `runtime` say where and how it runs; all others change its results."""

    arch: str = _flag("vgg", "Network architecture", group="network", choices=ARCHS, flags=("-a", "-arch"))
    norm_type: str = _flag("BatchNorm", "Normalization layer", group="network", choices=NORM_TYPES)
    conv_type: str = _flag(
        "Plain",
        "Weight transform of every convolution and, in ViT, of the blocks' linear layers "
        "(WeightNorm and ScaledWeightStandardization bring their own)",
        group="network",
        choices=CONV_TYPES,
    )
    p_grouping: float = _flag(
        32.0,
        f"Grouping p of {', '.join(GROUPED_NORMS)}. If p > 1, there are p groups; if p ≤ 1, each group has 1/p "
        "channels (1 is InstanceNorm, 0.5 makes pairs of channels, 1e-7 makes one group)",
        group="network",
        type=number(float, low=1e-12, high=1e6),
    )
    cfg: str = _flag(
        "cfg_10",
        "VGG: layer list with 10, 20 or 40 convolutions, or with 10 narrow ones",
        group="network",
        choices=tuple(VGG_LAYERS),
    )
    skipinit: bool = _flag(
        False,
        "ResNet: multiply each residual branch by a learned scalar that starts at 0",
        group="network",
        type=boolean,
    )
    preact: bool = _flag(False, "ResNet: use pre-activation blocks", group="network", type=boolean)
    patch_size: int = _flag(
        16, "ViT: side of a patch in pixels, which must divide the image size", group="network", type=count
    )
    image_size: int | None = _flag(
        None,
        "Side in pixels to which images are resized (default: 224 for vit, else the size of the data set's images)",
        group="network",
        type=count,
    )

    init_lr: float = _flag(
        1.0,
        f"Factor on the learning rate {LEARNING_RATE_PER_256} · batch_size/256",
        group="training",
        type=number(float, above=0),
    )
    lr_warmup: bool = _flag(
        False,
        f"Raise the learning rate linearly from 0 over the first {WARMUP_EPOCHS} epochs, or over the first one if the "
        f"run has at most {SHORT_RUN_EPOCHS}",
        group="training",
        type=boolean,
    )
    batch_size: int = _flag(256, "Training images per step, over all processes", group="training", type=count)
    epochs: int = _flag(  # None until `resolve` sets the default
        None,
        f"Passes over the training set (default: {EPOCHS}, or {SMALL_BATCH_EPOCHS} if batch_size is below "
        f"{SMALL_BATCH})",
        group="training",
        type=count,
    )
    lr: float | None = _flag(
        None,
        f"Peak learning rate itself, in place of {LEARNING_RATE_PER_256} · init_lr · batch_size/256 (default: unused)",
        group="training",
        type=number(float, above=0),
        before=None,
    )
    lr_schedule: str = _flag(
        "step",
        "Learning rate after the warmup: a tenth of the peak for the last quarter (step), decay to 0 (cosine), or the "
        "peak (constant)",
        group="training",
        choices=LR_SCHEDULES,
        before="step",
    )
    optimizer: str = _flag("sgd", "Optimizer, as in torch.optim", group="training", choices=OPTIMIZERS, before="sgd")
    momentum: float = _flag(0.9, "Momentum of SGD", group="training", type=number(float, low=0, below=1))
    nesterov: bool = _flag(
        False, "Nesterov momentum. Needs --optimizer=sgd", group="training", type=boolean, before=False
    )
    weight_decay: float = _flag(
        1e-4,
        "Weight decay: an L2 penalty for sgd, decoupled from the gradient for adamw",
        group="training",
        type=number(float, low=0),
    )
    weight_decay_on: str = _flag(
        "all",
        "Parameters with weight decay: all, or only the weights of convolutions and linear layers, without biases and "
        "norm parameters",
        group="training",
        choices=DECAYED,
        before="all",
    )
    label_smoothing: float = _flag(
        0.0,
        "Label smoothing of the training loss",
        group="training",
        type=number(float, low=0, below=1),
        before=0.0,
    )
    clip_grad: float | None = _flag(
        None,
        "Maximum L2 norm of the gradient of all parameters; a longer gradient is scaled down (default: no limit)",
        group="training",
        type=number(float, above=0),
        before=None,
    )
    stop_at_loss: float | None = _flag(
        None,
        "Stop after the first epoch whose training cross-entropy, in eval mode without augmentation, is at most this. "
        "Needs --lr_schedule=constant; epochs is then the maximum (default: never)",
        group="training",
        type=number(float, above=0),
        before=None,
    )
    precision: str = _flag(
        "fp32",
        "Precision of the forward and backward pass. tf32 allows TensorFloat-32 on CUDA, bf16 uses autocast",
        group="training",
        choices=PRECISIONS,
    )
    deterministic: bool = _flag(
        False,
        "Use only deterministic algorithms of PyTorch, and no benchmarks of cuDNN",
        group="training",
        type=boolean,
        before=False,
    )
    seed: int = _flag(
        0,
        "Seed for initialization, data order, flips and the images of Synthetic",
        group="training",
        type=number(int, low=0, high=2**32 - 1),
    )

    dataset: str = _flag("CIFAR-100", "Data set to train and test on", group="data", choices=DATASETS)
    data_dir: str = _flag(
        "data",
        "Folder that contains CIFAR's unpacked archive, or ImageFolder's train/<class>/ and test/<class>/",
        group="data",
        type=path_name,
        runtime=True,
    )
    download: bool = _flag(
        False, "Download CIFAR-10 or CIFAR-100 into data_dir", group="data", type=boolean, runtime=True
    )
    cache_dir: str | None = _flag(
        None,
        "Folder for the cache of decoded images (default: data_dir, or the user's cache folder if data_dir cannot be "
        "written to)",
        group="data",
        type=path_name,
        runtime=True,
    )
    train_samples: int | None = _flag(
        None, "Number of training images, as a subset of the training set (default: all)", group="data", type=count
    )
    test_samples: int | None = _flag(
        None, "Number of test images, as a subset of the test set (default: all)", group="data", type=count
    )
    val_fraction: float = _flag(
        0.0, "Fraction of the training images held out for validation", group="data", type=number(float, low=0, below=1)
    )
    balance: str = _flag(
        "equal",
        f"Shares of the classes in {', '.join(f'--{name}' for name in SUBSET_FLAGS)}, equal as far as each class has "
        "enough images, or proportional to the sizes of the classes",
        group="data",
        choices=BALANCES,
        before="equal",
    )
    augment: str = _flag(
        "flip",
        "Augmentation of training images: random horizontal flips (flip), also random crops after padding with 4 black "
        "pixels (crop), or none",
        group="data",
        choices=AUGMENTATIONS,
        before="flip",
    )

    probe_layers: bool = _flag(
        True, "Record activation and gradient statistics of each layer", group="probes", type=boolean
    )
    probe_every: int = _flag(
        1, "Interval between recordings, in iterations. Needs --probe_layers=True", group="probes", type=count
    )

    sync_bn: bool = _flag(
        False,
        "Under torchrun, compute batch statistics over the whole batch, not over each process's share. Applies only "
        f"to {', '.join(BATCH_NORMS)}",
        group="run",
        type=boolean,
        runtime=True,
    )
    results_dir: str = _flag(
        "results", "Folder that contains the run directories", group="run", type=path_name, runtime=True
    )
    device: str = _flag(
        "auto",
        "Device to train on: auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps",
        group="run",
        type=device_name,
        runtime=True,
    )
    cuda_graph: bool = _flag(
        True,
        "On CUDA with one process, launch each training step and each evaluation batch as one CUDA graph",
        group="run",
        type=boolean,
        runtime=True,
    )
    dump_every: int = _flag(
        5, "Interval between checkpoints and probe dicts, in epochs", group="run", type=count, runtime=True
    )
    eval_every: int = _flag(
        1,
        "Interval between evaluations on the test and validation images, in epochs. The last epoch is always evaluated",
        group="run",
        type=count,
        runtime=True,
    )
    tensorboard: bool = _flag(
        False,
        "Also write the scalars of every epoch for TensorBoard, into the run's folder. Needs the package tensorboard",
        group="run",
        type=boolean,
        runtime=True,
    )
    keep: str = _flag(
        "all",
        "Keep all checkpoints (of the start, of every --dump_every-th and of the last epoch), or only the first and "
        "the last",
        group="run",
        choices=KEEP,
        runtime=True,
    )
    checkpoint_minutes: float = _flag(
        10.0,
        "Maximum minutes between two saved states within an epoch. A state is also saved after each epoch",
        group="run",
        type=number(float, above=0),
        runtime=True,
    )
    mix_versions: bool = _flag(
        False,
        "Continue a run that was started with another version of PyTorch. results.csv then names both versions",
        group="run",
        type=boolean,
        runtime=True,
    )
    overwrite: bool = _flag(
        False, "Clear the directory of an existing run and start over", group="run", type=boolean, runtime=True
    )
    c_dir: str | None = _flag(
        None,
        "Directory of a run to continue. Settings that change its results come from its config.json, not from flags",
        group="run",
        type=path_name,
        runtime=True,
    )
    batch_shares: int = _flag(
        1,
        "Parts of a batch with their own batch statistics: torchrun's processes, without --sync_bn",
        type=count,
        before=1,
    )

    given: frozenset[str] = _flag(frozenset(), "Names of the flags given with --c_dir", runtime=True)

    def identity(self) -> dict[str, Any]:
        """Return {name: value} of the fields that change the results. Their hash is part of the directory's name.

        A field that is newer than the first version of this program enters only if its value is not the one that all
        runs had before, so that no run is renamed. Probes change no result and enter with their defaults.
        """
        values = {}
        for option in dataclasses.fields(self):
            value, before = getattr(self, option.name), option.metadata["before"]
            if option.name in PROBE_FLAGS:
                value = option.default
            if not option.metadata["runtime"] and value != before:
                values[option.name] = value
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
Run the same command again to continue an unfinished run or to report a finished one.
exit codes: 0 done, 1 failed, 2 wrong flags, 130 Ctrl-C, 99 SIGTERM, SIGUSR1 or SIGUSR2 (run the command again)"""


def build_parser() -> Parser:
    """Build main.py's parser from the fields of Config. Flags that are not given are absent from its namespace."""
    parser = Parser(
        prog="main.py",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python main.py [--flag=value ...]",
        description="Train one network with one normalization layer and record statistics of its layers.",
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
    """Return the Config of a command line; a wrong flag ends the program with one line and exit code 2.

    With `--c_dir`, only runtime flags may be given; storage.open_run reads the others from the run directory.
    """
    parser = build_parser()
    given = vars(parser.parse_args(argv))
    try:
        config = resolve(given)
    except UsageError as error:
        parser.error(str(error))
    return config


def resolve(given: Mapping[str, Any]) -> Config:
    """Return the Config of the fields given explicitly, {name: value}. Raises UsageError if they do not fit."""
    config = Config(**given)
    if config.c_dir is not None:
        identity = [name for name in given if name in config.identity()]
        if identity:
            raise UsageError(f"--{identity[0]} cannot be changed for an existing run: leave it out when using --c_dir")
        return dataclasses.replace(config, given=frozenset(given))
    check_applicable(config, given)
    changes: dict[str, Any] = {}
    if config.epochs is None:
        changes["epochs"] = SMALL_BATCH_EPOCHS if config.batch_size < SMALL_BATCH else EPOCHS
    if config.image_size is None and config.arch == "vit":
        changes["image_size"] = VIT_IMAGE_SIZE
    config = dataclasses.replace(config, **changes)
    _check_network(config)
    return config


def from_settings(settings: Mapping[str, Any]) -> Config:
    """Return the Config of stored settings; missing settings get their defaults. Raises UsageError if one is wrong."""
    given = {}
    for option in dataclasses.fields(Config):
        value = settings.get(option.name, option.default)
        if value != option.default and option.name != "c_dir":
            try:
                parsed = argparse_type(option.metadata["type"], option.metadata["choices"])(str(value))
            except argparse.ArgumentTypeError as error:
                raise UsageError(f"{option.name}: {error}") from None
            if parsed != (os.path.expanduser(value) if isinstance(value, str) else value):
                raise UsageError(f"{option.name} is {value!r}, which is not a valid value of --{option.name}")
            given[option.name] = parsed
    # Earlier versions ignored a runtime flag that does not apply; it changed no result.
    is_runtime = {option.name: option.metadata["runtime"] for option in dataclasses.fields(Config)}
    owners = {**vars(Config()), **given}
    return resolve({name: value for name, value in given.items() if not is_runtime[name] or applies(name, owners)})


CIFAR = ("CIFAR-10", "CIFAR-100")
WITH_FILES = tuple(name for name in DATASETS if name != "Synthetic")
# {flag: (owner, the values of the owner to which the flag applies)}
ONLY_WITH = {
    "cfg": ("arch", ("vgg",)),
    "skipinit": ("arch", ("resnet-56",)),
    "preact": ("arch", ("resnet-56",)),
    "patch_size": ("arch", ("vit",)),
    "p_grouping": ("norm_type", GROUPED_NORMS),
    "momentum": ("optimizer", ("sgd",)),
    "nesterov": ("optimizer", ("sgd",)),
    "sync_bn": ("norm_type", BATCH_NORMS),
    "download": ("dataset", CIFAR),
    "data_dir": ("dataset", WITH_FILES),
    "cache_dir": ("dataset", WITH_FILES),
}
SWITCHES = ("skipinit", "preact", "nesterov", "sync_bn", "download")  # of these, only True asks for something


def applies(flag: str, settings: Mapping[str, object]) -> bool:
    """Return whether a flag applies to the chosen network, norm, optimizer and data set, {name: value}."""
    owner, wanted = ONLY_WITH.get(flag, (None, ()))
    return owner is None or settings[owner] in wanted


def check_network_options(settings: Mapping[str, object], asked: Container[str], prefix: str = "") -> None:
    """Raise ValueError if an option in `asked` does not apply to the other settings: none is ignored.

    settings: the values of norm_type, conv_type and the owners of these options. prefix: text before the option names
    in the message.
    """
    for name, (owner, wanted) in ONLY_WITH.items():
        if name in asked and not applies(name, settings):
            raise ValueError(
                f"{prefix}{name} applies only to {prefix}{owner}={' or '.join(wanted)}, not to {settings[owner]}"
            )
    norm_type, conv_type = str(settings["norm_type"]), settings["conv_type"]
    if NORM_TRAITS[norm_type].conv_type is not None and conv_type != "Plain":
        own = f"{prefix}norm_type={norm_type} brings its own convolution"
        raise ValueError(f"{own}; leave out {prefix}conv_type={conv_type}")


def convolution_of(norm_type: str, conv_type: str = "Plain") -> tuple[str, bool]:
    """Return (conv_type, has bias) of a network's convolutions. Those of a weight-based norm have a bias.

    Raises ValueError if a conv_type is combined with a weight-based norm.
    """
    check_network_options({"norm_type": norm_type, "conv_type": conv_type}, ())
    own = NORM_TRAITS[norm_type].conv_type
    return own or conv_type, own is not None


def check_applicable(config: Config, given: Container[str]) -> None:
    """Raise UsageError if a flag does not apply to the chosen network, norm or data set: none is ignored."""
    switches = {name for name in SWITCHES if getattr(config, name)}
    asked = switches | {name for name in ONLY_WITH if name in given and name not in SWITCHES}
    try:
        check_network_options(vars(config), asked, prefix="--")
    except ValueError as error:
        raise UsageError(str(error)) from None
    if config.balance != "equal" and not any(getattr(config, name) for name in SUBSET_FLAGS):
        raise UsageError(f"--balance applies only to {', '.join(f'--{name}' for name in SUBSET_FLAGS)}; leave it out")
    if config.nesterov and not config.momentum:
        raise UsageError("--nesterov needs a --momentum above 0")
    if "lr" in given and "init_lr" in given:
        raise UsageError(
            "--lr cannot be combined with --init_lr, which multiplies the usual rate: use only one of them"
        )
    if config.stop_at_loss is not None and config.lr_schedule != "constant":
        raise UsageError("--stop_at_loss needs --lr_schedule=constant, because stopping must not depend on --epochs")
    if "probe_every" in given and not config.probe_layers:
        raise UsageError("--probe_every needs --probe_layers=True")


# {network: a function of the Config that returns (name of its layers, their widths), which --p_grouping must divide}
GROUPED_LAYERS: dict[str, Callable[[Config], tuple[str, Sequence[int]]]] = {
    "vgg": lambda config: ("convolution", vgg_widths(config.cfg)),
    "resnet-56": lambda config: ("stage", RESNET_WIDTHS),
    "vit": lambda config: ("block", (VIT_WIDTH,)),
}


def _check_network(config: Config) -> None:
    if config.arch == "vit":
        try:
            check_patches(config.image_size or VIT_IMAGE_SIZE, config.patch_size)
        except ValueError as error:
            raise UsageError(f"--patch_size={config.patch_size}: {error}") from None
    if config.norm_type in GROUPED_NORMS:
        layer, widths = GROUPED_LAYERS[config.arch](config)
        for index, width in enumerate(widths, start=1):
            try:
                num_groups(config.p_grouping, width, f"{layer} {index} of {config.arch}")
            except ValueError as error:
                raise UsageError(f"--p_grouping: {error}") from None


def shares_of_batch(config: Config, processes: int) -> int:
    """Return the number of parts of each batch that have their own batch statistics with this many processes."""
    return processes if config.norm_type in BATCH_NORMS and not config.sync_bn else 1


def vgg_widths(cfg: str) -> list[int]:
    """Return the width of each convolution in a VGG layer list."""
    return [entry[0] if isinstance(entry, tuple) else entry for entry in VGG_LAYERS[cfg]]


def check_patches(image_size: int, patch_size: int) -> None:
    """Raise ValueError unless the patch size divides the image size."""
    if image_size % patch_size:
        raise ValueError(f"patches of {patch_size} pixels do not tile an image_size of {image_size}")


def num_groups(p_grouping: float, width: int, layer: str) -> int:
    """Return the number of groups of a grouped norm for `width` channels.

    p > 1: p groups. p ≤ 1: groups of 1/p channels, or one group if 1/p is at least the width.
    Raises ValueError, naming layer, width and groups, if the width is not divisible.
    """
    if p_grouping <= 0:
        raise ValueError(f"{layer}: the grouping {p_grouping:g} is not above 0")
    size_or_count = p_grouping if p_grouping > 1 else 1 / p_grouping
    if abs(size_or_count - round(size_or_count)) > 1e-6 * size_or_count:
        raise ValueError(f"{p_grouping:g} is neither a whole number of groups nor 1 divided by a whole group size")
    size_or_count = round(size_or_count)
    if p_grouping <= 1:
        size_or_count = min(size_or_count, width)
    if width % size_or_count:
        groups = f"{size_or_count} groups" if p_grouping > 1 else f"groups of {size_or_count} channels"
        raise ValueError(f"{layer} has {width} channels, which {groups} do not divide")
    return size_or_count if p_grouping > 1 else width // size_or_count


NORMALIZES_FEATURE_MAPS = ("vgg", "resnet-56")  # networks whose LayerNorm is over C,H,W; in vit, over C of each token
ONE_GROUP = 1e-7  # the usual p_grouping for one group in every layer


def canonical_norm(arch: str, norm_type: str, p_grouping: float) -> tuple[str, float | None]:
    """Return (norm, grouping), which are equal for settings that build the same network; grouping is None if unused.

    GroupNorm is InstanceNorm if every group in every layer is one channel. If every layer is one group, it is LayerNorm
    where LayerNorm normalizes feature maps, and elsewhere (GroupNorm, ONE_GROUP). A grouping that does not fit the
    network is returned as it is.
    """
    if norm_type not in GROUPED_NORMS:
        return norm_type, None
    if norm_type == "GroupNorm":
        _, widths = GROUPED_LAYERS[arch](Config(arch=arch))
        try:
            groups = [num_groups(p_grouping, width, arch) for width in widths]
        except ValueError:
            return norm_type, p_grouping
        if groups == list(widths):
            return "InstanceNorm", None
        if max(groups) == 1:
            return ("LayerNorm", None) if arch in NORMALIZES_FEATURE_MAPS else (norm_type, ONE_GROUP)
    return norm_type, p_grouping


def peak_learning_rate(config: Config) -> float:
    """Return the peak learning rate: lr, or else 0.1 · init_lr · batch_size/256."""
    return config.lr or LEARNING_RATE_PER_256 * config.init_lr * config.batch_size / 256


def learning_rate(config: Config, step: int, steps_per_epoch: int) -> float:
    """Return the learning rate of global step `step` (from 0), a pure function that is defined for every step.

    With lr_warmup, the rate first rises linearly from 0 to its peak. Then it follows lr_schedule: a tenth of the peak
    for the last quarter of the remaining steps ("step"), peak · (1 + cos(π · fraction of the remaining steps taken))/2
    ("cosine"), or the peak ("constant").
    """
    peak = peak_learning_rate(config)
    total = config.epochs * steps_per_epoch
    warmup = 0
    if config.lr_warmup:
        warmup = steps_per_epoch * (1 if config.epochs <= SHORT_RUN_EPOCHS else WARMUP_EPOCHS)
    if step < warmup:
        return peak * step / warmup
    if config.lr_schedule == "constant":
        return peak
    if config.lr_schedule == "cosine":
        fraction = min(1.0, (step - warmup) / max(1, total - warmup))
        return peak * (1 + math.cos(math.pi * fraction)) / 2
    decayed = 4 * (step - warmup) >= 3 * (total - warmup)
    return peak / LEARNING_RATE_DROP if decayed else peak

"""Predefined sweeps: the values of run_sweep.py's --preset."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, NamedTuple

from config import WEIGHT_NORMS

Grid = dict[str, Any]  # {flag: its values}, and flags of measurements, such as {"hessian_flags": "--samples=9"}

ORIGINAL_GROUPINGS = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 1e-7, 8.0, 16.0, 32.0, 64.0)
ORIGINAL_NORMS = (
    "Plain",
    "BatchNorm",
    "LayerNorm",
    "InstanceNorm",
    "GroupNorm",
    "FilterResponseNorm",
    "EvoNormSO",
    "EvoNormBO",
    "VarianceNorm",
)


class Preset(NamedTuple):
    """The runs of all grids. options: {flag of the sweep: value as in a command line}, which flags replace."""

    grids: tuple[Grid, ...]
    options: Mapping[str, str] = MappingProxyType({})


def _original(momentum: float, weight_decay: float) -> Grid:
    """Return the grid of the original study. Groupings that do not divide a width are left out later, by `expand`."""
    return {
        "arch": ("vgg", "resnet-56", "vit"),
        "norm_type": ORIGINAL_NORMS,
        "p_grouping": ORIGINAL_GROUPINGS,
        "dataset": ("CIFAR-10", "CIFAR-100"),
        "batch_size": (256, 16),
        "skipinit": (False, True),
        "momentum": (momentum,),
        "weight_decay": (weight_decay,),
    }


# The study in results/cpu_study, made for two cores: short schedules, and smaller subsets for the larger networks.
THRICE = ("BatchNorm", "LayerNorm", "InstanceNorm", "GroupNorm", "EvoNormBO", "Plain")
WEIGHT_BASED = WEIGHT_NORMS
STUDIED_NORMS = (*ORIGINAL_NORMS, *WEIGHT_BASED, "MeanCentering", "RMSNorm", "DynamicTanh")
_SHORT: Grid = {"dataset": ("ImageFolder",), "batch_size": (256,), "lr_warmup": (True,), "precision": ("bf16",)}
_VGG = _SHORT | {
    "arch": ("vgg",),
    "epochs": (3,),
    "hessian_flags": "--samples=130 --lanczos_steps=15 --trace_probes=12 --trace_error=0.1",
}
_SMALLER = _SHORT | {"train_samples": (5_000,), "test_samples": (2_000,), "batch_size": (64,), "epochs": (4,)}
_SMALLER |= {"hessian_flags": "--samples=60 --lanczos_steps=10 --trace_probes=12 --trace_error=0.1"}
_VIT: Grid = {"arch": ("vit",), "image_size": (32,), "patch_size": (4,)}
CPU_STUDY = (
    _VGG | {"norm_type": STUDIED_NORMS},
    _SMALLER | {"arch": ("resnet-56",), "norm_type": (*WEIGHT_BASED, *THRICE)},
    _SMALLER | {"arch": ("resnet-56",), "norm_type": WEIGHT_BASED, "seed": (1,)},
    _SMALLER | {"arch": ("vgg",), "norm_type": ("GroupNorm",), "p_grouping": ORIGINAL_GROUPINGS},
    _SMALLER | _VIT | {"norm_type": ("LayerNorm", "BatchNorm", "GroupNorm", "RMSNorm", "DynamicTanh", "Plain")},
    _VGG | {"norm_type": THRICE, "seed": (1, 2)},
    _SMALLER | {"arch": ("resnet-56",), "norm_type": (*WEIGHT_BASED, "Plain", "BatchNorm"), "skipinit": (True,)},
)

QUICK: Grid = {
    "arch": ("vgg",),
    "cfg": ("cfg_10_narrow",),
    "norm_type": ("BatchNorm", "LayerNorm", "Plain"),
    "dataset": ("Synthetic",),
    "train_samples": (500,),
    "test_samples": (200,),
    "image_size": (16,),
    "batch_size": (50,),
    "epochs": (3,),
    # As few products as give everything that the defaults give, with the errors over probes and over images.
    "hessian_flags": "--samples=20 --lanczos_steps=4 --num_probes=1 --trace_probes=2 --image_blocks=2",
    "class_similarity_flags": "--samples=100",
}


def _converged() -> Preset:
    """Return the study in results/converged: which norm generalizes best, and which property goes with it?

    The primary analysis was fixed before the first run. It is the report's (docs/report.md, "The primary analysis"),
    without any choice of our own: the outcome is test accuracy on all 10,000 test images; the measures are those of
    `normstudy.report.primary.MEASURES`; the unit is a norm at its best learning rate, as the mean over five seeds; the
    coefficient is Spearman's rho between norms; p is from permutations of norms, with Holm's adjustment over the
    measures. A finding has an adjusted p below 0.05 and a 95 % interval without zero. Everything else, such as the
    other measures, the gap, and associations within a norm, is exploratory.

    - Networks: VGG cfg_10, trained on 2,500 images of CIFAR-10, 250 of each class. As many again are held out for
      validation, so that the standard error of a validation accuracy is one point. SGD with momentum and a constant
      learning rate, without warmup, until the training cross-entropy is at most 0.1 in eval mode. All networks thus
      stop at about the same training loss. A run that does not reach it in 60 epochs is left out.
    - Norms: eight, chosen by the design, and more as time allows. None is left out for its results.
    - Rate: of six, each twice the one before, the one with the best validation accuracy of seed 0. If it is the
      smallest or the largest, the grid is extended until it is not, or until training diverges or never ends.
    - Seeds: five at the chosen rate. Half and twice that rate have one seed, from the tuning.
    - Measurements: of the runs at the chosen rate only. Without batch statistics, train mode is eval mode.

    After these 80 runs, seed 0 suggested that BatchNorm does not lead ScaledWeightStandardization and EvoNormBO at
    equal rates (0.01 to 0.04). This is tested with 24 runs: seeds 1 to 4 of the three norms at 0.02 and 0.04. When the
    test was fixed, only four of them existed, those of ScaledWeightStandardization at 0.04, its best rate. BatchNorm's
    lead over each of the other two is averaged over the two rates; its 95 % t-interval is over the four seeds. The
    lead over ScaledWeightStandardization is smaller at equal rates if this interval lies below the lead at the best
    rates, 2.6 points. Over EvoNormBO, the lead at the best rates (1.2 points) is too small for a verdict from four
    seeds.
    """
    grid: Grid = {
        "arch": ("vgg",),
        "norm_type": (
            "BatchNorm",
            "LayerNorm",
            "GroupNorm",
            "InstanceNorm",
            "EvoNormBO",
            "EvoNormSO",
            "ScaledWeightStandardization",
            "Plain",
        ),
        "dataset": ("ImageFolder",),
        "train_samples": (5_000,),
        "val_fraction": (0.5,),
        "batch_size": (64,),
        "epochs": (60,),
        "lr_schedule": ("constant",),
        "stop_at_loss": (0.1,),
        "precision": ("bf16",),
        "eval_every": (60,),
        "probe_every": (10,),
        "keep": ("last",),
        "seed": (0, 1, 2, 3, 4),
    }
    hessian = "--samples=130 --lanczos_steps=10 --trace_probes=8"
    grid["hessian_flags"] = tuple(
        f"{hessian} {flags}"
        for flags in ("--scale=element", "--scale=filter", "--scale=filter --bn_mode=train", "--scale=none")
    )
    grid["measures_flags"] = "--samples=256"
    options = {"tune": "lr:0.005,0.01,0.02,0.04,0.08,0.16", "measure": "hessian,class_similarity,measures"}
    return Preset((grid,), options)


PRESETS = {
    "original": Preset((_original(0.9, 1e-4), _original(0.0, 0.0))),
    "cpu_study": Preset(CPU_STUDY),
    "converged": _converged(),
    "quick": Preset((QUICK,)),
}

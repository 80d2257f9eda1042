"""Predefined grids of runs: the values of run_sweep.py's --preset."""

from typing import Any

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

# {name: grids}; the sweep consists of the runs of all grids.
PRESETS: dict[str, tuple[Grid, ...]] = {
    "original": (_original(0.9, 1e-4), _original(0.0, 0.0)),
    "cpu_study": CPU_STUDY,
    "quick": (
        {
            "arch": ("vgg",),
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
        },
    ),
}

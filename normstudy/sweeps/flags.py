"""The flags of run_sweep.py."""

import argparse
import re
from collections.abc import Callable

from config import FLAGS, GROUP_TITLES
from normstudy.cli import Parser, add_flag, argparse_type, boolean, count, number
from normstudy.storage import MEASUREMENTS
from normstudy.sweeps.presets import PRESETS

MEASUREMENT_FLAGS = tuple(f"{name}_flags" for name in MEASUREMENTS)
USUAL_MEASUREMENTS = "hessian,class_similarity"
NOT_SWEPT = ("c_dir", "overwrite")  # flags about one existing run
RATE_AXES = ("init_lr", "lr")  # flags that --tune can choose
TUNING_FRACTION = 0.1  # --val_fraction of a tuned sweep that does not set it


def build_parser() -> Parser:
    """Build the parser of run_sweep.py: the flags of main.py with lists of values, and the sweep's own flags."""
    parser = Parser(
        prog="run_sweep.py",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python run_sweep.py [--flag=value,value,... ...]",
        description="""Train and measure every combination of the given values of main.py's flags. Flags that change the
results take one or more values, separated by commas; other flags, such as --device, take one. Flags that do not apply
to a combination (--p_grouping without GroupNorm) are dropped, so that it is run once. Combinations that build the same
network (GroupNorm with --p_grouping=1 is InstanceNorm) are run once. Combinations that main.py would refuse are left
out and counted. Run the same command again to continue. Choices and defaults: main.py --help.""",
        epilog="""examples:
  python run_sweep.py --preset=quick                      a small sweep that needs no data
  python run_sweep.py --arch=vgg,resnet-56 --norm_type=BatchNorm,GroupNorm --p_grouping=8,32 --seed=0,1,2 --dry_run
  python run_sweep.py --norm_type=BatchNorm,LayerNorm --seed=0,1,2 --tune=init_lr:0.1,0.3,1,3
  python run_sweep.py --preset=original --seed=0,1,2 --jobs=4 --gpus=0,1
  python run_sweep.py --preset=original --cluster=slurm --slurm_partition=gpu --slurm_gpus=1 --slurm_time=8:00:00
exit codes: 0 all done (with --wait=False: queued), 1 a run failed or is unfinished, 2 wrong flags, 130 Ctrl-C,
99 SIGTERM, SIGUSR1 or SIGUSR2 (run the command again)""",
    )
    sweep = parser.add_argument_group("the sweep")
    grid = "Predefined grid, to which flags of main.py add and whose values they replace"
    add_flag(sweep, "preset", None, grid, choices=tuple(PRESETS))
    add_flag(sweep, "dry_run", False, "Only list the runs and their status, and estimate time and disk space", boolean)
    tuned = (
        "Tune the learning rate of each combination, such as init_lr:0.1,0.3,1,3 or lr:0.01,0.1. The first seed is "
        "trained at every rate, the other seeds only at the rate with the highest validation accuracy. Sets "
        f"--val_fraction={TUNING_FRACTION} if it is not given. Needs --cluster=local"
    )
    add_flag(sweep, "tune", None, tuned, _tuning)
    add_flag(sweep, "cluster", "local", "Where the runs are executed", choices=("local", "slurm"))
    at_once = (
        "Maximum number of runs (on Slurm: jobs) at once. Local runs share the cores (default: 1; on Slurm, no limit)"
    )
    add_flag(sweep, "jobs", None, at_once, count)
    add_flag(
        sweep, "processes", 1, "Number of processes per run, started by torchrun. On CUDA, each has its own GPU", count
    )
    shared = "Numbers of the GPUs over which local runs are distributed, such as 0,1 (default: as main.py chooses)"
    add_flag(sweep, "gpus", None, shared, _gpus)
    add_flag(
        sweep,
        "measure",
        USUAL_MEASUREMENTS,
        f"Measurements of each run, separated by commas ({', '.join(MEASUREMENTS)}), or none",
        _measurements,
    )
    for name, flag in zip(MEASUREMENTS, MEASUREMENT_FLAGS, strict=True):
        passed_on = (
            f"Flags of run_{name}.py in one string, such as '--samples=512 --seed=1'. May be given several times, for "
            "several measurements of each run (default: the preset's)"
        )
        sweep.add_argument(f"--{flag}", action="append", default=[], metavar=flag.upper(), help=passed_on)
    add_flag(sweep, "fail_fast", False, "With --cluster=local, stop at the first run that fails", boolean)
    add_flag(sweep, "retry_failed", False, "Also run the runs that failed before", boolean)
    slurm = parser.add_argument_group("jobs on Slurm (--cluster=slurm)")
    of_job = "When the time is up, the job saves its state and is queued again"
    add_flag(
        slurm,
        "slurm_time",
        "4:00:00",
        f"Time limit of a job, as minutes, hours:minutes:seconds or days-hours. {of_job}",
        slurm_minutes,
    )
    add_flag(slurm, "slurm_partition", None, "Partition of the jobs (default: the cluster's)")
    add_flag(slurm, "slurm_account", None, "Account of the jobs (default: the user's)")
    add_flag(slurm, "slurm_gpus", None, "Number of GPUs of a job (default: none is requested)", count)
    add_flag(slurm, "slurm_cpus", None, "Number of CPU cores of a job (default: the cluster's)", count)
    add_flag(slurm, "slurm_mem", None, "Memory of a job, such as 16G (default: the cluster's)")
    add_flag(slurm, "slurm_flags", "", "Other flags of sbatch in one string, such as '--qos=low --constraint=a100'")
    add_flag(
        slurm,
        "wait",
        True,
        "Follow the jobs until they end. With False, or after Ctrl-C, they continue unattended",
        boolean,
    )
    groups = {name: parser.add_argument_group(title) for name, title in GROUP_TITLES.items()}
    for option in FLAGS:
        meta = option.metadata
        if option.name not in NOT_SWEPT:
            parse = argparse_type(meta["type"], meta["choices"])
            groups[meta["group"]].add_argument(
                *meta["flags"],
                f"--{option.name}",
                dest=option.name,
                type=parse if meta["runtime"] else _list_of(parse),
                metavar=option.name.upper() + ("" if meta["runtime"] else ",..."),
                help=meta["help"].replace("%", "%%"),
            )
    return parser


def _list_of(parse: Callable[[str], object]) -> Callable[[str], tuple[object, ...]]:
    def convert(text: str) -> tuple[object, ...]:
        return tuple(parse(part) for part in text.split(","))

    return convert


def _tuning(text: str) -> tuple[str, tuple[float, ...]]:
    """Return (axis, its rates in ascending order) of a text such as init_lr:0.1,1. Raises ValueError for other text."""
    axis, _, values = text.partition(":")
    if axis not in RATE_AXES:
        raise ValueError(f"{text!r} does not begin with {' or '.join(f'{each}:' for each in RATE_AXES)}")
    parse = number(float, above=0)
    rates = sorted({parse(value) for value in values.split(",")})
    if len(rates) < 2:
        raise ValueError(f"{text!r} has fewer than two rates to choose from")
    return axis, tuple(rates)


def slurm_minutes(text: str) -> int:
    """Return the minutes, rounded up, of a time in Slurm's notation. Raises ValueError for other text."""
    pattern = r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?"
    found = re.fullmatch(pattern, text)
    if found is None:
        raise ValueError(f"{text!r} is not a time as minutes, hours:minutes:seconds or days-hours")
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is None and len(parts) < 3:  # minutes, minutes:seconds
        parts = [0, *parts]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    total = 60 * (24 * int(days or 0) + hours) + minutes + (seconds > 0)
    if total < 1:
        raise ValueError(f"{text!r} is not a time above zero")
    return total


def _gpus(text: str) -> tuple[str, ...]:
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{text!r} is not a list of numbers such as 0,1")
    return tuple(numbers)


def _measurements(text: str) -> tuple[str, ...]:
    names = () if text == "none" else tuple(text.split(","))
    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(MEASUREMENTS)}, none")
    return names

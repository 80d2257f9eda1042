"""The flags of run_sweep.py."""

import argparse
import re
from collections.abc import Callable

from config import FLAGS, GROUP_TITLES
from normstudy.cli import Parser, add_flag, argparse_type, boolean, count
from normstudy.storage import MEASUREMENTS
from normstudy.sweeps.presets import PRESETS

MEASUREMENT_FLAGS = tuple(f"{name}_flags" for name in MEASUREMENTS)
NOT_SWEPT = ("c_dir", "overwrite")  # of a run that exists already


def build_parser() -> Parser:
    """The parser of run_sweep.py: every flag of main.py as a comma list, and the flags of the sweep itself."""
    parser = Parser(
        prog="run_sweep.py",
        allow_abbrev=False,
        argument_default=argparse.SUPPRESS,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage="python run_sweep.py [--flag=value,value,... ...]",
        description="""Train and measure every combination of the values that flags of main.py are given. A flag that a
combination cannot honour (--p_grouping without GroupNorm) does not multiply it; what main.py refuses is left out
and counted. The same command goes on where it was stopped.""",
        epilog="""examples:
  python run_sweep.py --preset=quick                      a small sweep that needs no data
  python run_sweep.py --arch=vgg,resnet-56 --norm_type=BatchNorm,GroupNorm --p_grouping=8,32 --seed=0,1,2 --dry_run
  python run_sweep.py --preset=original --seed=0,1,2 --jobs=4 --gpus=0,1
  python run_sweep.py --preset=original --cluster=slurm --slurm_partition=gpu --slurm_gpus=1 --slurm_time=8:00:00
exit codes: 0 all done, 1 a run failed, 2 wrong flags, 130 Ctrl-C, 99 SIGTERM, SIGUSR1, SIGUSR2 (run it again)""",
    )
    sweep = parser.add_argument_group("the sweep")
    grid = "a grid by name, to which other flags add or whose values they replace"
    add_flag(sweep, "preset", None, grid, choices=tuple(PRESETS))
    add_flag(sweep, "dry_run", False, "list the runs, what is done, and an estimate of time and disk", boolean)
    add_flag(sweep, "cluster", "local", "where the runs are worked off", choices=("local", "slurm"))
    at_once = "runs at once, each with its share of the cores (default: 1; on Slurm, as many as it lets)"
    add_flag(sweep, "jobs", None, at_once, count)
    add_flag(sweep, "processes", 1, "processes of each run, through torchrun: one for each GPU of a run", count)
    shared = "numbers of the GPUs that they share, such as 0,1 (default: as main.py chooses)"
    add_flag(sweep, "gpus", None, shared, _gpus)
    add_flag(sweep, "measure", ",".join(MEASUREMENTS), "measurements of each run, or none", _measurements)
    add_flag(sweep, "hessian_flags", "", "flags of run_hessian.py, such as '--samples=512 --trace_probes=10'")
    add_flag(sweep, "class_similarity_flags", "", "flags of run_class_similarity.py")
    add_flag(sweep, "fail_fast", False, "stop at the first run that fails", boolean)
    add_flag(sweep, "retry_failed", False, "run again what failed before", boolean)
    slurm = parser.add_argument_group("jobs on Slurm (--cluster=slurm)")
    of_job = "a job's share; what it has not done by then it saves, and is queued again with it"
    add_flag(slurm, "slurm_time", "4:00:00", f"minutes, hours:minutes:seconds or days-hours: {of_job}", slurm_minutes)
    add_flag(slurm, "slurm_partition", None, "partition")
    add_flag(slurm, "slurm_account", None, "account")
    add_flag(slurm, "slurm_gpus", None, "GPUs of a job", count)
    add_flag(slurm, "slurm_cpus", None, "cores of a job", count)
    add_flag(slurm, "slurm_mem", None, "memory of a job, such as 16G")
    add_flag(slurm, "slurm_flags", "", "other flags of sbatch, such as '--qos=low --constraint=a100'")
    add_flag(slurm, "wait", True, "follow the jobs; without, or after Ctrl-C, they go on by themselves", boolean)
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


def slurm_minutes(text: str) -> int:
    """The minutes in a time as Slurm writes it, rounded up. Raises ValueError."""
    pattern = r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?"
    found = re.fullmatch(pattern, text)
    if found is None:
        raise ValueError(f"{text!r} is none of minutes, hours:minutes:seconds, days-hours")
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is None and len(parts) < 3:  # minutes, minutes:seconds
        parts = [0, *parts]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    total = 60 * (24 * int(days or 0) + hours) + minutes + (seconds > 0)
    if total < 1:
        raise ValueError(f"{text!r} is no time")
    return total


def _gpus(text: str) -> tuple[str, ...]:
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{text!r} is no list of numbers such as 0,1")
    return tuple(numbers)


def _measurements(text: str) -> tuple[str, ...]:
    names = () if text == "none" else tuple(text.split(","))
    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(MEASUREMENTS)}, none")
    return names

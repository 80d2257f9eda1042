"""The flags of run_sweep.py."""

import argparse
from collections.abc import Callable

from config import FLAGS, GROUP_TITLES
from normstudy.cli import Parser, add_flag, argparse_type, boolean, count, number
from normstudy.storage import MEASUREMENTS
from normstudy.sweeps.durations import parse_duration
from normstudy.sweeps.flag_values import gpu_numbers, measurements, slurm_minutes, tuning
from normstudy.sweeps.presets import PRESETS

MEASUREMENT_FLAGS = tuple(f"{name}_flags" for name in MEASUREMENTS)
USUAL_MEASUREMENTS = "hessian,class_similarity"
NOT_SWEPT = ("c_dir", "overwrite")  # flags about one existing run
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
  python run_sweep.py --status                            the sweep that was started last in results/
  python run_sweep.py --follow=3                          the log of its third run
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
        f"--val_fraction={TUNING_FRACTION} if it is not given"
    )
    add_flag(sweep, "tune", None, tuned, tuning)
    add_flag(sweep, "cluster", "local", "Where the runs are executed", choices=("local", "slurm"))
    at_once = (
        "Maximum number of runs at once, which share the cores. On Slurm, the maximum number of training jobs and of "
        "measuring jobs (default: 1; on Slurm, no limit)"
    )
    add_flag(sweep, "jobs", None, at_once, count)
    add_flag(
        sweep, "processes", 1, "Number of processes per run, started by torchrun. On CUDA, each has its own GPU", count
    )
    shared = (
        "Numbers of the GPUs over which runs are distributed, such as 0,1. Needs --cluster=local (default: as main.py "
        "chooses)"
    )
    add_flag(sweep, "gpus", None, shared, gpu_numbers)
    add_flag(
        sweep,
        "measure",
        USUAL_MEASUREMENTS,
        f"Measurements of each run, separated by commas ({', '.join(MEASUREMENTS)}), or none",
        measurements,
    )
    for name, flag in zip(MEASUREMENTS, MEASUREMENT_FLAGS, strict=True):
        passed_on = (
            f"Flags of run_{name}.py in one string, such as '--samples=512 --seed=1'. May be given several times, for "
            "several measurements of each run (default: the preset's)"
        )
        sweep.add_argument(f"--{flag}", action="append", default=[], metavar=flag.upper(), help=passed_on)
    again = (
        "Number of times that a failed training or measurement is started again, after the other runs and in later "
        "sweeps. Wrong flags and --run_timeout are final. The default is for failures that come from outside, such as "
        "lack of memory"
    )
    add_flag(sweep, "retries", 1, again, number(int, low=0, high=1000))
    limit = (
        "Maximum time of a run with its measurements, such as 90m, 2h or 1h30m; a number alone counts minutes. A run "
        "that takes longer is stopped, saves its state and counts as failed; --retry_failed continues it. On Slurm, "
        "training and measurements each have this time (default: no limit)"
    )
    add_flag(sweep, "run_timeout", None, limit, parse_duration)
    add_flag(
        sweep, "fail_fast", False, "Stop at the first run that fails after its retries. Needs --cluster=local", boolean
    )
    add_flag(sweep, "retry_failed", False, "Also run the runs that failed before, and count retries anew", boolean)
    looking = parser.add_argument_group("looking at a sweep, which may be running elsewhere")
    shown = (
        "Only show which runs are done, running, waiting or failed, and the time left. Without flags of a sweep, it is "
        "the one that was started last in results_dir"
    )
    add_flag(looking, "status", False, shown, boolean)
    followed = (
        "Only show the log of one run as it grows, until the run ends. RUN is its number in --status or the beginning "
        "of its name"
    )
    looking.add_argument("--follow", default=None, metavar="RUN", help=followed)
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
            is_boolean, is_swept = meta["type"] is boolean, not meta["runtime"]
            groups[meta["group"]].add_argument(
                *meta["flags"],
                f"--{option.name}",
                dest=option.name,
                type=_list_of(parse) if is_swept else parse,
                nargs="?" if is_boolean else None,
                const=((True,) if is_swept else True) if is_boolean else None,
                metavar=option.name.upper() + ",..." * is_swept,
                help=meta["help"].replace("%", "%%"),
            )
    return parser


def _list_of(parse: Callable[[str], object]) -> Callable[[str], tuple[object, ...]]:
    def convert(text: str) -> tuple[object, ...]:
        return tuple(parse(part) for part in text.split(","))

    return convert


def own_flags(parser: argparse.ArgumentParser) -> list[str]:
    """Return the names of the sweep's own flags; all other flags of its parser are main.py's."""
    theirs = {option.name for option in FLAGS} | {"help"}
    return [action.dest for action in parser._actions if action.dest not in theirs]

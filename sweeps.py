"""Grids of runs: what a command line of run_sweep.py means, and which of its runs are done. Needs no torch."""

import argparse
import collections
import contextlib
import dataclasses
import itertools
import os
import re
import statistics
from pathlib import Path

from config import FLAGS, GROUP_TITLES, ONLY_WITH, Config, resolve, shares_of_batch
from errors import RunError, UsageError
from files import read_json
from flags import Parser, add_flag, argparse_type, boolean, count
from presets import PRESETS
from runs import RunDirectory, run_name

MEASUREMENTS = ("hessian", "class_similarity")
MEASURING = tuple(f"{name}_flags" for name in MEASUREMENTS)
NOT_SWEPT = ("c_dir", "overwrite")  # of a run that exists already


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep: its settings, the flags that give them to main.py, and its directory."""

    config: Config
    flags: tuple[str, ...]
    directory: RunDirectory
    hessian_flags: str = ""
    class_similarity_flags: str = ""


def build_parser():
    """run_sweep.py's parser: every flag of main.py as a comma list, and how the runs are worked off."""
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
    own = parser.add_argument_group("the sweep")
    presets = f"a grid by name, to which other flags add or whose values they replace: {', '.join(PRESETS)}"
    own.add_argument("--preset", type=argparse_type(None, tuple(PRESETS)), help=presets, metavar="PRESET")
    add_flag(own, "dry_run", False, "list the runs, what is done, and an estimate of time and disk", boolean)
    add_flag(own, "cluster", "local", "where the runs are worked off", choices=("local", "slurm"))
    at_once = "runs at once, each with its share of the cores (default: 1; on Slurm, as many as it lets)"
    add_flag(own, "jobs", None, at_once, count)
    add_flag(own, "processes", 1, "processes of each run, through torchrun: one for each GPU of a run", count)
    add_flag(own, "gpus", None, "numbers of the GPUs that they share, such as 0,1 (default: as main.py chooses)", _gpus)
    add_flag(own, "measure", ",".join(MEASUREMENTS), "measurements of each run, or none", _measurements)
    add_flag(own, "hessian_flags", "", "flags of run_hessian.py, such as '--samples=512 --trace_probes=10'")
    add_flag(own, "class_similarity_flags", "", "flags of run_class_similarity.py")
    add_flag(own, "fail_fast", False, "stop at the first run that fails", boolean)
    add_flag(own, "retry_failed", False, "run again what failed before", boolean)
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


def _list_of(parse):
    def convert(text):
        return tuple(parse(part) for part in text.split(","))

    return convert


def slurm_minutes(text):
    """The minutes in a time as Slurm writes it, rounded up."""
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


def _gpus(text):
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{text!r} is no list of numbers such as 0,1")
    return tuple(numbers)


def _measurements(text):
    names = () if text == "none" else tuple(text.split(","))
    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is none of {', '.join(MEASUREMENTS)}, none")
    return names


def expand(given, preset=None, processes=1):
    """(runs, {why: how many combinations were left out}) of flags {name: values, or a runtime flag's value}, each run
    trained by so many processes.

    Each run stands once, in the order of the product. Raises UsageError where no run is left.
    """
    runtime = {f.name for f in dataclasses.fields(Config) if f.metadata["runtime"]}
    shared = {name: value for name, value in given.items() if name in runtime}
    swept = {name: values for name, values in given.items() if name not in runtime}
    runs, left_out, seen = {}, collections.Counter(), set()
    for grid in PRESETS[preset] if preset else ({},):
        measuring = {name: grid[name] for name in grid if name in MEASURING}
        grid = {name: grid[name] for name in grid if name not in MEASURING} | swept
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True)) | shared
            for name, (owner, wanted) in ONLY_WITH.items():
                if chosen.get(owner, getattr(Config, owner)) not in wanted:
                    chosen.pop(name, None)
            key = tuple(chosen.items())
            if key in seen:
                continue
            seen.add(key)
            try:
                config = resolve(chosen)
                config = dataclasses.replace(config, batch_shares=shares_of_batch(config, processes))
            except UsageError as error:
                left_out[str(error)] += 1
                continue
            name = run_name(config)
            if name not in runs:
                flags = tuple(f"--{flag}={value}" for flag, value in chosen.items())
                runs[name] = Run(config, flags, RunDirectory(Path(config.results_dir) / name), **measuring)
    if not runs:
        raise UsageError(f"main.py would refuse every combination: {next(iter(left_out))}")
    return list(runs.values()), dict(left_out)


def log_of(run):
    return run.directory.path.parent / "logs" / f"{run.directory.path.name}.log"


def failure_of(run):
    """The file that says how a run failed, where it did."""
    return log_of(run).with_suffix(".failed")


def missing_measurements(run, measurements):
    """The measurements that a run that has ended lacks; one that diverged needs none."""
    missing = [name for name in measurements if not run.directory.measurement(name).exists()]
    try:
        return missing if missing and read_json(run.directory.summary).get("status") == "done" else []
    except RunError:
        return missing


def is_done(run, measurements):
    """Whether a run has ended and is measured."""
    return run.directory.summary.exists() and not missing_measurements(run, measurements)


def standings(runs, measurements, queued=()):
    """{"done", "to measure", "failed", "queued", "begun", "new": [runs]}; `queued` are names that a cluster has."""
    found = {name: [] for name in ("done", "to measure", "failed", "queued", "begun", "new")}
    folders = {run.directory.path.parent for run in runs}
    entries = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in folders}
    logs = {folder: set(os.listdir(folder / "logs")) if (folder / "logs").is_dir() else set() for folder in folders}
    for run in runs:
        folder, name = run.directory.path.parent, run.directory.path.name
        has_ended = name in entries[folder] and run.directory.summary.exists()
        if failure_of(run).name in logs[folder]:
            kind = "failed"
        elif has_ended and not missing_measurements(run, measurements):
            kind = "done"
        elif name in queued:
            kind = "queued"
        elif has_ended:
            kind = "to measure"
        else:
            kind = "begun" if name in entries[folder] else "new"
        found[kind].append(run)
    return found


def estimate(runs, done, measurements=MEASUREMENTS):
    """(seconds of training, seconds of measuring, bytes) that `runs` take, or None, judged by the runs of their network
    that are done: training by images and epochs, the rest by their files."""
    training, measuring, sizes = (collections.defaultdict(list) for _ in range(3))
    for run in done[:: max(1, len(done) // 200)]:
        with contextlib.suppress(RunError, KeyError):  # what is damaged is said by what needs it
            arch, summary = run.config.arch, read_json(run.directory.summary)
            images = read_json(run.directory.config)["data"]["train_samples"]
            found = [run.directory.measurement(name) for name in measurements]
            seconds = sum(read_json(path)["seconds"] for path in found if path.exists())
            if summary["status"] == "done":
                training[arch].append(summary["seconds"] / images / run.config.epochs)
                measuring[arch].append(seconds)
                paths = [path for path in run.directory.path.rglob("*") if path.is_file()]
                sizes[arch].append(sum(path.stat().st_size for path in paths))
    if not all(run.config.arch in training for run in runs):
        return None
    rates, rest, size = (
        {arch: statistics.median(each) for arch, each in by.items()} for by in (training, measuring, sizes)
    )
    archs = [run.config.arch for run in runs]
    seconds = sum(rates[run.config.arch] * (run.config.train_samples or 50_000) * run.config.epochs for run in runs)
    return seconds, sum(rest[arch] for arch in archs), sum(size[arch] for arch in archs)

"""Grids of runs: what a command line of run_sweep.py means, and which of its runs are done. Needs no torch."""

import argparse
import collections
import dataclasses
import itertools
import os
import statistics
from pathlib import Path

from config import GROUP_TITLES, NORM_TYPES, ONLY_WITH, Config, resolve
from errors import RunError, UsageError
from files import read_json
from flags import Parser, add_flag, argparse_type, boolean, count
from runs import RunDirectory, run_name

MEASUREMENTS = ("hessian", "class_similarity")
NOT_SWEPT = ("c_dir", "overwrite")  # of a run that exists already
ORIGINAL_GROUPINGS = (1.0, 0.5, 0.25, 0.125, 0.0625, 0.03125, 1e-7, 8.0, 16.0, 32.0, 64.0)
ORIGINAL_NORMS = tuple(
    name
    for name in NORM_TYPES[: NORM_TYPES.index("MeanCentering")]
    if name not in ("WeightNorm", "ScaledWeightStandardization")
)


def _original(momentum, weight_decay):
    """The study's grid; vit's 64 pairs of channels and the like are left out where they do not divide a width."""
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


# {name: grids, the runs of all of which are the sweep}
PRESETS = {
    "original": (_original(0.9, 1e-4), _original(0.0, 0.0)),
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
        },
    ),
}


@dataclasses.dataclass(frozen=True)
class Run:
    """One run of a sweep: its settings, the flags that give them to main.py, and its directory."""

    config: Config
    flags: tuple[str, ...]
    directory: RunDirectory


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
exit codes: 0 all done, 1 a run failed, 2 wrong flags, 130 Ctrl-C, 99 SIGTERM or SIGUSR1 (run it again)""",
    )
    own = parser.add_argument_group("the sweep")
    presets = f"a grid by name, to which other flags add or whose values they replace: {', '.join(PRESETS)}"
    own.add_argument("--preset", type=argparse_type(None, tuple(PRESETS)), help=presets, metavar="PRESET")
    add_flag(own, "dry_run", False, "list the runs, what is done, and an estimate of time and disk", boolean)
    add_flag(own, "jobs", 1, "processes at once, each with its share of the cores", count)
    add_flag(own, "gpus", None, "numbers of the GPUs that they share, such as 0,1 (default: as main.py chooses)", _gpus)
    add_flag(own, "measure", ",".join(MEASUREMENTS), "measurements of each run, or none", _measurements)
    add_flag(own, "hessian_flags", "", "flags of run_hessian.py, such as '--samples=512 --trace_probes=10'")
    add_flag(own, "class_similarity_flags", "", "flags of run_class_similarity.py")
    add_flag(own, "fail_fast", False, "stop at the first run that fails", boolean)
    add_flag(own, "retry_failed", False, "run again what failed before", boolean)
    groups = {name: parser.add_argument_group(title) for name, title in GROUP_TITLES.items()}
    for option in dataclasses.fields(Config):
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


def expand(given, preset=None):
    """(runs, {why: how many combinations were left out}) of flags {name: values, or a runtime flag's value}.

    Each run stands once, in the order of the product. Raises UsageError where no run is left.
    """
    runtime = {f.name for f in dataclasses.fields(Config) if f.metadata["runtime"]}
    shared = {name: value for name, value in given.items() if name in runtime}
    swept = {name: values for name, values in given.items() if name not in runtime}
    runs, left_out, seen = {}, collections.Counter(), set()
    for grid in PRESETS[preset] if preset else ({},):
        grid = grid | swept
        for values in itertools.product(*grid.values()):
            chosen = dict(zip(grid, values, strict=True)) | shared
            for name, (owner, wanted) in ONLY_WITH.items():
                if chosen.get(owner, getattr(Config, owner)) != wanted:
                    chosen.pop(name, None)
            key = tuple(chosen.items())
            if key in seen:
                continue
            seen.add(key)
            try:
                config = resolve(chosen)
            except UsageError as error:
                left_out[str(error)] += 1
                continue
            name = run_name(config)
            if name not in runs:
                flags = tuple(f"--{flag}={value}" for flag, value in chosen.items())
                runs[name] = Run(config, flags, RunDirectory(Path(config.results_dir) / name))
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


def standings(runs, measurements):
    """{"done", "to measure", "failed", "begun", "new": [runs]}."""
    found = {name: [] for name in ("done", "to measure", "failed", "begun", "new")}
    folders = {run.directory.path.parent for run in runs}
    entries = {folder: set(os.listdir(folder)) if folder.is_dir() else set() for folder in folders}
    logs = {folder: set(os.listdir(folder / "logs")) if (folder / "logs").is_dir() else set() for folder in folders}
    for run in runs:
        folder, name = run.directory.path.parent, run.directory.path.name
        if failure_of(run).name in logs[folder]:
            kind = "failed"
        elif name not in entries[folder]:
            kind = "new"
        elif run.directory.summary.exists():
            kind = "to measure" if missing_measurements(run, measurements) else "done"
        else:
            kind = "begun"
        found[kind].append(run)
    return found


def estimate(runs, done):
    """(seconds of training or None, bytes or None) that `runs` take, judged by the runs of their network that are
    done: by images and epochs, and by their folders."""
    seconds, sizes = collections.defaultdict(list), collections.defaultdict(list)
    for run in done[:200]:
        settings, summary = read_json(run.directory.config), read_json(run.directory.summary)
        if summary.get("status") == "done":
            seconds[run.config.arch].append(summary["seconds"] / settings["data"]["train_samples"] / run.config.epochs)
            files = [path for path in run.directory.path.rglob("*") if path.is_file()]
            sizes[run.config.arch].append(sum(path.stat().st_size for path in files))
    if not all(run.config.arch in seconds for run in runs):
        return None, None
    total = 0.0
    for run in runs:
        images = run.config.train_samples or 50_000
        total += statistics.median(seconds[run.config.arch]) * images * run.config.epochs
    return total, sum(statistics.median(sizes[run.config.arch]) for run in runs)

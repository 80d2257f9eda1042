"""A command line of run_sweep.py: its flags, which of them fit together, and the runs that it asks for."""

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from config import Config
from normstudy.cli import UsageError
from normstudy.sweeps.flag_values import sbatch_flags
from normstudy.sweeps.flags import MEASUREMENT_FLAGS, build_parser, own_flags
from normstudy.sweeps.grid import SweepRun, expand, with_measurements
from normstudy.sweeps.presets import PRESETS
from normstudy.sweeps.same_networks import describe_repeats, without_repeats
from normstudy.sweeps.tuning import grid_with_rates

LOCAL_FLAGS = {"gpus": "use --slurm_gpus", "fail_fast": "leave it out"}  # {flag: what to do on Slurm}
LOOKING = ("status", "follow", "dry_run")  # flags that only look at a sweep


@dataclass(frozen=True)
class SweepCommand:
    """A parsed command line, argv.

    grid: {flag of main.py: its values, or the value of a runtime flag}. options: {flag of the sweep: its value}.
    given: the flags of the sweep that were given.
    """

    argv: tuple[str, ...]
    grid: dict[str, Any]
    options: dict[str, Any]
    given: frozenset[str]

    @property
    def results_dir(self) -> Path:
        return Path(self.grid.get("results_dir", Config.results_dir))

    @property
    def describes_no_sweep(self) -> bool:
        """Whether only --status or --follow and a folder are given, so that the sweep is the last one of the folder."""
        return not (self.grid.keys() - {"results_dir"} or self.given - set(LOOKING))


def parse_command(argv: Sequence[str]) -> SweepCommand:
    """Parse a command line. Raises UsageError for flags that do not go together; a wrong flag ends the process."""
    parser = build_parser()
    names = own_flags(parser)
    # A flag that is set before parsing keeps this value, None, if it is not given.
    parsed = vars(parser.parse_args(argv, argparse.Namespace(**dict.fromkeys(names))))
    given = {name: parsed.pop(name) for name in names}
    given = {name: value for name, value in given.items() if value is not None}
    defaults = vars(parser.parse_args([]))
    preset = PRESETS[given["preset"]].options if "preset" in given else {}
    defaults |= vars(parser.parse_args([f"--{name}={value}" for name, value in preset.items()]))
    options = {name: given.get(name, defaults[name]) for name in names}
    if "tune" not in given and options["tune"] and options["tune"][0] in parsed:
        options["tune"] = None  # a given rate replaces those that the preset tunes
    command = SweepCommand(tuple(argv), parsed, options, frozenset(given))
    _check_together(command)
    return command


def _check_together(command: SweepCommand) -> None:
    """Raise UsageError if a flag would be ignored next to the others."""
    options, given = command.options, command.given
    if options["cluster"] == "slurm":
        for name, cure in LOCAL_FLAGS.items():
            if options[name]:
                raise UsageError(f"--{name} applies only to --cluster=local; {cure}")
        sbatch_flags(options["slurm_flags"])
    else:
        for name in sorted(given):
            if name.startswith("slurm_") or (name == "wait" and not options["wait"]):
                raise UsageError(f"--{name} applies only to --cluster=slurm")
    for flag in MEASUREMENT_FLAGS:
        kind = flag.removesuffix("_flags")
        if flag in given and kind not in options["measure"]:
            raise UsageError(f"--{flag} applies only if --measure names {kind}")
    device = command.grid.get("device", "auto")
    if options["gpus"] and device not in ("auto", "cuda"):
        raise UsageError(f"--gpus chooses among CUDA GPUs and cannot be combined with --device={device}")
    looking = [name for name in LOOKING if options[name]]
    if len(looking) > 1:
        raise UsageError(f"--{looking[0]} cannot be combined with --{looking[1]}")
    if options["follow"] == "":
        raise UsageError("--follow needs a run: its number in --status or the beginning of its name")


def runs_of(command: SweepCommand) -> tuple[list[SweepRun], list[str]]:
    """Return the runs of a command line, with --tune at all rates, and lines about what is left out."""
    options, grid = command.options, command.grid
    if options["tune"]:
        grid = grid_with_rates(grid, options["preset"], *options["tune"])
    runs, left_out = expand(grid, options["preset"], options["processes"])
    runs, repeats = without_repeats(runs)
    runs = [with_measurements(run, options["measure"], options) for run in runs]
    remarks = [f"left out: {number} combinations, because {reason}" for reason, number in left_out.items()]
    return runs, remarks + ([describe_repeats(repeats)] if repeats else [])

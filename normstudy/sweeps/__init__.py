"""Grids of runs: what a command line means, what is done, and what works off the rest, here or on Slurm."""

from normstudy.sweeps.flags import build_parser
from normstudy.sweeps.grid import expand
from normstudy.sweeps.one_machine import OneMachine
from normstudy.sweeps.slurm import queued_runs, run_on_slurm
from normstudy.sweeps.standings import estimate_cost, failure_path, log_path, standings

__all__ = [
    "OneMachine",
    "build_parser",
    "estimate_cost",
    "expand",
    "failure_path",
    "log_path",
    "queued_runs",
    "run_on_slurm",
    "standings",
]

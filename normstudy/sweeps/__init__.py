"""Sweeps: the runs of a command line, their status, and the execution of the remaining ones, here or on Slurm."""

from normstudy.sweeps.flags import MEASUREMENT_FLAGS, build_parser
from normstudy.sweeps.grid import SweepRun, expand, with_measurements
from normstudy.sweeps.one_machine import OneMachine
from normstudy.sweeps.run_status import estimate_cost, failure_path, log_path, runs_by_status
from normstudy.sweeps.same_networks import describe_repeats, without_repeats
from normstudy.sweeps.slurm import queued_runs, run_on_slurm
from normstudy.sweeps.tuning import (
    Combination,
    combinations_of,
    grid_with_rates,
    read_tuning,
    tuned_runs_by_status,
    write_tuning,
)

__all__ = [
    "MEASUREMENT_FLAGS",
    "Combination",
    "OneMachine",
    "SweepRun",
    "build_parser",
    "combinations_of",
    "describe_repeats",
    "estimate_cost",
    "expand",
    "failure_path",
    "grid_with_rates",
    "log_path",
    "queued_runs",
    "read_tuning",
    "run_on_slurm",
    "runs_by_status",
    "tuned_runs_by_status",
    "with_measurements",
    "without_repeats",
    "write_tuning",
]

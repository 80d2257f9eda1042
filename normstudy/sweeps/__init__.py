"""Sweeps: the runs of a command line, their status, and the execution of the remaining ones, here or on Slurm."""

from normstudy.sweeps.flags import MEASUREMENT_FLAGS, build_parser
from normstudy.sweeps.grid import SweepRun, expand, with_measurements
from normstudy.sweeps.one_machine import OneMachine
from normstudy.sweeps.run_status import estimate_cost, failure_path, log_path, runs_by_status
from normstudy.sweeps.slurm import queued_runs, run_on_slurm

__all__ = [
    "MEASUREMENT_FLAGS",
    "OneMachine",
    "SweepRun",
    "build_parser",
    "estimate_cost",
    "expand",
    "failure_path",
    "log_path",
    "queued_runs",
    "run_on_slurm",
    "runs_by_status",
    "with_measurements",
]

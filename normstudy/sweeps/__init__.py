"""Sweeps: the runs of a command line, their status, and the execution of the remaining ones, here or on Slurm."""

from normstudy.sweeps.command import parse_command, runs_of
from normstudy.sweeps.execution import execute_grid, execute_tuning
from normstudy.sweeps.flags import build_parser
from normstudy.sweeps.follow_log import follow_log
from normstudy.sweeps.grid import SweepRun, expand
from normstudy.sweeps.show_status import show_status

__all__ = [
    "SweepRun",
    "build_parser",
    "execute_grid",
    "execute_tuning",
    "expand",
    "follow_log",
    "parse_command",
    "runs_of",
    "show_status",
]

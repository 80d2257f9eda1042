"""Flags, errors that a user can cause, signals and progress bars, for all commands. It does not import torch."""

from normstudy.cli.commands import end_process, loading_modules, run_command
from normstudy.cli.errors import Busy, RunError, UsageError, describe_os_error, first_line
from normstudy.cli.flag_types import (
    BALANCES,
    argparse_type,
    boolean,
    canonical_name,
    count,
    device_name,
    number,
    path_name,
    path_names,
)
from normstudy.cli.launcher import (
    ONE_PROCESS,
    is_first_process,
    is_one_of_several,
    launcher_number,
    place_among_processes,
)
from normstudy.cli.notices import format_count, format_duration, notify
from normstudy.cli.outcome import OUTCOME_VARIABLE, Outcome, read_outcome, report_outcome
from normstudy.cli.parsers import Parser, add_flag, measurement_parser
from normstudy.cli.progress import progress_bar
from normstudy.cli.sharing import processes_sharing, sharing_environment
from normstudy.cli.signals import SafePoints, stops_at_safe_points

__all__ = [
    "BALANCES",
    "ONE_PROCESS",
    "OUTCOME_VARIABLE",
    "Busy",
    "Outcome",
    "Parser",
    "RunError",
    "SafePoints",
    "UsageError",
    "add_flag",
    "argparse_type",
    "boolean",
    "canonical_name",
    "count",
    "describe_os_error",
    "device_name",
    "end_process",
    "first_line",
    "format_count",
    "format_duration",
    "is_first_process",
    "is_one_of_several",
    "launcher_number",
    "loading_modules",
    "measurement_parser",
    "notify",
    "number",
    "path_name",
    "path_names",
    "place_among_processes",
    "processes_sharing",
    "progress_bar",
    "read_outcome",
    "report_outcome",
    "run_command",
    "sharing_environment",
    "stops_at_safe_points",
]

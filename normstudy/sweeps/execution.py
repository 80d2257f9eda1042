"""Execution of a sweep: of a grid of runs, or of tuning runs and then of the runs at the chosen rates."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normstudy.cli import format_count
from normstudy.sweeps.command import SweepCommand
from normstudy.sweeps.conclusion import conclude, print_plan
from normstudy.sweeps.failures import forget_failures
from normstudy.sweeps.grid import SweepRun
from normstudy.sweeps.last_sweep import note_sweep
from normstudy.sweeps.one_machine import OneMachine
from normstudy.sweeps.run_status import counts, remaining, runs_by_status, with_failed_runs
from normstudy.sweeps.slurm import Cluster
from normstudy.sweeps.slurm_queue import queued_runs
from normstudy.sweeps.tuning import combinations_of, read_tuning, tuned_runs_by_status, write_tuning


def execute_grid(runs: Sequence[SweepRun], command: SweepCommand) -> int:
    """Train and measure the remaining runs, or only list them with --dry_run; return the exit code."""
    options, retries = command.options, command.options["retries"]
    results_dir = runs[0].directory.path.parent
    by_status = runs_by_status(runs, retries, _queue(options, results_dir))
    by_status = with_failed_runs(by_status) if options["retry_failed"] else by_status
    ahead = remaining(by_status)
    print(f"{format_count(len(runs), 'run')} in {results_dir}: {counts(by_status)}", flush=True)
    if options["dry_run"]:
        print_plan(by_status, ahead)
        return 0
    _begin(command, ahead)
    if ahead or options["cluster"] == "slurm":
        _executor(options).work(runs, ahead)
    if not options["wait"]:
        return 0
    return conclude(runs_by_status(runs, retries), len(runs), results_dir)


def execute_tuning(runs: Sequence[SweepRun], command: SweepCommand) -> int:
    """Train the tuning runs, choose the rates, then train and measure the runs at these; return the exit code.

    runs: the runs of the grid at all rates.
    """
    options, retries = command.options, command.options["retries"]
    axis, rates = options["tune"]
    combinations = combinations_of(runs, axis)
    tunings = [read_tuning(combination) for combination in combinations]
    results_dir = combinations[0].results_dir
    queued = _queue(options, results_dir)
    by_status = tuned_runs_by_status(tunings, retries, queued)
    by_status = with_failed_runs(by_status) if options["retry_failed"] else by_status
    later = [run for tuning in tunings for run in tuning.later_runs()]
    words = f"tuning {axis} over {', '.join(f'{rate:g}' for rate in rates)} in {results_dir}: {counts(by_status)}"
    print(f"{words}; {format_count(len(later), 'run')} to follow at the chosen rates" if later else words, flush=True)
    if options["dry_run"]:
        print_plan(by_status, remaining(by_status) + later)
        return 0
    executor = _executor(options)
    tuning_runs = [run for combination in combinations for run in combination.tuning_runs()]
    unended = {run.directory.path for run in tuning_runs if not run.directory.summary.exists()}
    ahead = [run for run in remaining(by_status) if run.directory.path in unended]
    _begin(command, ahead)
    try:
        if ahead or any(run.directory.path.name in queued for run in tuning_runs):
            executor.work(tuning_runs, ahead)
    finally:
        tunings = [read_tuning(combination) for combination in combinations]
        write_tuning(results_dir / "tuning.csv", tunings)
    if not options["wait"] and not all(tuning.is_complete for tuning in tunings):
        print("run the same command again when the tuning runs have ended: it chooses the rates and queues the others")
        return 0
    for line in [line for tuning in tunings for line in tuning.remarks()]:
        print(line)
    chosen = [run for tuning in tunings for run in tuning.chosen_runs()]
    by_status = runs_by_status(chosen, retries, _queue(options, results_dir))
    by_status = with_failed_runs(by_status) if options["retry_failed"] else by_status
    if chosen:
        print(
            f"{format_count(len(chosen), 'run')} at the rates in {results_dir / 'tuning.csv'}: {counts(by_status)}",
            flush=True,
        )
        ahead = remaining(by_status)
        if (ahead or by_status["queued"]) and not executor.is_stopped:
            _begin(command, ahead)
            executor.work(chosen, ahead)
    if not options["wait"]:
        return 0
    by_status = tuned_runs_by_status(tunings, retries)
    total = sum(map(len, by_status.values())) + sum(len(tuning.later_runs()) for tuning in tunings)
    return conclude(by_status, total, results_dir)


def _begin(command: SweepCommand, ahead: Sequence[SweepRun]) -> None:
    """Note the sweep for --status if runs are ahead; with --retry_failed, count their attempts anew."""
    if ahead:
        note_sweep(command)
    if command.options["retry_failed"]:
        forget_failures(ahead)


def _executor(options: Mapping[str, Any]) -> OneMachine | Cluster:
    return Cluster(options) if options["cluster"] == "slurm" else OneMachine(options)


def _queue(options: Mapping[str, Any], results_dir: Path) -> dict[str, bool]:
    """Return the queued runs of a sweep on Slurm, {name: is running}, and of any other sweep none."""
    return (queued_runs(results_dir) or {}) if options["cluster"] == "slurm" else {}

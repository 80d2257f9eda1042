"""Train and measure every combination of the given values of main.py's flags, several runs at once.

    python run_sweep.py --arch=vgg,resnet-56 --norm_type=BatchNorm,GroupNorm --p_grouping=8,32 --seed=0,1,2

Run the same command again to continue and to see what is done. Only the child processes load torch.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normstudy.cli import UsageError, run_command
from normstudy.sweeps import (
    MEASUREMENT_FLAGS,
    Combination,
    OneMachine,
    SweepRun,
    build_parser,
    combinations_of,
    describe_repeats,
    estimate_cost,
    expand,
    failure_path,
    grid_with_rates,
    log_path,
    queued_runs,
    read_tuning,
    run_on_slurm,
    runs_by_status,
    tuned_runs_by_status,
    with_measurements,
    without_repeats,
    write_tuning,
)

OWN: tuple[str, ...] = (  # the sweep's own flags; all others are main.py's
    "preset",
    "dry_run",
    "tune",
    "cluster",
    "jobs",
    "processes",
    "gpus",
    "measure",
    *MEASUREMENT_FLAGS,
    "fail_fast",
    "retry_failed",
    "wait",
    "slurm_time",
    "slurm_partition",
    "slurm_account",
    "slurm_gpus",
    "slurm_cpus",
    "slurm_mem",
    "slurm_flags",
)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code: 0, or 1 if a run failed or is unfinished."""
    given = vars(build_parser().parse_args(argv))
    options = {name: given.pop(name, None) for name in OWN}
    if options["tune"]:
        if options["cluster"] == "slurm":
            raise UsageError("--tune needs --cluster=local, because the chosen rates are trained after the tuning runs")
        given = grid_with_rates(given, options["preset"], *options["tune"])
    runs, left_out = expand(given, options["preset"], options["processes"])
    runs, repeats = without_repeats(runs)
    runs = [with_measurements(run, options["measure"], options) for run in runs]
    for reason, number in left_out.items():
        print(f"left out: {number} combinations, because {reason}")
    if repeats:
        print(describe_repeats(repeats))
    if options["tune"]:
        return sweep_with_tuning(combinations_of(runs, options["tune"][0]), options)
    results_dir = runs[0].directory.path.parent
    queued = (queued_runs(results_dir) or {}) if options["cluster"] == "slurm" else {}
    by_status = with_retries(runs_by_status(runs, queued), options)
    ahead = remaining(by_status)
    print(f"{len(runs)} runs in {results_dir}: {counts(by_status)}", flush=True)
    if options["dry_run"]:
        return plan(by_status, ahead)
    if options["cluster"] == "slurm":
        run_on_slurm(runs, ahead, options, results_dir)
        if not options["wait"]:
            return 0
    elif ahead:
        OneMachine(options).work(runs, ahead)
    return conclude(runs_by_status(runs), len(runs), results_dir)


def sweep_with_tuning(combinations: Sequence[Combination], options: Mapping[str, Any]) -> int:
    """Train the tuning runs, choose the rates, then train and measure the runs at these; return the exit code."""
    axis, rates = options["tune"]
    tunings = [read_tuning(combination) for combination in combinations]
    results_dir = combinations[0].results_dir
    by_status = with_retries(tuned_runs_by_status(tunings), options)
    later = [run for tuning in tunings for run in tuning.later_runs()]
    words = f"tuning {axis} over {', '.join(f'{rate:g}' for rate in rates)} in {results_dir}: {counts(by_status)}"
    print(f"{words}; {len(later)} runs follow at the chosen rates" if later else words, flush=True)
    if options["dry_run"]:
        return plan(by_status, remaining(by_status) + later)
    machine = OneMachine(options)
    tuning_runs = [run for combination in combinations for run in combination.tuning_runs()]
    unended = {run.directory.path for run in tuning_runs if not run.directory.summary.exists()}
    ahead = [run for run in remaining(by_status) if run.directory.path in unended]
    try:
        if ahead:
            machine.work(tuning_runs, ahead)
    finally:
        tunings = [read_tuning(combination) for combination in combinations]
        write_tuning(results_dir / "tuning.csv", tunings)
    for line in [line for tuning in tunings for line in tuning.remarks()]:
        print(line)
    chosen = [run for tuning in tunings for run in tuning.chosen_runs()]
    by_status = with_retries(runs_by_status(chosen), options)
    if chosen:
        print(f"{len(chosen)} runs at the rates in {results_dir / 'tuning.csv'}: {counts(by_status)}", flush=True)
    if remaining(by_status) and not machine.worker.is_stopping:  # --fail_fast stops the worker
        machine.work(chosen, remaining(by_status))
    by_status = tuned_runs_by_status(tunings)
    total = sum(map(len, by_status.values())) + sum(len(tuning.later_runs()) for tuning in tunings)
    return conclude(by_status, total, results_dir)


def with_retries(by_status: dict[str, list[SweepRun]], options: Mapping[str, Any]) -> dict[str, list[SweepRun]]:
    """With --retry_failed, count the failed runs as unfinished."""
    if options["retry_failed"]:
        return by_status | {"unfinished": by_status["unfinished"] + by_status["failed"], "failed": []}
    return by_status


def remaining(by_status: Mapping[str, Sequence[SweepRun]]) -> list[SweepRun]:
    """Return the runs that are still to be trained or measured."""
    return [run for kind in ("to measure", "unfinished", "new") for run in by_status[kind]]


def counts(by_status: Mapping[str, Sequence[SweepRun]]) -> str:
    """Return the number of runs of each status as text: 2 done, 3 new."""
    return ", ".join(f"{len(found)} {name}" for name, found in by_status.items() if found)


def plan(by_status: Mapping[str, Sequence[SweepRun]], ahead: Sequence[SweepRun]) -> int:
    """List the runs with their status, and the time and disk space of the remaining ones; return exit code 0."""
    for name, found in by_status.items():
        for run in found:
            print(f"{name:>10}  {run.directory.path.name}")
    cost = estimate_cost(ahead, by_status["done"])
    if cost is None:
        print("time and disk space cannot be estimated: a network has no finished run in this sweep yet")
    elif ahead:
        training, measuring, size = cost
        print(
            f"{len(ahead)} remaining: about {duration(training)} of training and {duration(measuring)} of measuring, "
            f"one run after another, and {size / 1e9:.2g} GB on disk (estimated from the finished runs)"
        )
    return 0


def duration(seconds: float) -> str:
    """Format a duration: 3.2 hours, or 5 minutes."""
    return f"{seconds / 3600:.3g} hours" if seconds >= 5400 else f"{seconds / 60:.2g} minutes"


def conclude(by_status: Mapping[str, Sequence[SweepRun]], total: int, results_dir: Path) -> int:
    """Print how a sweep ended; return its exit code."""
    for run in by_status["failed"]:
        reason = failure_path(run).read_text(encoding="utf-8").strip()
        print(f"failed: {run.directory.path.name} ({reason}), see {log_path(run)}")
    done, failed = len(by_status["done"]), len(by_status["failed"])
    rest = total - done - failed
    words = [f"{done} of {total} runs are done", f"{failed} failed" * bool(failed), f"{rest} unfinished" * bool(rest)]
    print(", ".join(word for word in words if word))
    if done:
        folder = "" if results_dir == Path("results") else f" --results_dir={results_dir}"
        print(f"python run_report.py{folder} writes a report on {results_dir / 'results.csv'}")
    if failed:
        print("add --retry_failed to run the failed runs again")
    if rest:
        print("run the same command again to continue")
    return 1 if failed or rest else 0


if __name__ == "__main__":
    run_command(main)

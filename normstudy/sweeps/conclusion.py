"""The lines with which a dry run and a sweep end."""

from collections.abc import Sequence
from pathlib import Path

from normstudy.sweeps.durations import describe_duration
from normstudy.sweeps.estimates import estimate_cost
from normstudy.sweeps.failures import describe_failures, read_failures
from normstudy.sweeps.grid import SweepRun
from normstudy.sweeps.run_parts import log_path
from normstudy.sweeps.run_status import Statuses


def print_plan(by_status: Statuses, ahead: Sequence[SweepRun]) -> None:
    """List the runs with their status, and the time and disk space of the remaining ones, `ahead`."""
    for name, found in by_status.items():
        for run in found:
            print(f"{name:>10}  {run.directory.path.name}")
    cost = estimate_cost(ahead, by_status["done"])
    if cost is None:
        print("time and disk space cannot be estimated: a network has no finished run in this sweep yet")
    elif ahead:
        training, measuring, size = cost
        print(
            f"{len(ahead)} remaining: about {describe_duration(training)} of training and "
            f"{describe_duration(measuring)} of measuring, one run after another, and {size / 1e9:.2g} GB on disk "
            "(estimated from the finished runs)"
        )


def conclude(by_status: Statuses, total: int, results_dir: Path) -> int:
    """Print how a sweep of `total` runs ended; return its exit code, 1 if a run has failed or is unfinished."""
    for run in by_status["failed"]:
        print(f"failed: {run.directory.path.name} ({describe_failures(read_failures(run))}), see {log_path(run)}")
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

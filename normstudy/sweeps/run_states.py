"""What each run of a sweep is doing at this moment, wherever it is executed: read from files and Slurm's queue."""

import contextlib
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from normstudy.cli import RunError
from normstudy.storage import is_alive, read_json, read_owner
from normstudy.sweeps.command import SweepCommand, runs_of
from normstudy.sweeps.durations import describe_duration
from normstudy.sweeps.estimates import LAST_EPOCHS, Estimates, epoch_durations, estimate
from normstudy.sweeps.failures import describe_failures, read_failures
from normstudy.sweeps.grid import SweepRun
from normstudy.sweeps.run_parts import TRAINING, is_trained, log_path, missing_measurements, missing_parts, worker_path
from normstudy.sweeps.run_status import parts_ahead
from normstudy.sweeps.slurm_queue import queued_runs, submitted_runs
from normstudy.sweeps.tuning import combinations_of, read_tuning, runs_of_tunings

DONE, RUNNING, WAITING, FAILED = "done", "running", "waiting", "failed"
SILENT_SECONDS = 600.0  # a run on another machine whose log is older may have died


@dataclass(frozen=True)
class RunState:
    """The state of a run. number: its place in the sweep, from 1. detail: a few words about it.

    seconds_left: the estimated time that its missing parts take; those of unknown_parts are not included.
    """

    number: int
    run: SweepRun
    state: str
    detail: str = ""
    seconds_left: float = 0.0
    unknown_parts: tuple[str, ...] = ()


@dataclass(frozen=True)
class Queue:
    """Slurm's queue: {run: is running}, and the runs that were ever submitted. `is_known` is False without Slurm."""

    queued: Mapping[str, bool]
    submitted: frozenset[str] = frozenset()
    is_known: bool = False


def read_queue(results_dir: Path) -> Queue:
    """Read Slurm's queue if runs of the folder were submitted and this machine has Slurm."""
    submitted = frozenset(submitted_runs(results_dir))
    queued = queued_runs(results_dir) if submitted and shutil.which("squeue") else None
    return Queue(queued or {}, submitted, queued is not None)


def all_runs(command: SweepCommand) -> tuple[list[SweepRun], int]:
    """Return the runs of a command line in their order, and the number of runs that wait for the choice of a rate."""
    runs, _ = runs_of(command)
    if not command.options["tune"]:
        return runs, 0
    tunings = [read_tuning(combination) for combination in combinations_of(runs, command.options["tune"][0])]
    return runs_of_tunings(tunings), sum(len(tuning.later_runs()) for tuning in tunings)


def read_states(runs: Sequence[SweepRun], retries: int) -> tuple[list[RunState], Estimates]:
    """Return the state of each run, and the estimates of their times."""
    queue = read_queue(runs[0].directory.path.parent)
    found = [(run, state_of(run, retries, queue)) for run in runs]
    done = [run for run, (state, _) in found if state == DONE]
    estimates = estimate(done, [run for run, (state, _) in found if state == RUNNING])
    states = []
    for number, (run, (state, detail)) in enumerate(found, start=1):
        left = parts_left(run, retries, estimates) if state in (RUNNING, WAITING) else {}
        known = {part: seconds for part, seconds in left.items() if seconds is not None}
        if state == RUNNING and known:
            only = "" if len(known) == len(left) else f" of {next(iter(known))}"
            about = "at most" if TRAINING in known and run.config.stop_at_loss is not None else "about"
            detail += f", {about} {describe_duration(sum(known.values()))}{only} left"
        unknown = tuple(part for part in left if part not in known)
        states.append(RunState(number, run, state, detail, sum(known.values()), unknown))
    return states, estimates


def state_of(run: SweepRun, retries: int, queue: Queue) -> tuple[str, str]:
    """Return the state of one run, and a few words about it. retries: how often a failed part is tried again."""
    is_queued = queue.queued.get(run.directory.path.name)
    where = _where_it_runs(run, queue)
    failures = read_failures(run)
    if where is not None or is_queued:
        return RUNNING, _progress(run) + (where or "")
    if not missing_parts(run):
        return DONE, "diverged" if run.measurements and _has_diverged(run) else ""
    if is_queued is not None:
        return WAITING, "in the queue of Slurm" + (", to be measured" if is_trained(run) else "")
    if failures and not parts_ahead(run, retries):
        return FAILED, describe_failures(failures)
    words = [f"will be tried again: {describe_failures(failures)}"] if failures else []
    if is_trained(run):
        words.append(f"to be measured: {', '.join(missing_measurements(run))}")
    elif run.directory.path.exists():
        words.append(f"{len(epoch_durations(run))} of {run.config.epochs} epochs are saved")
    return WAITING, "; ".join(words)


def _where_it_runs(run: SweepRun, queue: Queue) -> str | None:
    """Return where a process works on a run, as text that is empty for this machine; None if none does."""
    for path in (run.directory.owner, worker_path(run)):
        owner = read_owner(path)
        alive = is_alive(owner) if owner else False
        if alive:
            return ""
        if owner and alive is None and not (queue.is_known and run.directory.path.name in queue.submitted):
            silence = time.time() - max(
                owner.since, *(_modified(path) for path in (log_path(run), run.directory.metrics))
            )
            silent = f", silent for {describe_duration(silence)}" if silence > SILENT_SECONDS else ""
            return f" on {owner.machine}{silent}"
    return None


def _modified(path: Path) -> float:
    with contextlib.suppress(OSError):
        return path.stat().st_mtime
    return 0.0


def _progress(run: SweepRun) -> str:
    """Return what is being done for a run: training with its number of epochs, or measuring."""
    if is_trained(run):
        return f"measuring {next(iter(missing_measurements(run)), '')}".rstrip()
    return f"training, {len(epoch_durations(run))} of {run.config.epochs} epochs done"


def _has_diverged(run: SweepRun) -> bool:
    with contextlib.suppress(RunError):
        return read_json(run.directory.summary).get("status") == "diverged"
    return False


def parts_left(run: SweepRun, retries: int, estimates: Estimates) -> dict[str, float | None]:
    """Return {missing part of a run: the estimated seconds that it takes, or None if they are unknown}."""
    left: dict[str, float | None] = {}
    for part in parts_ahead(run, retries):
        if part == TRAINING:
            durations = epoch_durations(run)
            each = statistics.mean(durations[-LAST_EPOCHS:]) if durations else estimates.epoch_seconds(run)
            left[part] = None if each is None else each * (run.config.epochs - len(durations))
        else:
            seconds = estimates.measuring_seconds(run)
            left[part] = None if seconds is None else seconds / len(run.measurements)
    return left

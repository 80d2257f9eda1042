"""The growing log of one run: run_sweep.py --follow. It only reads, so that stopping it leaves the sweep alone."""

import contextlib
import sys
import time
from collections.abc import Sequence
from typing import TextIO

from normstudy.cli import UsageError
from normstudy.sweeps.command import SweepCommand
from normstudy.sweeps.grid import SweepRun
from normstudy.sweeps.last_sweep import read_last_sweep, sweep_to_look_at
from normstudy.sweeps.run_parts import log_path
from normstudy.sweeps.run_states import DONE, FAILED, RUNNING, all_runs, read_queue, state_of

LOOK_SECONDS = 0.5  # interval at which the log is read
STATE_SECONDS = 3.0  # interval at which the state of the run is read


def follow_log(command: SweepCommand) -> int:
    """Print the log of the run that --follow names, as it grows, until the run ends; return 0.

    Raises UsageError if it names no run of the sweep, or several.
    """
    wanted = command.options["follow"]
    command = sweep_to_look_at(command)
    runs, _ = all_runs(command)
    run, retries = find_run(runs, wanted), command.options["retries"]
    with contextlib.ExitStack() as stack:
        log: TextIO | None = None
        state = None
        try:
            while state is None:
                state = ended_state(run, retries)  # before the log is read, so that its end is not missed
                deadline = time.monotonic() + STATE_SECONDS
                while True:
                    if log is None and log_path(run).exists():
                        log = stack.enter_context(open(log_path(run), encoding="utf-8", errors="replace"))
                    if log is not None:
                        sys.stdout.write(log.read())
                        sys.stdout.flush()
                    if state is not None or time.monotonic() > deadline:
                        break
                    time.sleep(LOOK_SECONDS)
        except KeyboardInterrupt as stop:
            raise type(stop)("the sweep is not affected") from None
    print(f"-- {run.directory.path.name}: {state}")
    return 0


def find_run(runs: Sequence[SweepRun], wanted: str) -> SweepRun:
    """Return the run with this number in --status or this beginning of its name. Raises UsageError otherwise."""
    if wanted.isdecimal():
        if 1 <= int(wanted) <= len(runs):
            return runs[int(wanted) - 1]
        raise UsageError(f"--follow={wanted}: the sweep has runs 1 to {len(runs)}, which --status lists")
    names = [run.directory.path.name for run in runs]
    found = [run for run, name in zip(runs, names, strict=True) if name.startswith(wanted)]
    exact = [run for run, name in zip(runs, names, strict=True) if name == wanted]
    if len(exact or found) != 1:
        number = f"{len(found)} runs of the sweep begin" if found else "no run of the sweep begins"
        raise UsageError(f"--follow={wanted}: {number} with it; give more of the name, or its number in --status")
    return (exact or found)[0]


def ended_state(run: SweepRun, retries: int) -> str | None:
    """Return how a run ended, or that nothing works on it; None as long as its log may grow."""
    results_dir = run.directory.path.parent
    queue = read_queue(results_dir)
    state, detail = state_of(run, retries, queue)
    if state in (DONE, FAILED):
        return f"{state} ({detail})" if detail else state
    last = read_last_sweep(results_dir)
    is_sweep_running = last is not None and last.is_running is not False
    if state == RUNNING or run.directory.path.name in queue.queued or is_sweep_running:
        return None
    return "it is waiting, and no sweep is running"

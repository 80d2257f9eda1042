"""Execution of a sweep's runs in child processes, main.py and the measurements, whose output goes to the run's log."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from normstudy.cli import OUTCOME_VARIABLE, read_outcome
from normstudy.storage import write_owner
from normstudy.sweeps.durations import describe_duration
from normstudy.sweeps.endings import Ending, count_memory_kills
from normstudy.sweeps.failures import note_failure, note_success
from normstudy.sweeps.grid import SweepRun
from normstudy.sweeps.run_parts import TRAINING, log_path, missing_measurements, worker_path
from normstudy.sweeps.run_status import parts_ahead

PROJECT = Path(__file__).resolve().parents[2]
DONE, FAILED, STOPPED, ELSEWHERE = "done", "failed", "stopped", "elsewhere"
SAVING_SECONDS = 600.0  # time to save the state after --run_timeout; a process that takes longer is killed


class Result(NamedTuple):
    """How the execution of a run ended.

    kind: DONE, FAILED, STOPPED, or ELSEWHERE if another process works on the run. reason: why it failed. is_final:
    whether a failed run is to be left as it is.
    """

    kind: str
    reason: str = ""
    is_final: bool = True


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if "SLURM_CPUS_PER_TASK" in os.environ:
        return int(os.environ["SLURM_CPUS_PER_TASK"])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_environment(processes: int) -> dict[str, str]:
    """Return the environment variables that divide the cores among `processes`; none if OMP_NUM_THREADS is set."""
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, available_cores() // processes))}


class Worker:
    """Executes runs; several threads may share one Worker.

    options: the sweep's own flags. is_detached: whether the child processes are shielded from signals of the terminal,
    which then reach only the sweep.
    """

    def __init__(self, options: Mapping[str, Any], is_detached: bool = True) -> None:
        self.options, self.is_detached = options, is_detached
        self.lock = threading.RLock()  # reentrant, because a signal handler also acquires it
        self.children: set[subprocess.Popen[bytes]] = set()
        self.is_stopping = False

    def stop(self) -> None:
        """Start no further runs, and ask the running ones to save their state and end."""
        with self.lock:
            self.is_stopping = True
            for child in self.children:
                child.terminate()

    def work_off(
        self,
        run: SweepRun,
        environment: Mapping[str, str] | None = None,
        has_training: bool = True,
        has_measuring: bool = True,
        seconds: float = 0.0,
    ) -> Result:
        """Do the training and the measurements that a run lacks, or only one of both.

        seconds: the part of --run_timeout that is used up already.
        """
        ahead = parts_ahead(run, self.options["retries"])
        if not ahead:
            return Result(DONE)
        limit = self.options["run_timeout"]
        deadline = None if limit is None else time.monotonic() + limit - seconds
        try:
            with _noted(run):
                if has_training:  # a trained run is checked, and its missing pictures are drawn
                    result = self.execute(TRAINING, ["main.py", *run.flags], run, environment or {}, deadline)
                    if result.kind != DONE:
                        return result
                if not has_measuring:
                    return Result(DONE)
                return self.measure(run, ahead, environment or {}, deadline)
        except OSError as error:
            return Result(FAILED, f"{error.strerror} ({error.filename})")

    def measure(
        self, run: SweepRun, ahead: Sequence[str], environment: Mapping[str, str], deadline: float | None
    ) -> Result:
        """Make those measurements in `ahead` that a run lacks. After one that fails, the others are still made."""
        failed: list[Result] = []
        for name in missing_measurements(run):
            is_late = bool(failed) and deadline is not None and time.monotonic() > deadline
            if name in ahead and not is_late:
                result = self.execute(name, run.measurements[name], run, environment, deadline)
                if result.kind == FAILED:
                    failed.append(result)
                elif result.kind != DONE:
                    return result
        if failed:
            return Result(FAILED, "; ".join(each.reason for each in failed), all(each.is_final for each in failed))
        return Result(DONE)

    def execute(
        self, part: str, command: Sequence[str], run: SweepRun, environment: Mapping[str, str], deadline: float | None
    ) -> Result:
        """Execute one part of a run with its command, and note a failure."""
        ending = self.call(command, run, environment, deadline)
        if ending.code == 0:
            note_success(run, part)
            return Result(DONE)
        if self.is_stopping or (ending.is_stopped and not ending.has_timed_out):
            return Result(STOPPED)
        if ending.is_busy:
            return Result(ELSEWHERE)
        on_slurm = self.options["cluster"] == "slurm"
        reason = ending.reason(
            "raise --slurm_mem or lower --batch_size" if on_slurm else "lower --jobs or --batch_size"
        )
        if ending.has_timed_out:
            reason = f"stopped after {describe_duration(self.options['run_timeout'])} by --run_timeout"
        failure = note_failure(run, part, reason, ending.is_certain)
        return Result(FAILED, reason, failure.is_final(self.options["retries"]))

    def call(
        self, command: Sequence[str], run: SweepRun, environment: Mapping[str, str], deadline: float | None
    ) -> Ending:
        """Run a script to its end and append its output to the run's log; return code 99 if the sweep is stopping.

        A script that runs past the deadline, a time.monotonic(), is stopped, and then saves its state.
        """
        with (
            open(log_path(run), "a", encoding="utf-8") as log,
            tempfile.TemporaryDirectory(prefix="normstudy-", ignore_cleanup_errors=True) as folder,
        ):
            print(f"$ python {shlex.join(command)}", file=log, flush=True)
            outcome = Path(folder) / "outcome.json"
            memory_kills = count_memory_kills()
            with self.lock:
                if self.is_stopping:
                    return Ending(99)
                child = subprocess.Popen(
                    [sys.executable, *self.arguments(command)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **environment, OUTCOME_VARIABLE: str(outcome)},
                    start_new_session=self.is_detached,
                )
                self.children.add(child)
            try:
                child.wait(None if deadline is None else max(0.0, deadline - time.monotonic()))
                has_timed_out = False
            except subprocess.TimeoutExpired:
                has_timed_out = True
                self.stop_child(child)
            with self.lock:
                self.children.discard(child)
            return Ending(child.returncode, read_outcome(outcome), count_memory_kills() > memory_kills, has_timed_out)

    def arguments(self, command: Sequence[str]) -> list[str]:
        """Return the arguments of Python that run a script, a training with --processes through torchrun."""
        script, *flags = command
        argv = [str(PROJECT / script), *flags]
        processes = self.options["processes"]
        if script != "main.py" or processes == 1:
            return argv
        torchrun = Path(__file__).with_name("torchrun.py")
        return [str(torchrun), "--standalone", f"--nproc_per_node={processes}", *argv]

    def stop_child(self, child: subprocess.Popen[bytes]) -> None:
        """Ask a process to save its state and end. One that does not end is killed."""
        child.terminate()
        try:
            child.wait(SAVING_SECONDS)
        except subprocess.TimeoutExpired:
            if self.is_detached:  # with the processes that it started
                os.killpg(child.pid, signal.SIGKILL)
            else:
                child.kill()
            child.wait()

    def wait(self) -> None:
        """Wait until the child processes have ended, without reaping them, so that a signal handler may call it."""
        for child in list(self.children):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)


@contextlib.contextmanager
def _noted(run: SweepRun) -> Iterator[None]:
    """Keep a note of this process next to the run's log during a `with` block, for --status. Raises OSError."""
    log_path(run).parent.mkdir(parents=True, exist_ok=True)
    write_owner(worker_path(run))
    try:
        yield
    finally:
        worker_path(run).unlink(missing_ok=True)

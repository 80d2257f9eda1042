"""Execution of a sweep's runs in child processes, main.py and the measurements, whose output goes to the run's log."""

import contextlib
import os
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from normstudy.cli import OUTCOME_VARIABLE, read_outcome
from normstudy.storage import write_bytes
from normstudy.sweeps.endings import Ending, count_memory_kills
from normstudy.sweeps.grid import SweepRun
from normstudy.sweeps.run_status import failure_path, is_done, log_path, missing_measurements

PROJECT = Path(__file__).resolve().parents[2]
DONE, FAILED, STOPPED, ELSEWHERE = "done", "failed", "stopped", "elsewhere"


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

    def work_off(self, run: SweepRun, environment: Mapping[str, str] | None = None) -> tuple[str, str]:
        """Do the training and the measurements that a run lacks.

        Returns (DONE, ""), (FAILED, reason), (STOPPED, ""), or (ELSEWHERE, "") if another process is working on it.
        """
        try:
            if is_done(run):
                return DONE, ""
            log_path(run).parent.mkdir(parents=True, exist_ok=True)
            failure_path(run).unlink(missing_ok=True)
            commands = [["main.py", *run.flags]]
            while commands:
                ending = self.call(commands.pop(0), run, environment or {})
                if ending.code == 0:
                    commands = self.measuring_commands(run)
                elif self.is_stopping or ending.is_stopped:
                    return STOPPED, ""
                elif ending.is_busy:
                    return ELSEWHERE, ""
                else:
                    write_bytes(failure_path(run), f"{ending.reason}\n".encode())
                    return FAILED, ending.reason
            return DONE, ""
        except OSError as error:
            return FAILED, f"{error.strerror} ({error.filename})"

    def measuring_commands(self, run: SweepRun) -> list[list[str]]:
        """Return the commands for the measurements that a run lacks."""
        return [list(run.measurements[name]) for name in missing_measurements(run)]

    def call(self, command: Sequence[str], run: SweepRun, environment: Mapping[str, str]) -> Ending:
        """Run a script to its end and append its output to the run's log; return code 99 if the sweep is stopping."""
        script, *flags = command
        argv = [str(PROJECT / script), *flags]
        processes = self.options["processes"]
        if script == "main.py" and processes > 1:
            argv = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}", *argv]
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
                    [sys.executable, *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env={**os.environ, "PYTHONUNBUFFERED": "1", **environment, OUTCOME_VARIABLE: str(outcome)},
                    start_new_session=self.is_detached,
                )
                self.children.add(child)
            code = child.wait()
            with self.lock:
                self.children.discard(child)
            return Ending(code, read_outcome(outcome), count_memory_kills() > memory_kills)

    def wait(self) -> None:
        """Wait until the child processes have ended, without reaping them, so that a signal handler may call it."""
        for child in list(self.children):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

"""The processes that work off the runs of a sweep: main.py and the measurements, whose output goes to the run's log."""

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
from normstudy.storage import MEASUREMENTS, write_bytes
from normstudy.sweeps.endings import Ending, count_memory_kills
from normstudy.sweeps.flags import MEASUREMENT_FLAGS
from normstudy.sweeps.grid import SweepRun
from normstudy.sweeps.standings import failure_path, is_done, log_path, missing_measurements

PROJECT = Path(__file__).resolve().parents[2]
DONE, FAILED, STOPPED, ELSEWHERE = "done", "failed", "stopped", "elsewhere"


def available_cores() -> int:
    """How many cores this process may use."""
    if "SLURM_CPUS_PER_TASK" in os.environ:
        return int(os.environ["SLURM_CPUS_PER_TASK"])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def thread_environment(processes: int) -> dict[str, str]:
    """The environment in which so many processes share the cores, unless the user's says how many threads to use."""
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, available_cores() // processes))}


class Worker:
    """Works off runs; several threads may share one.

    options: the flags of the sweep itself. is_detached: whether the children are kept from the signals of the terminal,
    which then reach the sweep alone.
    """

    def __init__(self, options: Mapping[str, Any], is_detached: bool = True) -> None:
        self.options, self.is_detached = options, is_detached
        self.lock = threading.RLock()  # reentrant, for a signal handler takes it as well
        self.children: set[subprocess.Popen[bytes]] = set()
        self.is_stopping = False

    def stop(self) -> None:
        """Begin no further run, and ask those at work to save their state and end."""
        with self.lock:
            self.is_stopping = True
            for child in self.children:
                child.terminate()

    def work_off(self, run: SweepRun, environment: Mapping[str, str] | None = None) -> tuple[str, str]:
        """Train and measure what a run lacks.

        Returns (DONE, ""), (FAILED, why), (STOPPED, ""), or (ELSEWHERE, "") if another process works on the run.
        """
        try:
            if is_done(run, self.options["measure"]):
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
        """The commands that make the measurements which a run lacks."""
        missing = missing_measurements(run, self.options["measure"])
        return [
            [f"run_{name}.py", str(run.directory.path), *shlex.split(self.options[flags] or getattr(run, flags))]
            for name, flags in zip(MEASUREMENTS, MEASUREMENT_FLAGS, strict=True)
            if name in missing
        ]

    def call(self, command: Sequence[str], run: SweepRun, environment: Mapping[str, str]) -> Ending:
        """Run a script to its end, its output added to the run's log; exit code 99 if the sweep is stopping already."""
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
        """Return when the children have ended. A signal handler may call it, for it reaps none."""
        for child in list(self.children):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

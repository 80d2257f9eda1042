"""What works off the runs of a sweep: main.py and the measurements, each a process with its words in the run's log."""

import contextlib
import os
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

from normstudy.storage import BUSY, write_bytes
from normstudy.sweeps.flags import MEASUREMENTS, MEASURING
from normstudy.sweeps.standings import failure_path, is_done, log_path, missing_measurements

PROJECT = Path(__file__).resolve().parents[2]
DONE, FAILED, STOPPED, ELSEWHERE = "done", "failed", "stopped", "elsewhere"


def available_cores():
    """Cores that this process may use."""
    if "SLURM_CPUS_PER_TASK" in os.environ:
        return int(os.environ["SLURM_CPUS_PER_TASK"])
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def thread_environment(processes):
    """The environment in which so many processes share the cores, unless the user's says how many threads there are."""
    return {} if "OMP_NUM_THREADS" in os.environ else {"OMP_NUM_THREADS": str(max(1, available_cores() // processes))}


def last_line(path):
    """The last line of a log, or nothing."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 1000))
        lines = file.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else ""
    return ""


class Worker:
    """Works off runs; several threads may share one. `own` are the flags of the sweep itself.

    is_detached: whether the children are kept from the signals of the terminal, which then reach the sweep alone.
    """

    def __init__(self, own, is_detached=True):
        self.own, self.is_detached = own, is_detached
        self.lock = threading.RLock()  # a signal handler may take it, too
        self.children = set()
        self.is_stopping = False

    def stop(self):
        """No further run begins, and those that run are asked to save their state and end."""
        with self.lock:
            self.is_stopping = True
            for child in self.children:
                child.terminate()

    def work_off(self, run, environment=None):
        """(DONE, ""), (FAILED, why), (STOPPED, ""), or (ELSEWHERE, "") where another process works on the run."""
        try:
            if is_done(run, self.own["measure"]):
                return DONE, ""
            log_path(run).parent.mkdir(parents=True, exist_ok=True)
            failure_path(run).unlink(missing_ok=True)
            commands = [["main.py", *run.flags]]
            while commands:
                code = self.call(commands.pop(0), run, environment or {})
                if (self.is_stopping and code != 0) or code in (99, 130, -signal.SIGTERM):
                    return STOPPED, ""
                if code:
                    return self.failure(run, code)
                commands = [
                    [f"run_{name}.py", str(run.directory.path), *shlex.split(self.own[flags] or getattr(run, flags))]
                    for name, flags in zip(MEASUREMENTS, MEASURING, strict=True)
                    if name in missing_measurements(run, self.own["measure"])
                ]
            return DONE, ""
        except OSError as error:
            return FAILED, f"{error.strerror} ({error.filename})"

    def failure(self, run, code):
        """(FAILED, why), noted beside the log; or (ELSEWHERE, "")."""
        lines = log_path(run).read_text(encoding="utf-8", errors="replace").strip().splitlines()
        lines = lines[max(index for index, line in enumerate(lines) if line.startswith("$ ")) + 1 :]
        errors = [line for line in lines if ": error: " in line or line.startswith("left out: ")] or lines
        reason = errors[-1] if errors else f"exit code {code}"
        if BUSY in reason:
            return ELSEWHERE, ""
        write_bytes(failure_path(run), f"{reason}\n".encode())
        return FAILED, reason

    def call(self, command, run, environment):
        """The exit code of a script, its words added to the run's log; 99 where the sweep is stopping already."""
        script, *flags = command
        argv = [PROJECT / script, *flags]
        if script == "main.py" and self.own["processes"] > 1:
            argv = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={self.own['processes']}", *argv]
        with open(log_path(run), "a", encoding="utf-8") as log:
            print(f"$ python {shlex.join(command)}", file=log, flush=True)
            with self.lock:
                if self.is_stopping:
                    return 99
                child = subprocess.Popen(
                    [sys.executable, *argv],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=os.environ | {"PYTHONUNBUFFERED": "1"} | environment,
                    start_new_session=self.is_detached,
                )
                self.children.add(child)
            code = child.wait()
            with self.lock:
                self.children.discard(child)
        return code

    def wait(self):
        """Returns when the children have ended. A signal handler may call it, for it reaps none."""
        for child in list(self.children):
            with contextlib.suppress(ChildProcessError):
                os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)

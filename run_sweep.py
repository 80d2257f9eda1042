"""Train and measure every combination of the values that flags of main.py are given, several at once.

    python run_sweep.py --arch=vgg,resnet-56 --norm_type=BatchNorm,GroupNorm --p_grouping=8,32 --seed=0,1,2

The same command goes on where it was stopped, and says what is done. Needs no torch itself: its children do.
"""

import concurrent.futures
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
from pathlib import Path

from config import progress_bar
from errors import run_command, stops_at_safe_points
from files import write_bytes
from sweeps import build_parser, estimate, expand, failure_of, log_of, missing_measurements, standings

HERE = Path(__file__).resolve().parent
OWN = ("preset", "dry_run", "jobs", "gpus", "measure", "hessian_flags", "class_similarity_flags", "fail_fast")
OWN += ("retry_failed",)
STOPPED = (99, 130, -signal.SIGTERM)


def main(argv=None):
    """Runs one command line and returns its exit code: 0, or 1 where a run failed."""
    given = vars(build_parser().parse_args(argv))
    own = {name: given.pop(name, None) for name in OWN}
    runs, left_out = expand(given, own["preset"])
    for reason, number in left_out.items():
        print(f"left out: {number} combinations, because {reason}")
    measurements = own["measure"] if isinstance(own["measure"], tuple) else tuple(own["measure"].split(","))
    standing = standings(runs, measurements)
    if own["retry_failed"]:
        standing["begun"] += standing.pop("failed")
        standing["failed"] = []
    counts = ", ".join(f"{len(found)} {name}" for name, found in standing.items() if found)
    print(f"{len(runs)} runs in {runs[0].directory.path.parent}: {counts}")
    ahead = standing["to measure"] + standing["begun"] + standing["new"]
    if own["dry_run"]:
        return plan(standing, ahead)
    sweep = Sweep(own, measurements, len(runs), len(standing["failed"]))
    sweep.work(ahead)
    failed = standing["failed"] + sweep.failed
    for run in failed:
        print(f"failed: {run.directory.path.name} ({failure_of(run).read_text().strip()}), see {log_of(run)}")
    done = len(runs) - len(failed) - len(sweep.stopped)
    print(f"{done} of {len(runs)} runs are done" + (f", {len(failed)} failed" if failed else ""))
    if standing["failed"]:
        print("--retry_failed runs again what failed before")
    return 1 if failed else 0


def plan(standing, ahead):
    """Lists the runs with their standing and what they would take."""
    for name, found in standing.items():
        for run in found:
            print(f"{name:>10}  {run.directory.path.name}")
    seconds, size = estimate(ahead, standing["done"]) if ahead else (0.0, 0)
    if seconds is None:
        print("time and disk cannot be estimated: no finished run of each network is there to judge by")
    else:
        print(f"training takes about {seconds / 3600:.2g} hours one after another, and {size / 1e9:.2g} GB")
    return 0


class Sweep:
    """Works off runs, `jobs` at once; each is a process of main.py, then of its measurements, with a log of its own."""

    def __init__(self, own, measurements, total, done_before):
        self.own, self.measurements, self.total = own, measurements, total
        self.slots = queue.SimpleQueue()
        for slot in range(own["jobs"]):
            self.slots.put(slot)
        self.lock = threading.Lock()
        self.children, self.failed, self.stopped = set(), [], []
        self.is_stopping = False

    def work(self, runs):
        """Returns when all are done; a signal stops the children, which save their state, and is then raised."""
        with (
            concurrent.futures.ThreadPoolExecutor(self.own["jobs"]) as pool,
            progress_bar(self.total, "sweep", self.total - len(runs), unit="run") as bar,
        ):
            ahead = {pool.submit(self.work_off, run): run for run in runs}
            try:
                with stops_at_safe_points() as points:
                    while ahead:
                        bar.set_postfix_str(f"{len(self.children)} running, {len(self.failed)} failed")
                        ended, _ = concurrent.futures.wait(ahead, 0.5, concurrent.futures.FIRST_COMPLETED)
                        for future in ended:
                            self.report(ahead.pop(future), future.result(), bar)
                        points.check()
                        if self.failed and self.own["fail_fast"]:
                            self.stop()
            except KeyboardInterrupt as stop:
                self.stop()
                raise type(stop)("every run keeps its state; the same command goes on") from None

    def stop(self):
        """No further run begins, and those that run are asked to save their state and end."""
        with self.lock:
            self.is_stopping = True
            for child in self.children:
                child.terminate()

    def report(self, run, reason, bar):
        if reason == "":
            bar.write(f"done: {run.directory.path.name}")
        elif reason is not None:
            bar.write(f"failed: {run.directory.path.name}: {reason} (see {log_of(run)})")
            self.failed.append(run)
        else:
            self.stopped.append(run)
        bar.update(reason is not None)

    def work_off(self, run):
        """ "" where a run is trained and measured, else why it failed; None where it was stopped."""
        slot = self.slots.get()
        try:
            log_of(run).parent.mkdir(parents=True, exist_ok=True)
            commands = [["main.py", *run.flags]]
            while commands:
                code = self.call(commands.pop(0), run, slot)
                if code is None or (code in STOPPED and self.is_stopping):
                    return None
                if code:
                    reason = _last_line(log_of(run)) or f"exit code {code}"
                    write_bytes(failure_of(run), f"{reason}\n".encode())
                    return reason
                commands = [
                    [f"run_{name}.py", str(run.directory.path), *shlex.split(self.own[f"{name}_flags"])]
                    for name in missing_measurements(run, self.measurements)
                ]
            failure_of(run).unlink(missing_ok=True)
            return ""
        except OSError as error:
            return f"{error.strerror} ({error.filename})"
        finally:
            self.slots.put(slot)

    def call(self, command, run, slot):
        """The exit code of a script, its words added to the run's log; None where the sweep is stopping."""
        environment = os.environ | {"PYTHONUNBUFFERED": "1"}
        environment.setdefault("OMP_NUM_THREADS", str(max(1, cores() // self.own["jobs"])))
        if self.own["gpus"]:
            environment["CUDA_VISIBLE_DEVICES"] = self.own["gpus"][slot % len(self.own["gpus"])]
        with open(log_of(run), "a", encoding="utf-8") as log:
            print(f"$ python {shlex.join(command)}", file=log, flush=True)
            with self.lock:
                if self.is_stopping:
                    return None
                child = subprocess.Popen(
                    [sys.executable, HERE / command[0], *command[1:]],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    env=environment,
                    start_new_session=True,  # Ctrl-C reaches the sweep alone, which asks its children to end
                )
                self.children.add(child)
            code = child.wait()
            with self.lock:
                self.children.discard(child)
        return code


def cores():
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def _last_line(path):
    lines = path.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    return lines[-1] if lines and not lines[-1].startswith("$") else ""


if __name__ == "__main__":
    run_command(main)

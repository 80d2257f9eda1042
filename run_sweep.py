"""Train and measure every combination of the values that flags of main.py are given, several at once.

    python run_sweep.py --arch=vgg,resnet-56 --norm_type=BatchNorm,GroupNorm --p_grouping=8,32 --seed=0,1,2

The same command goes on where it was stopped, and says what is done. Needs no torch itself: its children do.
"""

from errors import run_command, start_script, stops_at_safe_points

if __name__ == "__main__":
    start_script()

import concurrent.futures
import contextlib
import queue
import shutil
import sys
import time
from pathlib import Path

import slurm
from config import progress_bar
from sweeps import build_parser, estimate, expand, failure_of, log_of, standings
from workers import DONE, ELSEWHERE, FAILED, STOPPED, Worker, last_line, threads

OWN = ("preset", "dry_run", "cluster", "jobs", "processes", "gpus", "measure", "hessian_flags")
OWN += ("class_similarity_flags", "fail_fast", "retry_failed", "wait")
OWN += tuple(f"slurm_{name}" for name in ("time", "partition", "account", "gpus", "cpus", "mem", "flags"))
MOST_LINES = 12  # of runs at work that are shown one by one
LOOK_SECONDS = 3.0  # between looks at what jobs on a cluster have done


def main(argv=None):
    """Runs one command line and returns its exit code: 0, or 1 where a run failed or was left unfinished."""
    given = vars(build_parser().parse_args(argv))
    own = {name: given.pop(name, None) for name in OWN}
    runs, left_out = expand(given, own["preset"], own["processes"])
    for reason, number in left_out.items():
        print(f"left out: {number} combinations, because {reason}")
    results_dir = runs[0].directory.path.parent
    queued = (slurm.queue(results_dir) or {}) if own["cluster"] == "slurm" else {}
    standing = standings(runs, own["measure"], queued)
    if own["retry_failed"]:
        standing["begun"] += standing.pop("failed")
        standing["failed"] = []
    counts = ", ".join(f"{len(found)} {name}" for name, found in standing.items() if found)
    print(f"{len(runs)} runs in {results_dir}: {counts}", flush=True)
    ahead = standing["to measure"] + standing["begun"] + standing["new"]
    if own["dry_run"]:
        return plan(standing, ahead, own["measure"])
    if own["cluster"] == "slurm":
        on_slurm(runs, ahead, own, results_dir)
        if not own["wait"]:
            return 0
    elif ahead:
        OneMachine(own).work(runs, ahead)
    return conclude(standings(runs, own["measure"]), len(runs), results_dir)


def plan(standing, ahead, measurements):
    """Lists the runs with their standing and what they would take."""
    for name, found in standing.items():
        for run in found:
            print(f"{name:>10}  {run.directory.path.name}")
    found = estimate(ahead, standing["done"], measurements)
    if found is None:
        print("time and disk cannot be estimated: no finished run of each network is there to judge by")
    elif ahead:
        training, measuring, size = found
        print(
            f"{len(ahead)} runs take about {duration(training)} of training and {duration(measuring)} of measuring, "
            f"one after another, and {size / 1e9:.2g} GB, judged by the finished ones"
        )
    return 0


def status_line(position):
    """A line below the bar, on a terminal."""
    from tqdm import tqdm

    return tqdm(total=0, position=position, bar_format="{desc}", leave=False, disable=not sys.stderr.isatty())


def duration(seconds):
    """3.2 hours, or 5 minutes."""
    return f"{seconds / 3600:.3g} hours" if seconds >= 5400 else f"{seconds / 60:.2g} minutes"


def conclude(standing, total, results_dir):
    """Says how a sweep ended, and returns its exit code."""
    for run in standing["failed"]:
        reason = failure_of(run).read_text(encoding="utf-8").strip()
        print(f"failed: {run.directory.path.name} ({reason}), see {log_of(run)}")
    done, failed = len(standing["done"]), len(standing["failed"])
    rest = total - done - failed
    words = [f"{done} of {total} runs are done", f"{failed} failed" * bool(failed), f"{rest} unfinished" * bool(rest)]
    print(", ".join(word for word in words if word))
    if done:
        folder = "" if results_dir == Path("results") else f" --results_dir={results_dir}"
        print(f"python run_report.py{folder} makes a page of {results_dir / 'results.csv'}")
    if failed:
        print("--retry_failed runs again what failed before")
    if rest:
        print("the same command goes on")
    return 1 if failed or rest else 0


class OneMachine:
    """Works off runs on this machine, --jobs at once."""

    def __init__(self, own):
        self.own = own
        self.jobs = own["jobs"] or 1
        self.worker = Worker(own)
        self.counts = dict.fromkeys((DONE, FAILED, STOPPED, ELSEWHERE), 0)
        self.running = {}  # {slot: run}
        self.slots = queue.SimpleQueue()
        for slot in range(self.jobs):
            self.slots.put(slot)

    def work(self, runs, ahead):
        """Returns when all are done; a signal stops the children, which save their state, and is then raised."""
        with (
            concurrent.futures.ThreadPoolExecutor(self.jobs) as pool,
            progress_bar(len(runs), "sweep", len(runs) - len(ahead), unit="run") as bar,
            contextlib.ExitStack() as stack,
        ):
            lines = [stack.enter_context(status_line(slot + 1)) for slot in range(min(self.jobs, MOST_LINES))]
            futures = {pool.submit(self.work_off, run): run for run in ahead}
            try:
                with stops_at_safe_points() as points:
                    while futures:
                        bar.set_postfix_str(f"{len(self.worker.children)} running, {self.counts[FAILED]} failed")
                        self.show(lines)
                        ended, _ = concurrent.futures.wait(futures, 0.5, concurrent.futures.FIRST_COMPLETED)
                        for future in ended:
                            self.report(futures.pop(future), *future.result(), bar)
                        points.check()
                        if self.counts[FAILED] and self.own["fail_fast"]:
                            self.worker.stop()
            except KeyboardInterrupt as stop:
                self.worker.stop()
                raise type(stop)("every run keeps its state; the same command goes on") from None

    def show(self, lines):
        """What each slot is at: its run, and the last words of its log."""
        width = shutil.get_terminal_size().columns - 1
        for slot, line in enumerate(lines):
            run = self.running.get(slot)
            words = "  nothing left to begin"
            if run:
                name = run.directory.path.name
                words = f"  {name}: {last_line(log_of(run)).removeprefix(f'{name} ')}"
            line.set_description_str(words[:width])

    def report(self, run, outcome, reason, bar):
        self.counts[outcome] += 1
        name = run.directory.path.name
        words = {
            DONE: f"done: {name}",
            FAILED: f"failed: {name}: {reason} (see {log_of(run)})",
            ELSEWHERE: f"another process works on {name}",
        }
        if outcome in words:
            bar.write(words[outcome])
        bar.update(outcome in (DONE, FAILED))

    def work_off(self, run):
        slot = self.slots.get()
        self.running[slot] = run
        environment = threads(self.jobs * self.own["processes"])
        if self.own["gpus"]:
            each = self.own["processes"]
            chosen = [self.own["gpus"][(slot * each + index) % len(self.own["gpus"])] for index in range(each)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(chosen))
        try:
            return self.worker.work_off(run, environment)
        finally:
            del self.running[slot]
            self.slots.put(slot)


def on_slurm(runs, ahead, own, results_dir):
    """Queues the runs that are ahead, and follows all of them until no job is left."""
    for run in ahead:
        failure_of(run).unlink(missing_ok=True)
    if ahead:
        array = slurm.submit(ahead, own)
        print(f"job array {array} works off {len(ahead)} runs; its words go to {results_dir / 'logs'}", flush=True)
    if own["wait"]:
        try:
            follow(runs, own, results_dir)
        except KeyboardInterrupt as stop:
            raise type(stop)("the jobs go on; the same command follows them, scancel ends them") from None


def follow(runs, own, results_dir):
    """Shows how far the jobs are, until none of these runs is in the queue."""
    names = {run.directory.path.name for run in runs}
    said = {name: set() for name in ("done", "failed")}
    for name, found in standings(runs, own["measure"]).items():
        if name in said:
            said[name] = {run.directory.path.name for run in found}
    with progress_bar(len(runs), "sweep", len(said["done"] | said["failed"]), unit="run") as bar:
        while True:
            queued = slurm.queue(results_dir)
            standing = standings(runs, own["measure"], queued or {})
            for name in said:
                for run in standing[name]:
                    if run.directory.path.name not in said[name]:
                        said[name].add(run.directory.path.name)
                        bar.write(f"{name}: {run.directory.path.name}")
                        bar.update()
            running = sum((queued or {}).get(run.directory.path.name, False) for run in standing["queued"])
            waiting = len(standing["queued"]) - running
            bar.set_postfix_str(f"{running} running, {waiting} queued, {len(standing['failed'])} failed")
            if queued is not None and names.isdisjoint(queued):
                return
            time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    run_command(main)

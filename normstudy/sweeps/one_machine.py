"""The runs of a sweep on this machine, several at a time."""

import concurrent.futures
import contextlib
import queue
import shutil
import sys

from normstudy.cli import progress_bar, stops_at_safe_points
from normstudy.sweeps.standings import log_path
from normstudy.sweeps.workers import DONE, ELSEWHERE, FAILED, STOPPED, Worker, last_line, thread_environment

MOST_LINES = 12  # of runs at work that are shown one by one


def status_line(position):
    """A line below the bar, on a terminal."""
    from tqdm import tqdm

    return tqdm(total=0, position=position, bar_format="{desc}", leave=False, disable=not sys.stderr.isatty())


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
                words = f"  {name}: {last_line(log_path(run)).removeprefix(f'{name} ')}"
            line.set_description_str(words[:width])

    def report(self, run, outcome, reason, bar):
        self.counts[outcome] += 1
        name = run.directory.path.name
        words = {
            DONE: f"done: {name}",
            FAILED: f"failed: {name}: {reason} (see {log_path(run)})",
            ELSEWHERE: f"another process works on {name}",
        }
        if outcome in words:
            bar.write(words[outcome])
        bar.update(outcome in (DONE, FAILED))

    def work_off(self, run):
        slot = self.slots.get()
        self.running[slot] = run
        environment = thread_environment(self.jobs * self.own["processes"])
        if self.own["gpus"]:
            each = self.own["processes"]
            chosen = [self.own["gpus"][(slot * each + index) % len(self.own["gpus"])] for index in range(each)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(chosen))
        try:
            return self.worker.work_off(run, environment)
        finally:
            del self.running[slot]
            self.slots.put(slot)

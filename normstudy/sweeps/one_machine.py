"""Execution of a sweep on this machine, several runs at once."""

from __future__ import annotations

import concurrent.futures
import contextlib
import math
import os
import queue
import shutil
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normstudy.cli import progress_bar, sharing_environment, stops_at_safe_points
from normstudy.sweeps.grid import SweepRun
from normstudy.sweeps.run_parts import log_path
from normstudy.sweeps.workers import DONE, ELSEWHERE, FAILED, STOPPED, Result, Worker, thread_environment

if TYPE_CHECKING:
    from tqdm import tqdm

MOST_LINES = 12  # maximum number of status lines, one for each running run


class OneMachine:
    """Executes runs on this machine, --jobs at once. options: the sweep's own flags."""

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options
        self.jobs = options["jobs"] or 1
        self.worker = Worker(options)
        self.counts = dict.fromkeys((DONE, FAILED, STOPPED, ELSEWHERE), 0)
        self.running: dict[int, SweepRun] = {}  # {slot: run}, with --jobs slots
        self.slots: queue.SimpleQueue[int] = queue.SimpleQueue()  # the free slots
        for slot in range(self.jobs):
            self.slots.put(slot)

    def work(self, runs: Sequence[SweepRun], ahead: Sequence[SweepRun]) -> None:
        """Execute the runs in `ahead`, which are the remaining ones of `runs`.

        A run that fails is started again after the others, up to --retries times. A signal stops the child processes,
        which save their state, and is then raised as a KeyboardInterrupt.
        """
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
                            run, result = futures.pop(future), future.result()
                            self.report(run, result, bar)
                            if result.kind == FAILED and not result.is_final and not self.worker.is_stopping:
                                futures[pool.submit(self.work_off, run)] = run
                        points.check()
                        if self.counts[FAILED] and self.options["fail_fast"]:
                            self.worker.stop()
            except KeyboardInterrupt as stop:
                self.worker.stop()
                raise type(stop)("all runs have saved their state; run the same command again to continue") from None

    def show(self, lines: Iterable[tqdm]) -> None:
        """Show, for each slot, its run and the last line of the run's log."""
        width = shutil.get_terminal_size().columns - 1
        for slot, line in enumerate(lines):
            run = self.running.get(slot)
            words = "  no runs left to start"
            if run:
                name = run.directory.path.name
                words = f"  {name}: {last_line(log_path(run)).removeprefix(f'{name} ')}"
            line.set_description_str(words[:width])

    def report(self, run: SweepRun, result: Result, bar: tqdm) -> None:
        """Count and print the result of a run."""
        self.counts[result.kind] += result.is_final
        name = run.directory.path.name
        words = {
            DONE: f"done: {name}",
            FAILED: f"{'failed' if result.is_final else 'will be tried again'}: {name}: {result.reason}",
            ELSEWHERE: f"another process is working on {name}",
        }
        if result.kind in words:
            bar.write(words[result.kind] + (f" (see {log_path(run)})" if result.kind == FAILED else ""))
        bar.update(result.kind in (DONE, FAILED) and result.is_final)

    @property
    def is_stopped(self) -> bool:
        """Whether no further runs are started, because of --fail_fast or a signal."""
        return self.worker.is_stopping

    def work_off(self, run: SweepRun) -> Result:
        """Execute a run in a free slot, with the slot's cores and GPUs; return the result of Worker.work_off."""
        slot = self.slots.get()
        self.running[slot] = run
        processes, gpus = self.options["processes"], self.options["gpus"]
        on_gpu = math.ceil(self.jobs * processes / len(gpus)) if gpus else self.jobs
        environment = thread_environment(self.jobs * processes) | sharing_environment(self.jobs, on_gpu)
        if gpus:
            chosen = [gpus[(slot * processes + index) % len(gpus)] for index in range(processes)]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(dict.fromkeys(chosen))
        try:
            return self.worker.work_off(run, environment)
        finally:
            del self.running[slot]
            self.slots.put(slot)


def status_line(position: int) -> tqdm:
    """Return a line below the progress bar, which is shown only on a terminal."""
    from tqdm import tqdm

    return tqdm(total=0, position=position, bar_format="{desc}", leave=False, disable=not sys.stderr.isatty())


def last_line(path: Path) -> str:
    """Return the last line of a log, or an empty string if there is none."""
    with contextlib.suppress(OSError), open(path, "rb") as file:
        file.seek(max(0, os.fstat(file.fileno()).st_size - 1000))
        lines = file.read().decode(errors="replace").strip().splitlines()  # also at the \r of progress bars
        return lines[-1] if lines else ""
    return ""

"""The watched report: rebuild it whenever a run has ended, and refresh its runs in progress in between."""

import contextlib
import io
import sys
import time
from collections.abc import Callable, Iterator
from typing import NoReturn

from normstudy.cli import RunError, UsageError, describe_os_error
from normstudy.report.build import BuiltReport, build_report, write_page
from normstudy.report.data import ReportOptions
from normstudy.report.run_states import FileCache, RunStates, Signature, read_states, signature
from normstudy.storage import collect_table

LOOK_SECONDS = 3.0  # interval at which the files of the runs are looked at
REFRESH_SECONDS = 30.0  # minimum time between two pages with the same statistics
IDLE_SECONDS = 300.0  # time after which such a page is written although no run has advanced
RETRY_SECONDS = 30.0  # time after which a report that could not be written is tried again
REST = 4  # a rebuild is followed by a pause of this many times its CPU time, because training needs the cores


def watch_report(options: ReportOptions, wait: Callable[[float], object] = time.sleep) -> NoReturn:
    """Write the report on the runs in results_dir, and again whenever one has ended, until a KeyboardInterrupt.

    The page is then written once more, without the script that reloads it, and the KeyboardInterrupt is raised with
    a line about it. Errors of the first report are raised. Later ones are printed, and the report is tried again.
    """
    watch = Watch(options)
    print(f"watching {options.results_dir} until Ctrl-C; open {watch.page}, which reloads itself", flush=True)
    try:
        watch.look()
        while True:
            wait(LOOK_SECONDS)
            with watch.later_errors():
                watch.look()
    except KeyboardInterrupt as stop:
        raise type(stop)(watch.finish()) from None


class Watch:
    """A report that follows the runs in results_dir. Statistics are computed again only if the table has changed."""

    def __init__(self, options: ReportOptions) -> None:
        self.options = options
        self.page = options.results_dir / "report.html"
        self.table = options.results_dir / "results.csv"
        self.files = FileCache()
        self.states: RunStates | None = None  # those that the page shows
        self.built: BuiltReport | None = None
        self.content: bytes | None = None  # of the table that the report was built from
        self.collected: tuple[dict[str, Signature], Signature | None] | None = None  # when that was checked last
        self.rebuild_at = self.written_at = 0.0  # by time.monotonic()
        self.said: set[str] = set()  # lines on stderr that are not repeated
        self.counts = ""

    def look(self) -> None:
        """Look at the files of the runs; rebuild or refresh the page if something has changed and it is due."""
        start, cpu_start = time.monotonic(), time.process_time()
        states = self.read_states()
        words = ""
        if start >= self.rebuild_at and self.collected != (states.ended, signature(self.table)):
            is_rebuilt = self.rebuild(states)
            self.rebuild_at = time.monotonic() + REST * (time.process_time() - cpu_start)
            words = f"; report built in {time.monotonic() - start:.1f} s" * is_rebuilt
        elif self.is_stale(states):
            self.write(states)
        self.report_counts(states, words)

    def read_states(self) -> RunStates:
        """Return the state of every run."""
        return read_states(self.options.results_dir, self.files)

    def rebuild(self, states: RunStates) -> bool:
        """Collect the table; if it has changed, compute the report again. Write the page in any case.

        Return whether the report was computed.
        """
        with self.new_complaints():
            collect_table(self.options.results_dir)
            self.collected = states.ended, signature(self.table)
            content = self.table.read_bytes()
            is_new = content != self.content
            if is_new:
                self.built, self.content = build_report(self.options), content
        self.write(self.read_states())  # the runs have gone on in the meantime
        return is_new

    def is_stale(self, states: RunStates) -> bool:
        """Return whether the page should be written again with the same statistics."""
        if self.states is None or not (states.has_unended or self.states.has_unended):
            return False
        has_advanced = states.progress() != self.states.progress()
        return time.monotonic() - self.written_at >= (REFRESH_SECONDS if has_advanced else IDLE_SECONDS)

    def write(self, states: RunStates) -> None:
        """Write the page, if there are statistics."""
        if self.built is not None:
            write_page(self.built, self.options, states, self.files, is_watched=True)
            self.states, self.written_at = states, time.monotonic()

    def report_counts(self, states: RunStates, words: str) -> None:
        """Print the numbers of runs, if they have changed or there are words to add."""
        measured = f"{len(states.measured)} being measured, " * bool(states.measured)
        counts = (
            f"{len(states.ended)} ended, {len(states.training)} in training, {measured}{len(states.failures)} failed"
        )
        if words or counts != self.counts:
            print(f"{time.strftime('%H:%M:%S')}  {counts}{words}", flush=True)
        self.counts = counts

    def finish(self) -> str:
        """Write the page without the script that reloads it; return a line about the page."""
        if self.built is None:
            return "the first report was not finished"
        with contextlib.suppress(OSError):
            write_page(self.built, self.options, self.states, self.files)
        return f"{self.page} is complete"

    @contextlib.contextmanager
    def new_complaints(self) -> Iterator[None]:
        """A context in which lines on stderr are printed at its end, and each line only once per Watch."""
        caught = io.StringIO()
        try:
            with contextlib.redirect_stderr(caught):
                yield
        finally:
            for line in caught.getvalue().splitlines():
                self.complain(line)

    @contextlib.contextmanager
    def later_errors(self) -> Iterator[None]:
        """A context whose errors that a user can cause are printed, and after which the page is tried again later."""
        try:
            yield
        except (RunError, UsageError, OSError) as error:
            words = describe_os_error(error) if isinstance(error, OSError) else str(error)
            self.complain(f"{words}; the report is tried again")
            self.collected = None
            self.rebuild_at = time.monotonic() + RETRY_SECONDS
            self.written_at = time.monotonic()

    def complain(self, line: str) -> None:
        """Print a line on stderr, if it was not printed before."""
        if line not in self.said:
            self.said.add(line)
            print(line, file=sys.stderr, flush=True)

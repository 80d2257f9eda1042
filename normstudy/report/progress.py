"""The section on runs in progress: a table and curves of the runs in training, and why other runs failed."""

import math
import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from urllib.parse import quote

import pandas as pd

from normstudy.cli import format_count, format_duration
from normstudy.report.figures import Picture
from normstudy.report.html_table import Column, table_html, text
from normstudy.report.page import (
    TEMPLATES,
    RawHTML,
    details_html,
    escaped,
    format_number,
    list_html,
    note_html,
    picture_html,
)
from normstudy.report.run_states import Failure, RunStates, TrainingRun
from normstudy.storage import RunDirectory

NAMED = 3  # maximum number of runs that a sentence names
MOST_REASONS = 10  # maximum number of sentences about failures; the table below them has all
RELOAD_SECONDS = 60  # time after which a watched page that is not used reloads itself


def progress_section(
    states: RunStates,
    pictures: Sequence[Picture],
    results_dir: Path,
    is_watched: bool = False,
    is_filtered: bool = False,
) -> tuple[str, str]:
    """Return the heading and the HTML of the section; the HTML is empty if there is nothing to say.

    results_dir: the folder of the page. is_watched: whether the page is rewritten as runs end. is_filtered: whether the
    rest of the report leaves out runs.
    """
    heading = "Runs in progress" if is_watched or states.has_unended else "Failed runs"
    content = ""
    if heading == "Runs in progress":
        content += note_html(_overview(states, is_filtered))
        if is_watched:  # reload.js writes the note
            content += f'<p class="note" id="watched" data-seconds="{RELOAD_SECONDS}"></p>'
    if states.training:
        content += _training_table(states.training, states.time, results_dir)
        content += "".join(picture_html(path, caption) for path, caption in pictures)
    sentences = failure_sentences(states.failures) + _unfinished_sentences(states)
    if sentences:
        title = "Failed and unfinished runs" if heading == "Runs in progress" else ""
        content += f"<h3>{title}</h3>" * bool(title) + list_html(sentences)
        content += details_html("All of these runs", _failures_table(states, results_dir))
    return heading, content


def _overview(states: RunStates, is_filtered: bool) -> str:
    counts = [f"{len(states.training)} in training"]
    if states.measured:
        counts.append(f"{len(states.measured)} being measured ({_names(states.measured)})")
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(states.time))
    words = f"State at {when}: {', '.join(counts)}, {len(states.ended)} ended."
    if is_filtered:
        words += " This section is about all runs of the folder, also those that --filter leaves out."
    return words


def failure_sentences(failures: Iterable[Failure]) -> list[str]:
    """Return one sentence per kind and reason, the most frequent first."""
    groups: dict[tuple[str, str], list[Failure]] = {}
    for failure in failures:
        groups.setdefault((failure.kind, failure.reason), []).append(failure)
    ordered = sorted(groups.items(), key=lambda item: -len(item[1]))
    sentences = []
    for (kind, reason), found in ordered[:MOST_REASONS]:
        names = _names([failure.run for failure in found])
        sentences.append(f"{format_count(len(found), 'run')} {kind}: {reason}{_epochs(found)} ({names}).")
    if len(ordered) > MOST_REASONS:
        sentences.append(f"The table below has {format_count(len(ordered) - MOST_REASONS, 'more reason')}.")
    return sentences


def _epochs(failures: Iterable[Failure]) -> str:
    epochs = sorted({failure.epoch for failure in failures if failure.epoch is not None})
    if not epochs:
        return ""
    return f" in epoch {epochs[0]}" if len(epochs) == 1 else f" in epochs {epochs[0]} to {epochs[-1]}"


def _unfinished_sentences(states: RunStates) -> list[str]:
    if not states.unfinished:
        return []
    count = format_count(len(states.unfinished), "unfinished run")
    return [f"No process works on {count} ({_names(states.unfinished)}). The same command continues a run."]


def _names(runs: Sequence[RunDirectory]) -> str:
    """Return the names of the first runs, and how many others there are."""
    names = [run.path.name for run in runs[:NAMED]]
    return ", ".join(names) + (f" and {len(runs) - NAMED} more" if len(runs) > NAMED else "")


def _training_table(runs: Sequence[TrainingRun], now: float, results_dir: Path) -> str:
    def column(title: str, cell: Callable[[TrainingRun], object], is_number: bool = True) -> Column:
        return Column(title, lambda row: cell(row["run"]), is_number)

    validation = column("validation acc. (%)", lambda run: _number_cell(100 * run.latest("validation_accuracy")))
    is_validated = any(math.isfinite(run.latest("validation_accuracy")) for run in runs)
    columns = [
        column("run", lambda run: _linked_name(run.directory, results_dir), is_number=False),
        column("epoch", lambda run: (run.epochs_of_total, run.last_epoch)),
        column("train loss (nats)", lambda run: _number_cell(run.latest("train_loss"))),
        *[validation] * is_validated,
        column("test acc. (%)", lambda run: _number_cell(100 * run.latest("test_accuracy"))),
        column("time since last epoch or start", lambda run: _duration_cell(now - run.heard)),
        column("training time left (estimate)", lambda run: _duration_cell(run.seconds_left(now), run.may_stop_early)),
    ]
    return table_html(pd.DataFrame({"run": runs}), columns)


def _failures_table(states: RunStates, results_dir: Path) -> str:
    rows = [(failure.run, failure.kind, failure.reason + _epochs([failure])) for failure in states.failures]
    rows += [(run, "unfinished", "no process works on it") for run in states.unfinished]
    columns = [Column("run", lambda row: _linked_name(row["run"], results_dir)), text("state"), text("reason")]
    return table_html(pd.DataFrame(rows, columns=["run", "state", "reason"]), columns)


def _linked_name(run: RunDirectory, results_dir: Path) -> RawHTML:
    """Return a run's name as a link to its folder, and a link to its log in a sweep, where these exist."""
    name = escaped(run.path.name)
    name = _link(run.path, name, results_dir) if run.path.exists() else name
    return RawHTML(name + (f" ({_link(run.log, 'log', results_dir)})" if run.log.exists() else ""))


def _link(path: Path, content: str, results_dir: Path) -> str:
    target = quote(os.fsencode(Path(os.path.relpath(path, results_dir)).as_posix()))  # names may contain any bytes
    return f'<a href="{target}">{content}</a>'


def _number_cell(value: float) -> tuple[str, object]:
    """Return a table cell with a number, which is sorted by all its digits; empty for NaN."""
    shown = format_number(value, 4)
    return shown, value if shown else ""


def _duration_cell(seconds: float | None, is_bound: bool = False) -> tuple[str, object]:
    """Return a table cell with a duration, which is sorted by its seconds. is_bound: whether it is a maximum."""
    return ("", "") if seconds is None else ("at most " * is_bound + format_duration(seconds), round(seconds))


def reload_script() -> str:
    """Return the script of a watched page, which reloads the page while nobody uses it."""
    return (TEMPLATES / "reload.js").read_text(encoding="utf-8")

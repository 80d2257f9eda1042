"""A finished run: its report, its row of the table, and the files that can be rebuilt."""

import sys
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from normstudy.cli import RunError
from normstudy.storage import (
    RunDirectory,
    are_metrics_whole,
    changed_files,
    is_whole_json,
    read_json,
    read_summary,
    restore_metrics,
    summarize_probes,
    update_table,
)

CHANCE = 110  # % of the accuracy of guessing; up to this value a network has learned nothing


class Plots(Protocol):
    """The part of normstudy.plots that a run needs. The command passes it on: training itself draws nothing."""

    def is_whole_picture(self, path: Path) -> bool: ...
    def draw_curves(self, run: RunDirectory, title: str) -> object: ...
    def draw_probes(self, run: RunDirectory, title: str) -> object: ...
    def try_to_draw(self, draw: Callable[[], object], path: Path) -> None: ...


def report_run(run: RunDirectory) -> None:
    """Print how a run ended, and add its row to the table. Raises RunError if its files are not as it wrote them."""
    summary = read_summary(run)
    print(describe_outcome(run, summary))
    update_table([run])
    changed = changed_files(run, summary)
    if changed:
        raise RunError(
            f"{run.path}: {', '.join(changed)} damaged or changed since the run wrote it: "
            "use --overwrite=True to start the run over"
        )


def has_ended(run: RunDirectory) -> bool:
    """Whether a run left a complete summary. A damaged one is reported; training rebuilds it from the last state."""
    if not run.summary.exists():
        return False
    try:
        read_summary(run)
    except RunError as error:
        print(f"{error}; rebuilding it from {run.last.name}", file=sys.stderr)
        return False
    return True


def damaged_outputs(run: RunDirectory, plots: Plots) -> list[tuple[Path, Callable[[], object]]]:
    """Return [(path, function that rebuilds it)] for the missing or damaged outputs of a finished run."""
    damaged: list[tuple[Path, Callable[[], object]]] = []
    if not are_metrics_whole(run):
        damaged.append((run.metrics, lambda: restore_metrics(run)))
    pictures = [(run.curves, plots.draw_curves)]
    if run.probe_dumps():
        pictures.append((run.probes_picture, plots.draw_probes))
    for path, draw in pictures:
        if not plots.is_whole_picture(path):
            damaged.append((path, partial(plots.try_to_draw, partial(draw, run, run.path.name), path)))
    if run.probe_dumps() and not is_whole_json(run.probes_summary):
        damaged.append((run.probes_summary, lambda: summarize_probes(run)))
    return damaged


def remake_outputs(run: RunDirectory, plots: Plots) -> None:
    """Rebuild missing and damaged outputs; print the reason for each that cannot be rebuilt."""
    for path, make in damaged_outputs(run, plots):
        try:
            make()
        except RunError as error:
            print(f"{path.name} could not be rebuilt: {error}", file=sys.stderr)


def describe_outcome(run: RunDirectory, summary: Mapping[str, Any]) -> str:
    """Return how a run ended and where its files are. Raises RunError if summary.json or config.json lacks a value."""
    try:
        if summary["status"] == "diverged":
            step, epochs = summary["diverged_at_step"], summary["epochs_done"]
            return f"diverged at step {step}, after {epochs} complete epochs; all that was recorded is in {run.path}"
        test, train = 100 * summary["test_accuracy"], 100 * summary["train_accuracy"]
        pictures = [str(path) for path in (run.curves, run.probes_picture) if path.exists()]
        classes = len(read_json(run.config)["data"]["classes"])
        hint = "no better than chance; a smaller --init_lr, --lr_warmup=True or more --epochs may help\n"
        return (
            f"done in {summary['seconds']:.0f} s: test accuracy {test:.2f} %, train accuracy {train:.2f} % "
            f"(eval mode, no augmentation)\n{hint if train * classes < CHANCE else ''}"
            f"see {', '.join(pictures) or run.metrics}; all files are in {run.path}"
        )
    except (KeyError, TypeError) as error:
        raise RunError(f"{run.summary} is damaged ({error}): use --overwrite=True to start the run over") from None

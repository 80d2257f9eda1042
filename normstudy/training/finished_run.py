"""A finished run: its report, its table row, and the files that can be made again."""

import sys
from collections.abc import Callable, Mapping
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

CHANCE = 110  # % of the accuracy of guessing, up to which a network has learned nothing


class Plots(Protocol):
    """The part of normstudy.plots that a run needs. The command passes it on: training itself draws nothing."""

    def is_whole_picture(self, path: Path) -> bool: ...
    def draw_curves(self, run: RunDirectory, title: str) -> object: ...
    def draw_probes(self, run: RunDirectory, title: str) -> object: ...


def report_run(run: RunDirectory) -> None:
    """Say how a run ended, and put its row into the table. Raises RunError where its files are not what it wrote."""
    summary = read_summary(run)
    print(describe_outcome(run, summary))
    update_table([run])
    changed = changed_files(run, summary)
    if changed:
        raise RunError(
            f"{run.path}: {', '.join(changed)} damaged or changed after it was written; --overwrite=True trains again"
        )


def has_ended(run: RunDirectory) -> bool:
    """Whether a run left a whole summary. A damaged one is said, and made again from the last state."""
    if not run.summary.exists():
        return False
    try:
        read_summary(run)
    except RunError as error:
        print(f"{error}; it is made again from {run.last.name}", file=sys.stderr)
        return False
    return True


def damaged_outputs(run: RunDirectory, plots: Plots) -> list[tuple[Path, Callable[[], object]]]:
    """[(path, function that makes it again)] of a finished run's outputs that are missing or damaged."""
    damaged: list[tuple[Path, Callable[[], object]]] = []
    if not are_metrics_whole(run):
        damaged.append((run.metrics, lambda: restore_metrics(run)))
    if not plots.is_whole_picture(run.curves):
        damaged.append((run.curves, lambda: plots.draw_curves(run, run.path.name)))
    if run.probe_dumps() and not plots.is_whole_picture(run.probes_picture):
        damaged.append((run.probes_picture, lambda: plots.draw_probes(run, run.path.name)))
    if run.probe_dumps() and not is_whole_json(run.probes_summary):
        damaged.append((run.probes_summary, lambda: summarize_probes(run)))
    return damaged


def remake_outputs(run: RunDirectory, plots: Plots) -> None:
    """Make the damaged outputs again, or say why one cannot be made."""
    for path, make in damaged_outputs(run, plots):
        try:
            make()
        except RunError as error:
            print(f"{path.name} could not be made: {error}", file=sys.stderr)


def describe_outcome(run: RunDirectory, summary: Mapping[str, Any]) -> str:
    """How a run ended and where its files are. Raises RunError where summary.json or config.json lacks something."""
    try:
        if summary["status"] == "diverged":
            step, epochs = summary["diverged_at_step"], summary["epochs_done"]
            return f"diverged at step {step}, after {epochs} whole epochs; what was recorded is in {run.path}"
        test, train = 100 * summary["test_accuracy"], 100 * summary["train_accuracy"]
        pictures = [str(path) for path in (run.curves, run.probes_picture) if path.exists()]
        classes = len(read_json(run.config)["data"]["classes"])
        hint = "no better than chance; a smaller --init_lr, --lr_warmup=True or more --epochs may help\n"
        return (
            f"done in {summary['seconds']:.0f} s: test accuracy {test:.2f} %, train accuracy {train:.2f} % "
            f"(eval mode, no augmentation)\n{hint if train * classes < CHANCE else ''}"
            f"look at {', '.join(pictures) or run.metrics}; everything is in {run.path}"
        )
    except (KeyError, TypeError) as error:
        raise RunError(f"{run.summary} is damaged ({error}); --overwrite=True starts the run over") from None

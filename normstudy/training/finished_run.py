"""A finished run: its report, its table row, and the files that can be made again."""

import sys

from normstudy.cli import RunError
from normstudy.plots import draw_curves, draw_probes, is_whole_picture
from normstudy.storage import (
    are_metrics_whole,
    changed_files,
    is_json,
    read_json,
    read_summary,
    restore_metrics,
    summarize_probes,
    update_table,
)

CHANCE = 110  # % of the accuracy of guessing, up to which a network has learned nothing


def report_run(run):
    """Says how a run ended, puts its row into the table, and checks that its files are what it wrote."""
    summary = read_summary(run)
    print(describe_outcome(run, summary))
    update_table([run])
    changed = changed_files(run, summary)
    if changed:
        raise RunError(
            f"{run.path}: {', '.join(changed)} damaged or changed after it was written; --overwrite=True trains again"
        )


def finished_summary(run):
    """The summary of a run that has ended, or None. One that is damaged is made again, from the last state."""
    if not run.summary.exists():
        return None
    try:
        return read_summary(run)
    except RunError as error:
        print(f"{error}; it is made again from {run.last.name}", file=sys.stderr)
        return None


def damaged_outputs(run):
    """Files of a finished run that can be made again from the others, and are missing or damaged: [(path, make)]."""
    damaged = [] if are_metrics_whole(run) else [(run.metrics, lambda: restore_metrics(run))]
    if not is_whole_picture(run.curves):
        damaged.append((run.curves, lambda: draw_curves(run, run.path.name)))
    if run.probe_dumps() and not is_whole_picture(run.probes_picture):
        damaged.append((run.probes_picture, lambda: draw_probes(run, run.path.name)))
    if run.probe_dumps() and not is_json(run.probes_summary):
        damaged.append((run.probes_summary, lambda: summarize_probes(run)))
    return damaged


def remake_outputs(run):
    """Makes them again, or says why that cannot be."""
    for path, make in damaged_outputs(run):
        try:
            make()
        except RunError as error:
            print(f"{path.name} could not be made: {error}", file=sys.stderr)


def describe_outcome(run, summary):
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

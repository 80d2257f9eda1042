"""Train one network with one normalization layer, and record what happens inside it.

    python main.py --arch=vgg --norm_type=BatchNorm

Leaves a run directory under results/; the same command continues an unfinished run and reports a finished one.
"""

from config import parse_args
from errors import RunError, run_command, start_script, stops_at_safe_points

if __name__ == "__main__":
    start_script()
    parse_args()  # --help and wrong flags answer before torch takes its seconds to load

import contextlib
import sys

import distributed
import plots
import runs
import states
import table
from data import load
from files import is_json, read_json
from hardware import is_out_of_memory, keep_freed_memory
from training import Training

CHANCE = 110  # % of the accuracy of guessing, up to which a network has learned nothing


def main(argv=None):
    """Runs one command line and returns its run directory."""
    config, run = runs.open_run(parse_args(argv), distributed.processes())
    keep_freed_memory()
    world, device = distributed.join(config.device)
    is_ended = world.first(lambda: not config.overwrite and finished(run) is not None)
    if not is_ended or not world.first(lambda: runs.reads_same_folder(run, config)):
        try:
            train(config, run, device, world, is_ended)
        except (MemoryError, RuntimeError) as error:
            if distributed.is_about_processes(error):
                raise RunError(
                    f"another process of this run is gone ({str(error).splitlines()[0][:100]}); {run.last} is whole, "
                    "and the same command goes on"
                ) from None
            if not is_out_of_memory(error):
                raise
            raise RunError(f"{device} has too little memory: lower --batch_size or --image_size") from None
    elif world.is_first and damaged_derivatives(run):
        with run.lock():
            mend(run)
    world.leave()
    if world.is_first:
        report(run)
    return run.path


def train(config, run, device, world, is_ended):
    """Trains a run; of one that has ended, only finds out whether it is of these images."""
    found = []
    world.first(lambda: found.append(load(config)))  # which may fetch and decode them, for the others to find
    [dataset] = found or [load(config)]
    with contextlib.ExitStack() as stack:

        def begin():
            stack.enter_context(run.lock())
            fingerprint = states.begin(run, config, dataset)
            if config.overwrite:
                table.update([run])  # its row goes, too
            return fingerprint

        fingerprint = world.first(begin)
        if not is_ended:
            with stops_at_safe_points() as points:
                Training(config, run, dataset.to(device), fingerprint, device, points, world).finish()
        if world.is_first:
            mend(run)


def report(run):
    """Says how a run ended, puts its row into the table, and checks that its files are what it wrote."""
    summary = runs.read_summary(run)
    print(outcome(run, summary))
    table.update([run])
    changed = states.changed_files(run, summary)
    if changed:
        raise RunError(
            f"{run.path}: {', '.join(changed)} damaged or changed after it was written; --overwrite=True trains again"
        )


def finished(run):
    """The summary of a run that has ended, or None. One that is damaged is made again, from the last state."""
    if not run.summary.exists():
        return None
    try:
        return runs.read_summary(run)
    except RunError as error:
        print(f"{error}; it is made again from {run.last.name}", file=sys.stderr)
        return None


def damaged_derivatives(run):
    """Files of a finished run that can be made again from the others, and are missing or damaged: [(path, make)]."""
    damaged = [] if states.are_metrics_whole(run) else [(run.metrics, lambda: states.mend_metrics(run))]
    if not plots.is_whole(run.curves):
        damaged.append((run.curves, lambda: plots.draw_curves(run, run.path.name)))
    if run.probe_dumps() and not plots.is_whole(run.probes_picture):
        damaged.append((run.probes_picture, lambda: plots.draw_probes(run, run.path.name)))
    if run.probe_dumps() and not is_json(run.probes_summary):
        damaged.append((run.probes_summary, lambda: states.summarize_probes(run)))
    return damaged


def mend(run):
    """Makes them again, or says why that cannot be."""
    for path, make in damaged_derivatives(run):
        try:
            make()
        except RunError as error:
            print(f"{path.name} could not be made: {error}", file=sys.stderr)


def outcome(run, summary):
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


if __name__ == "__main__":
    run_command(main)

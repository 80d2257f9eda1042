"""Train one network with one normalization layer, and record what happens inside it.

    python main.py --arch=vgg --norm_type=BatchNorm

Leaves a run directory under results/; the same command continues an unfinished run and reports a finished one.
"""

import math
import time

from config import learning_rate, parse_args, progress_bar

if __name__ == "__main__":
    parse_args()  # --help and wrong flags answer before torch takes its seconds to load

import torch
from torch.nn import functional as F

import plots
import runs
from config import DUMP_EVERY_EPOCHS
from data import evaluation_batches, load, training_order
from errors import RunError, run_command
from files import write_csv, write_json, write_torch
from hardware import keep_freed_memory, pick_device
from models import build_from_config
from probes import Recorder
from steps import SGD, Losses, build_step, forward, steps_in


def main(argv=None):
    """Runs one command line and returns its run directory."""
    config, run = runs.open_run(parse_args(argv))
    keep_freed_memory()
    device = pick_device(config.device)
    is_finished = run.summary.exists() and not config.overwrite
    if not (is_finished and runs.reads_same_folder(run, config)):
        dataset = load(config)
        with run.lock():
            runs.begin(run, config, dataset)
            try:
                if not is_finished:
                    train(config, run, dataset.to(device), device)
            except torch.OutOfMemoryError:
                raise RunError(f"{device} has too little memory: lower --batch_size or --image_size") from None
    print(runs.outcome(run))
    runs.collect(run.path.parent)
    return run.path


def train(config, run, dataset, device):
    """Trains from the last finished epoch on, and writes everything that the run leaves."""
    torch.manual_seed(config.seed)
    torch.backends.cudnn.benchmark = True  # on CUDA, kernels are chosen by trial: shapes hardly change
    model = build_from_config(config, len(dataset.classes)).to(device, memory_format=torch.channels_last)
    optimizer = SGD(model.parameters(), config.momentum, config.weight_decay)
    recorder = Recorder(model) if config.probe_layers else None
    progress = runs.load_state(run, config, model, optimizer, recorder)
    step = build_step(config, model, optimizer, dataset.train, recorder)
    rows, diverged_at = progress["rows"], None
    what = f"{config.arch} with {config.norm_type} on {config.dataset} ({device})"
    print(f"training {what}, {progress['epoch']} of {config.epochs} epochs done: {run.path}", flush=True)
    try:
        for epoch in range(progress["epoch"] + 1, config.epochs + 1):
            row, diverged_at = train_epoch(config, step, dataset, epoch)
            has_diverged = diverged_at is not None
            if not has_diverged:
                rows.append(row)
                print(runs.epoch_line(config, row), flush=True)
            write_csv(run.metrics, runs.METRICS_COLUMNS, rows)
            is_dump = has_diverged or epoch % DUMP_EVERY_EPOCHS == 0 or epoch == config.epochs
            if recorder is not None and is_dump:
                if has_diverged:
                    recorder.drop_after(diverged_at)
                write_torch(run.probes(epoch), recorder.dump())
            if has_diverged:
                break
            if is_dump:
                runs.save_checkpoint(run, config, model, epoch)
            progress |= {"epoch": epoch, "seconds": progress["seconds"] + row["seconds"]}
            runs.save_state(run, config, model, optimizer, recorder, progress)
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the same command continues after epoch {progress['epoch']}") from None
    finally:
        if recorder is not None:
            recorder.close()
    summary = summarize(config, model, dataset, progress, diverged_at)
    plots.draw_curves(run, run.path.name)
    plots.draw_probes(run, run.path.name)
    write_json(run.summary, summary)


def train_epoch(config, step, dataset, epoch):
    """One epoch of SGD and the evaluation after it: (row of metrics.csv, None), or (None, step) where it diverged.

    Nothing waits for the device before all steps are on their way; once a second the bar shows how far it has come.
    """
    start = time.perf_counter()
    split = dataset.train
    steps = steps_in(len(split), config.batch_size)
    first = (epoch - 1) * steps
    losses = Losses(steps, split.labels.device)
    order, flips = training_order(split, config.seed, epoch)
    step.model.train()
    with progress_bar(len(split), f"epoch {epoch}/{config.epochs}") as bar:
        for index in range(steps):
            batch = slice(index * config.batch_size, (index + 1) * config.batch_size)
            rate = learning_rate(config, first + index, steps)
            samples = len(order[batch])
            losses.record(*step(order[batch], flips[batch], rate, first + index), samples)
            bar.update(samples)
            seen = losses.look()
            if seen is not None:
                loss, accuracy, diverged = seen
                bar.set_postfix_str(f"loss {loss:.4f}, acc {accuracy:.1%}")
                if diverged is not None:
                    return None, first + diverged
    train_loss, train_accuracy, diverged = losses.result(config.batch_size)
    if diverged is not None:
        return None, first + diverged
    train_seconds = time.perf_counter() - start
    row = {"epoch": epoch, "learning_rate": rate, "train_loss": train_loss, "train_accuracy": train_accuracy}
    for name, held_out in (("validation", dataset.validation), ("test", dataset.test)):
        if held_out is not None:
            row[f"{name}_loss"], row[f"{name}_accuracy"] = evaluate(config, step.model, held_out)
    row["seconds"] = time.perf_counter() - start
    row["images_per_second"] = len(split) / train_seconds
    if not all(math.isfinite(value) for value in row.values()):
        return None, first + steps - 1
    return row, None


@torch.no_grad()
def evaluate(config, model, split):
    """(mean cross-entropy, accuracy) over a split, in eval mode, unaugmented."""
    model.eval()
    losses, correct = [], []
    with progress_bar(len(split), "evaluating") as bar:
        for images, labels in evaluation_batches(split, config.image_size):
            logits = forward(config, model, images)
            losses.append(F.cross_entropy(logits, labels, reduction="sum"))
            correct.append((logits.argmax(1) == labels).sum())
            bar.update(len(labels))
    return torch.stack(losses).cpu().double().sum().item() / len(split), torch.stack(correct).sum().item() / len(split)


def summarize(config, model, dataset, progress, diverged_at):
    """The content of summary.json: the result of the last epoch, or how far the run came before it diverged."""
    summary = {"status": "done", "epochs_done": progress["epoch"], "seconds": progress["seconds"]}
    last = progress["rows"][-1] if progress["rows"] else {}
    for key in ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy"):
        summary[key] = last.get(key)
    if diverged_at is not None:
        summary |= {"status": "diverged", "diverged_at_step": diverged_at}
        return summary | {"train_loss": None, "train_accuracy": None, "generalization_ratio": None}
    summary["train_loss"], summary["train_accuracy"] = evaluate(config, model, dataset.train)
    ratio = summary["test_accuracy"] / summary["train_accuracy"] if summary["train_accuracy"] else None
    return summary | {"generalization_ratio": ratio}


if __name__ == "__main__":
    run_command(main)

"""Train one network with one normalization layer, and record what happens inside it.

    python main.py --arch=vgg --norm_type=BatchNorm

Leaves a run directory under results/; the same command continues an unfinished run and reports a finished one.
"""

import math
import time
from contextlib import nullcontext

from config import learning_rate, parse_args, progress_bar

if __name__ == "__main__":
    parse_args()  # --help and wrong flags answer before torch takes its seconds to load

import torch
from torch.nn import functional as F

import plots
import runs
from config import DUMP_EVERY_EPOCHS
from data import evaluation_batches, load, training_batches
from errors import RunError, run_command
from files import write_csv, write_json, write_torch
from hardware import keep_freed_memory, pick_device
from models import build_from_config
from probes import Recorder

LOOK_SECONDS = 1.0  # between looks at the losses, each of which waits for the device


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
    model = build_from_config(config, len(dataset.classes)).to(device, memory_format=torch.channels_last)
    rates = {"lr": 0.0, "momentum": config.momentum, "weight_decay": config.weight_decay}
    optimizer = torch.optim.SGD(model.parameters(), **rates, fused=device.type != "mps")
    recorder = Recorder(model) if config.probe_layers else None
    progress = runs.load_state(run, config, model, optimizer, recorder)
    rows, diverged_at = progress["rows"], None
    what = f"{config.arch} with {config.norm_type} on {config.dataset} ({device})"
    print(f"training {what}, {progress['epoch']} of {config.epochs} epochs done: {run.path}", flush=True)
    try:
        for epoch in range(progress["epoch"] + 1, config.epochs + 1):
            row, diverged_at = train_epoch(config, model, optimizer, dataset, epoch, recorder)
            has_diverged = diverged_at is not None
            if not has_diverged:
                rows.append(row)
                print(runs.epoch_line(config, row), flush=True)
            write_csv(run.metrics, runs.METRICS_COLUMNS, rows)
            is_dump = has_diverged or epoch % DUMP_EVERY_EPOCHS == 0 or epoch == config.epochs
            if recorder is not None and is_dump:
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


def forward(config, model, images):
    """The logits (N, classes) in float32, computed in the run's precision."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits = model(images)
    return logits.float()


def train_epoch(config, model, optimizer, dataset, epoch, recorder):
    """One epoch of SGD and the evaluation after it: (row of metrics.csv, None), or (None, step) where it diverged.

    Nothing in a step waits for the device; once a second the losses so far are looked at.
    """
    start = look = time.perf_counter()
    split = dataset.train
    steps = math.ceil(len(split) / config.batch_size)
    first_step = (epoch - 1) * steps
    losses = torch.zeros(steps, device=split.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=split.labels.device)
    seen = 0
    model.train()
    batches = training_batches(split, config.batch_size, config.seed, epoch, config.image_size)
    with progress_bar(len(split), f"epoch {epoch}/{config.epochs}") as bar:
        for index, (images, labels) in enumerate(batches):
            step = first_step + index
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(config, step, steps)
            is_probed = recorder is not None and step % config.probe_every == 0
            with recorder.step(step) if is_probed else nullcontext():
                logits = forward(config, model, images)
                loss = F.cross_entropy(logits, labels)
                optimizer.zero_grad()
                loss.backward()
            optimizer.step()
            losses[index] = loss.detach()
            correct += (logits.argmax(1) == labels).sum()
            seen += len(labels)
            bar.update(len(labels))
            if time.perf_counter() - look > LOOK_SECONDS or index == steps - 1:
                so_far = losses[: index + 1].cpu()
                diverged = (~so_far.isfinite()).nonzero()
                if len(diverged):
                    return None, diverged_step(first_step + int(diverged[0]), recorder)
                bar.set_postfix_str(f"loss {so_far[-50:].mean():.4f}, acc {100 * correct.item() / seen:.1f} %")
                look = time.perf_counter()
    sizes = torch.full((steps,), config.batch_size, dtype=torch.float64)
    sizes[-1] = len(split) - config.batch_size * (steps - 1)
    train_seconds = time.perf_counter() - start
    row = {
        "epoch": epoch,
        "learning_rate": optimizer.param_groups[0]["lr"],
        "train_loss": (losses.cpu().double() @ sizes / len(split)).item(),
        "train_accuracy": correct.item() / len(split),
    }
    for name, held_out in (("validation", dataset.validation), ("test", dataset.test)):
        if held_out is not None:
            row[f"{name}_loss"], row[f"{name}_accuracy"] = evaluate(config, model, held_out)
    row["seconds"] = time.perf_counter() - start
    row["images_per_second"] = len(split) / train_seconds
    if not all(math.isfinite(value) for value in row.values()):
        return None, diverged_step(first_step + steps - 1, recorder)
    return row, None


def diverged_step(step, recorder):
    """The step, with the probes after it forgotten."""
    if recorder is not None:
        recorder.drop_after(step)
    return step


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

"""Train one network with one normalization layer, and record what happens inside it.

    python main.py --arch=vgg --norm_type=BatchNorm

Leaves a run directory under results/; the same command continues an unfinished run and reports a finished one.
"""

import math
import time
from contextlib import nullcontext

from config import RunError, learning_rate, parse_args, progress_bar, run_command

if __name__ == "__main__":
    parse_args()  # --help and wrong flags answer before torch takes its seconds to load

import torch
from torch.nn import functional as F

import plots
import runs
from config import DUMP_EVERY_EPOCHS
from data import evaluation_batches, load, training_batches
from files import read_json, write_csv, write_json, write_torch
from models import build_model
from probes import Recorder

LOOK_SECONDS = 1.0  # between looks at the losses, each of which waits for the device


def main(argv=None):
    """Runs one command line and returns its run directory."""
    config, run = runs.open_run(parse_args(argv))
    device = runs.pick_device(config.device)
    with run.lock():
        if config.overwrite:
            run.clear()
        finished = run.summary.exists()
        if not (finished and runs.reads_same_folder(run, config)):
            dataset = load(config)
            fingerprint = dataset.fingerprint()
            if run.config.exists():
                runs.check_same_data(run, fingerprint)
            else:
                write_json(run.config, runs.describe(config, dataset, fingerprint))
        if not finished:
            try:
                train(config, run, dataset.to(device), device)
            except torch.OutOfMemoryError:
                raise RunError(f"{device} has too little memory: lower --batch_size or --image_size") from None
    report(run)
    runs.collect(run.path.parent)
    return run.path


def train(config, run, dataset, device):
    """Trains from the last finished epoch on, and writes everything that the run leaves."""
    torch.manual_seed(config.seed)
    model = build_network(config, dataset).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(
        model.parameters(), lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
    )
    recorder = Recorder(model) if config.probe_layers else None
    done, rows, seconds = 0, [], 0.0
    if run.last.exists():
        done, rows, seconds = runs.load_state(
            run, config=config, model=model, optimizer=optimizer, recorder=recorder
        )
        print(f"continuing {run.path} after epoch {done}")
    else:
        print(f"training {config.arch} with {config.norm_type} on {config.dataset} ({device}): {run.path}")
    diverged_at = None
    try:
        for epoch in range(done + 1, config.epochs + 1):
            row, diverged_at = train_epoch(config, model, optimizer, dataset, epoch, recorder)
            if diverged_at is None:
                seconds += row["seconds"]
                rows.append(row)
                print(epoch_line(config, rows), flush=True)
            write_csv(run.metrics, runs.METRICS_COLUMNS, rows)
            is_dump = diverged_at is not None or epoch % DUMP_EVERY_EPOCHS == 0 or epoch == config.epochs
            if recorder is not None and is_dump:
                write_torch(run.probes(epoch), recorder.dump())
            if diverged_at is not None:
                break
            if is_dump:
                runs.save_checkpoint(run, config, model, epoch)
            runs.save_state(
                run, config=config, model=model, optimizer=optimizer, epoch=epoch, rows=rows, seconds=seconds,
                recorder=recorder,
            )
            done = epoch
    except KeyboardInterrupt:
        raise KeyboardInterrupt(f"the same command continues after epoch {done} of {config.epochs}") from None
    finally:
        if recorder is not None:
            recorder.close()
    summary = summarize(config, model, dataset, rows, seconds, diverged_at)
    title = run.path.name
    plots.draw_curves(run, title)
    plots.draw_probes(run, title)
    write_json(run.summary, summary)


def build_network(config, dataset):
    """The network that a Config names, for the data set's classes."""
    return build_model(
        config.arch,
        norm_type=config.norm_type,
        num_classes=len(dataset.classes),
        conv_type=config.conv_type,
        p_grouping=config.p_grouping,
        cfg=config.cfg,
        skipinit=config.skipinit,
        preact=config.preact,
        image_size=config.image_size,
        patch_size=config.patch_size,
    )


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
    train = dataset.train
    steps = math.ceil(len(train) / config.batch_size)
    first_step = (epoch - 1) * steps
    losses = torch.zeros(steps, device=train.labels.device)
    correct = torch.zeros((), dtype=torch.int64, device=train.labels.device)
    seen = 0
    model.train()
    batches = training_batches(train, config.batch_size, config.seed, epoch, config.image_size)
    with progress_bar(len(train), f"epoch {epoch}/{config.epochs}") as bar:
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
    sizes[-1] = len(train) - config.batch_size * (steps - 1)
    train_seconds = time.perf_counter() - start
    row = {
        "epoch": epoch,
        "learning_rate": optimizer.param_groups[0]["lr"],
        "train_loss": (losses.cpu().double() @ sizes / len(train)).item(),
        "train_accuracy": correct.item() / len(train),
    }
    for name, split in (("validation", dataset.validation), ("test", dataset.test)):
        if split is not None:
            row[f"{name}_loss"], row[f"{name}_accuracy"] = evaluate(config, model, split)
    row["seconds"] = time.perf_counter() - start
    row["images_per_second"] = len(train) / train_seconds
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
    for images, labels in evaluation_batches(split, config.image_size):
        logits = forward(config, model, images)
        losses.append(F.cross_entropy(logits, labels, reduction="sum"))
        correct.append((logits.argmax(1) == labels).sum())
    return torch.stack(losses).cpu().double().sum().item() / len(split), torch.stack(correct).sum().item() / len(split)


def summarize(config, model, dataset, rows, seconds, diverged_at):
    """The content of summary.json: the result of the last epoch, or how far the run came before it diverged."""
    summary = {"status": "done", "epochs_done": len(rows), "seconds": seconds}
    last = rows[-1] if rows else {}
    for key in ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy"):
        summary[key] = last.get(key)
    if diverged_at is not None:
        summary |= {"status": "diverged", "diverged_at_step": diverged_at}
        return summary | {"train_loss": None, "train_accuracy": None, "generalization_ratio": None}
    summary["train_loss"], summary["train_accuracy"] = evaluate(config, model, dataset.train)
    ratio = summary["test_accuracy"] / summary["train_accuracy"] if summary["train_accuracy"] else None
    return summary | {"generalization_ratio": ratio}


def epoch_line(config, rows):
    """What the terminal and the log say of an epoch."""
    row = rows[-1]
    parts = [f"epoch {row['epoch']:>{len(str(config.epochs))}}/{config.epochs}", f"lr {row['learning_rate']:.3g}"]
    for split in ("train", "validation", "test"):
        if f"{split}_loss" in row:
            parts.append(f"{split} loss {row[f'{split}_loss']:.4f} acc {100 * row[f'{split}_accuracy']:.2f} %")
    left = row["seconds"] * (config.epochs - row["epoch"])
    parts.append(f"{row['seconds']:.1f} s ({row['images_per_second']:,.0f} img/s, {left / 60:.0f} min left)")
    return " | ".join(parts)


def report(run):
    """Says how a finished run ended and where its files are."""
    summary = read_json(run.summary)
    if summary["status"] == "diverged":
        print(f"diverged at step {summary['diverged_at_step']} (epoch {summary['epochs_done'] + 1}); kept in {run.path}")
        return
    print(
        f"done: test accuracy {100 * summary['test_accuracy']:.2f} %, train accuracy "
        f"{100 * summary['train_accuracy']:.2f} % in {summary['seconds']:.0f} s; look at "
        f"{run.curves}, {run.probes_picture if run.probes_picture.exists() else run.metrics}"
    )


if __name__ == "__main__":
    run_command(main)

"""One run from its last saved state to its end: epochs of SGD, evaluation, and everything that is recorded."""

import math
import sys
import time

import torch

from config import DUMP_EVERY_EPOCHS, learning_rate
from layer_defs import synchronize
from models import build_from_config
from normstudy.cli import progress_bar
from normstudy.datasets import training_order
from normstudy.kernels import is_bf16_emulated
from normstudy.storage import (
    METRICS_COLUMNS,
    identity_hash,
    load_state,
    note_origin,
    save_checkpoint,
    save_probes,
    save_state,
    state_origin,
    write_csv,
    write_json,
)
from normstudy.training.epoch_losses import EpochLosses
from normstudy.training.evaluation import evaluate
from normstudy.training.optimizer import SGD
from normstudy.training.probe_recorder import ProbeRecorder
from normstudy.training.processes import World
from normstudy.training.training_step import build_step, count_steps


class Training:
    """The training of one run on a Dataset that lies on `device`, continued from what the run directory holds.

    `points` are the SafePoints at which a signal stops it: between steps, and between batches of an evaluation,
    after last.pt is written. Of the processes of a `world`, the first one writes, and all stop at the same step.
    """

    def __init__(self, config, run, dataset, fingerprint, device, points, world=None):
        torch.manual_seed(config.seed)
        torch.backends.cudnn.benchmark = True  # on CUDA, kernels are chosen by trial: shapes hardly change
        self.config, self.run, self.dataset, self.fingerprint = config, run, dataset, fingerprint
        self.device, self.points, self.world = device, points, world or World()
        self.model = build_from_config(config, len(dataset.classes)).to(device, memory_format=torch.channels_last)
        self.optimizer = SGD(self.model.parameters(), config.momentum, config.weight_decay)
        self.recorder = ProbeRecorder(self.model, self.world) if config.probe_layers else None
        self.steps = count_steps(len(dataset.train), config.batch_size)
        self.progress = self.world.from_first(self.load)
        if config.sync_bn and self.world.size > 1:
            synchronize(self.model, self.world.mean)
        self.world.broadcast([*self.model.state_dict().values(), *self.optimizer.tensors()])
        self.step = build_step(config, self.model, self.optimizer, dataset.train, self.recorder, self.world)
        self.saved = time.monotonic()

    def load(self):
        """Takes the last state back and returns the progress, in which what trains from here on is noted."""
        progress = load_state(self.run, self.config, self.fingerprint, self.model, self.optimizer, self.recorder)
        within = progress["within"]
        done = progress["epoch"] * self.steps + (len(within["losses"]) if within else 0)
        note_origin(progress["history"], state_origin(done, self.device, self.world.size))
        return progress

    def finish(self):
        """Trains from the saved state on, and writes everything but the pictures; summary.json comes last."""
        config, run, progress = self.config, self.run, self.progress
        if self.world.is_first:
            where = f"{self.device}" if self.world.size == 1 else f"{self.world.size} × {self.device.type}"
            what = f"{config.arch} with {config.norm_type} on {config.dataset} ({where})"
            print(f"training {what}, {self.how_far()} of {config.epochs} epochs done: {run.path}", flush=True)
            if config.precision == "bf16" and is_bf16_emulated(self.device):
                print("this processor has no bf16 units: --precision=fp32 is many times as fast here", file=sys.stderr)
            if progress["rows"]:
                write_csv(run.metrics, METRICS_COLUMNS, progress["rows"])
        diverged_at = None
        try:
            while progress["epoch"] < config.epochs and diverged_at is None:
                diverged_at = self.train_epoch(progress["epoch"] + 1)
            summary = self.summarize(diverged_at)
        except KeyboardInterrupt as stop:
            command = "the same command" + (" without --overwrite" if config.overwrite else "")
            raise type(stop)(f"{command} continues after {self.how_far()} of {config.epochs} epochs") from None
        finally:
            if self.recorder is not None:
                self.recorder.close()
        if self.world.is_first:
            summary["files"]["metrics.csv"] = write_csv(run.metrics, METRICS_COLUMNS, progress["rows"])
            run.previous.unlink(missing_ok=True)
            write_json(run.summary, summary)

    def steps_done(self):
        within = self.progress["within"]
        return self.progress["epoch"] * self.steps + (len(within["losses"]) if within else 0)

    def how_far(self):
        """The epochs of the saved state, in text: 3, or 3.25 within the fourth."""
        return f"{self.steps_done() / self.steps:.4g}"

    def save(self, within=None):
        """Writes last.pt; `within` is what a begun epoch has so far."""
        self.progress["within"] = within
        if self.world.is_first:
            save_state(
                self.run, self.config, self.fingerprint, self.model, self.optimizer, self.recorder, self.progress
            )
        self.saved = time.monotonic()

    def pause(self, losses, seconds, has_diverged=False):
        """Within an epoch: saves where it is time to, or where a signal has come, which then stops the run. Whether
        any process has seen that the loss is not finite."""
        is_save_due = time.monotonic() - self.saved >= 60 * self.config.checkpoint_minutes
        signal, is_save_due, has_diverged = self.world.max_over_processes(
            self.points.signal(), is_save_due, has_diverged
        )
        if not has_diverged:
            if signal or is_save_due:
                self.save(losses.state_dict() | {"seconds": seconds})
            self.points.check(signal)
        return has_diverged

    def train_epoch(self, epoch):
        """One epoch, recorded: dumps, checkpoint, state, and its row of metrics.csv. Returns None, or the step at
        which it diverged."""
        config, run, progress = self.config, self.run, self.progress
        row, diverged_at = self.run_epoch(epoch)
        has_diverged = diverged_at is not None
        is_dump = has_diverged or epoch % DUMP_EVERY_EPOCHS == 0 or epoch == config.epochs
        if self.recorder is not None and is_dump:
            if has_diverged:
                self.recorder.drop_after(diverged_at)
            dump = self.recorder.dump()
            if self.world.is_first:
                save_probes(run, epoch, dump, progress["files"])
        if has_diverged:
            return diverged_at
        if is_dump and self.world.is_first:
            save_checkpoint(run, config, self.model, epoch, progress["files"])
        progress["epoch"] = epoch
        progress["rows"].append(row)
        progress["seconds"] += row["seconds"]
        self.save()
        if self.world.is_first:
            write_csv(run.metrics, METRICS_COLUMNS, progress["rows"])
            print(epoch_line(config, row), flush=True)
        return None

    def run_epoch(self, epoch):
        """The steps of one epoch and the evaluation after it: (row of metrics.csv, None), or (None, step) where it
        diverged.

        Nothing waits for the device before all steps are on their way; once a second the bar shows how far it is.
        """
        config, split, steps = self.config, self.dataset.train, self.steps
        first = (epoch - 1) * steps
        losses = EpochLosses(steps, self.device)
        begun = self.progress["within"]
        start = time.perf_counter()
        if begun is not None:
            losses.load_state_dict(begun)
            start -= begun["seconds"]
        order, flips = training_order(split, config.seed, epoch)
        self.step.model.train()
        with progress_bar(len(split), f"epoch {epoch}/{config.epochs}", losses.samples) as bar:
            for index in range(losses.recorded, steps):
                batch = slice(index * config.batch_size, (index + 1) * config.batch_size)
                rate = learning_rate(config, first + index, steps)
                samples = len(order[batch])
                losses.record(*self.step(order[batch], flips[batch], rate, first + index), samples)
                bar.update(samples)
                seen, diverged = losses.look(), None
                if seen is not None:
                    loss, accuracy, diverged = seen
                    bar.set_postfix_str(f"loss {loss:.4f}, acc {accuracy:.1%}")
                if self.pause(losses, time.perf_counter() - start, diverged is not None):
                    return None, first + losses.result(config.batch_size)[2]
        train_loss, train_accuracy, diverged = losses.result(config.batch_size)
        if diverged is not None:
            return None, first + diverged
        train_seconds = time.perf_counter() - start
        rate = learning_rate(config, first + steps - 1, steps)
        row = {"epoch": epoch, "learning_rate": rate, "train_loss": train_loss, "train_accuracy": train_accuracy}
        for name, held_out in (("validation", self.dataset.validation), ("test", self.dataset.test)):
            if held_out is not None:
                row[f"{name}_loss"], row[f"{name}_accuracy"] = evaluate(
                    config, self.model, held_out, lambda: self.pause(losses, train_seconds), self.world
                )
        row["seconds"] = time.perf_counter() - start
        row["images_per_second"] = len(split) / train_seconds
        if not all(math.isfinite(value) for value in row.values()):
            return None, first + steps - 1
        return row, None

    def summarize(self, diverged_at):
        """The content of summary.json: the result of the last epoch, or how far the run came before it diverged."""
        progress = self.progress
        summary = {"status": "done", "epochs_done": progress["epoch"], "seconds": progress["seconds"]}
        last = progress["rows"][-1] if progress["rows"] else {}
        for key in ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy"):
            summary[key] = last.get(key)
        summary |= {"train_loss": None, "train_accuracy": None, "generalization_ratio": None}
        if diverged_at is not None:
            summary |= {"status": "diverged", "diverged_at_step": diverged_at}
        else:
            loss, accuracy = evaluate(
                self.config,
                self.model,
                self.dataset.train,
                lambda: self.points.check(*self.world.max_over_processes(self.points.signal())),
                self.world,
            )
            ratio = summary["test_accuracy"] / accuracy if accuracy else None
            summary |= {"train_loss": loss, "train_accuracy": accuracy, "generalization_ratio": ratio}
        about = {"identity": identity_hash(self.config), "history": progress["history"]}
        return summary | about | {"files": dict(progress["files"])}


def epoch_line(config, row):
    """One finished epoch, from its row of metrics.csv."""
    epoch = f"epoch {row['epoch']:>{len(str(config.epochs))}}/{config.epochs}"
    parts = [epoch, f"lr {row['learning_rate']:.3g}"]
    for split in ("train", "validation", "test"):
        if f"{split}_loss" in row:
            parts.append(f"{split} loss {row[f'{split}_loss']:.4f} acc {100 * row[f'{split}_accuracy']:.2f} %")
    minutes_left = row["seconds"] * (config.epochs - row["epoch"]) / 60
    speed = f"trained {row['images_per_second']:,.0f} img/s, {minutes_left:.0f} min left"
    parts.append(f"{row['seconds']:.1f} s ({speed})")
    return " | ".join(parts)

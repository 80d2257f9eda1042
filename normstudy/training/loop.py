"""One run from its last saved state to its end: epochs of SGD, evaluation, and all recording."""

import math
import sys
import time
from collections.abc import Mapping
from typing import Any

import torch

from config import Config, learning_rate
from layer_defs import synchronize
from models import build_from_config
from normstudy.cli import SafePoints, progress_bar
from normstudy.datasets import Dataset, Split, training_order
from normstudy.kernels import is_bf16_emulated
from normstudy.storage import (
    METRICS_COLUMNS,
    RunDirectory,
    add_to_history,
    history_entry,
    identity_hash,
    load_state,
    save_checkpoint,
    save_probes,
    save_state,
    write_csv,
    write_json,
)
from normstudy.training.cuda_graphs import Graphs
from normstudy.training.epoch_losses import EpochLosses
from normstudy.training.evaluation import Evaluation
from normstudy.training.optimizer import Optimizer
from normstudy.training.probe_recorder import ProbeRecorder
from normstudy.training.processes import World
from normstudy.training.scalars import write_scalars
from normstudy.training.training_step import build_step

CALLS_BETWEEN_EXCHANGES = 10


class Diverged(Exception):
    """The loss or a gradient of the global step `step` is not finite."""

    def __init__(self, step: int) -> None:
        super().__init__(f"diverged at step {step}")
        self.step = step


class Training:
    """The training of one run on a Dataset on `device`, continued from the state in the run directory.

    `points` are the SafePoints at which a signal stops the run, after last.pt is written: between steps, and between
    batches of an evaluation. Only the first process of a `world` writes, and all stop at the same step.
    """

    def __init__(
        self,
        config: Config,
        run: RunDirectory,
        dataset: Dataset,
        fingerprint: str,
        device: torch.device,
        points: SafePoints,
        world: World,
    ) -> None:
        torch.manual_seed(config.seed)
        self.config, self.run, self.dataset, self.fingerprint = config, run, dataset, fingerprint
        self.device, self.points, self.world = device, points, world
        self.steps_per_epoch = math.ceil(len(dataset.train) / config.batch_size)
        model = build_from_config(config, len(dataset.classes))
        self.model = model.to(device).to(memory_format=torch.channels_last)
        self.optimizer = Optimizer(config, self.model)
        self.recorder = ProbeRecorder(self.model, world) if config.probe_layers else None
        self.parts = {"model": self.model, "optimizer": self.optimizer, "probes": self.recorder}
        self.progress = world.from_first(self.load)
        if config.sync_bn and world.size > 1:
            synchronize(self.model, world.mean)
        world.broadcast([*self.model.state_dict().values(), *self.optimizer.tensors()])
        has_graphs = config.cuda_graph and device.type == "cuda" and world.size == 1
        graphs = Graphs(device) if has_graphs else None
        self.step = build_step(config, self.model, self.optimizer, dataset.train, self.recorder, world, graphs)
        self.evaluate = Evaluation(config, self.model, world, graphs)
        self.saved_at = time.monotonic()
        self.pauses = 0

    def load(self) -> dict[str, Any]:
        """Load the last state; return its progress, with an entry in its history for what trains from here on."""
        progress = load_state(self.run, self.config, self.fingerprint, self.parts)
        origin = history_entry(self.steps_done(progress), self.device, self.world.size)
        add_to_history(progress["history"], origin)
        return progress

    def finish(self) -> None:
        """Train from the saved state to the end; write everything except the pictures, summary.json last."""
        config, run = self.config, self.run
        self.announce()
        if self.world.is_first and not self.steps_done(self.progress):
            save_checkpoint(run, config, self.model, 0, self.progress["files"])
        if self.world.is_first and self.progress["rows"]:
            self.write_metrics()  # a process killed right after it saved the state may not have written the last row
        try:
            diverged_at = self.train_epochs()
            summary = self.summarize(diverged_at)
        except KeyboardInterrupt as stop:
            how = "without --overwrite" if config.overwrite else "again"
            saved = f"{self.how_far()} of {config.epochs} epochs are saved"
            raise type(stop)(f"{saved}; run the same command {how} to continue") from None
        finally:
            if self.recorder is not None:
                self.recorder.close()
        if self.world.is_first:
            summary["files"]["metrics.csv"] = self.write_metrics()
            run.previous.unlink(missing_ok=True)
            write_json(run.summary, summary)

    def announce(self) -> None:
        """Print what is trained, on which device, and from which epoch."""
        if not self.world.is_first:
            return
        config = self.config
        where = f"{self.device}" if self.world.size == 1 else f"{self.world.size} × {self.device.type}"
        print(
            f"training {config.arch} with {config.norm_type} on {config.dataset} ({where}), "
            f"{self.how_far()} of {config.epochs} epochs done: {self.run.path}",
            flush=True,
        )
        if config.precision == "bf16" and is_bf16_emulated(self.device):
            print("this processor has no bf16 units: --precision=fp32 is many times as fast on it", file=sys.stderr)

    def train_epochs(self) -> int | None:
        """Train the remaining epochs; return the step at which the run diverged, or None."""
        try:
            while self.progress["epoch"] < self.config.epochs and not self.progress["reached_loss"]:
                self.train_epoch(self.progress["epoch"] + 1)
        except Diverged as divergence:
            return divergence.step
        return None

    def train_epoch(self, epoch: int) -> None:
        """Train one epoch; write its probes, checkpoint, state and row of metrics.csv. Raises Diverged."""
        config, progress = self.config, self.progress
        try:
            row, has_reached_loss = self.run_epoch(epoch)
        except Diverged as divergence:
            if self.recorder is not None:
                self.recorder.drop_after(divergence.step)
            self.dump_probes(epoch)
            raise
        if epoch % config.dump_every == 0 or epoch == config.epochs or has_reached_loss:
            self.dump_probes(epoch)
            if self.world.is_first:
                save_checkpoint(self.run, config, self.model, epoch, progress["files"])
        progress["epoch"], progress["reached_loss"] = epoch, has_reached_loss
        progress["rows"].append(row)
        progress["seconds"] += row["seconds"]
        self.save()
        if self.world.is_first:
            self.write_metrics()
            print(epoch_line(config, row), flush=True)
            if config.tensorboard:
                write_scalars(self.run, row)

    def run_epoch(self, epoch: int) -> tuple[dict[str, Any], bool]:
        """Take the steps of one epoch, then evaluate.

        Return its row of metrics.csv, and whether its training loss reached stop_at_loss. A loss on held-out images
        that is not finite is stored as None, and training continues. Raises Diverged.
        """
        config = self.config
        losses, start = EpochLosses(self.steps_per_epoch, self.device), time.perf_counter()
        begun = self.progress["within"]
        if begun is not None:
            losses.load_state_dict(begun)
            start -= begun["seconds"]
        row: dict[str, float | None] = {"epoch": epoch}
        last_step = epoch * self.steps_per_epoch - 1
        row["learning_rate"] = learning_rate(config, last_step, self.steps_per_epoch)
        row["train_loss"], row["train_accuracy"] = self.take_steps(epoch, losses, start)
        train_seconds = time.perf_counter() - start

        def evaluated(split: Split) -> tuple[float, float]:
            return self.evaluate(split, lambda: self.pause(losses, train_seconds))

        has_reached_loss = config.stop_at_loss is not None and evaluated(self.dataset.train)[0] <= config.stop_at_loss
        if epoch % config.eval_every == 0 or epoch == config.epochs or has_reached_loss:
            for name, held_out in (("validation", self.dataset.validation), ("test", self.dataset.test)):
                if held_out is not None:
                    loss, row[f"{name}_accuracy"] = evaluated(held_out)
                    row[f"{name}_loss"] = loss if math.isfinite(loss) else None
        row["seconds"] = time.perf_counter() - start
        row["images_per_second"] = len(self.dataset.train) / train_seconds
        return row, has_reached_loss

    def take_steps(self, epoch: int, losses: EpochLosses, start: float) -> tuple[float, float]:
        """Take the steps of an epoch, started at `start`, that `losses` lacks; return its mean loss and accuracy.

        Nothing waits for the device until all steps are queued. The progress bar shows new numbers once a second.
        Raises Diverged.
        """
        config, split, steps = self.config, self.dataset.train, self.steps_per_epoch
        first = (epoch - 1) * steps
        order, flips = training_order(split, config.seed, epoch, config.augment)
        self.model.train()
        has_diverged = False
        with progress_bar(len(split), f"epoch {epoch}/{config.epochs}", losses.samples) as bar:
            for index in range(losses.recorded, steps):
                batch = slice(index * config.batch_size, (index + 1) * config.batch_size)
                rate = learning_rate(config, first + index, steps)
                loss, correct = self.step(order[batch], flips[batch], rate, first + index)
                losses.record(loss, correct, len(order[batch]))
                bar.update(len(order[batch]))
                seen = losses.look()
                if seen is not None:
                    bar.set_postfix_str(f"loss {seen.loss:.4f}, acc {seen.accuracy:.1%}")
                    has_diverged = seen.bad_step is not None
                if self.pause(losses, time.perf_counter() - start, has_diverged):
                    break
        result = losses.result(config.batch_size)
        if result.bad_step is not None:
            raise Diverged(first + result.bad_step)
        return result.loss, result.accuracy

    def pause(self, losses: EpochLosses, seconds: float, has_diverged: bool = False) -> bool:
        """Within an epoch, save the state if it is due or a signal has arrived; the signal then stops the run.

        Return whether any process has seen a loss that is not finite. In that case nothing is saved. Several processes
        agree on all this at every tenth call.
        """
        self.pauses += 1
        if self.world.size > 1 and self.pauses % CALLS_BETWEEN_EXCHANGES:
            return False
        is_due = time.monotonic() - self.saved_at >= 60 * self.config.checkpoint_minutes
        signal, is_due_anywhere, has_diverged_anywhere = self.world.max_over_processes(
            self.points.signal(), is_due, has_diverged
        )
        if has_diverged_anywhere:
            return True
        if signal or is_due_anywhere:
            self.save(losses.state_dict() | {"seconds": seconds})
        self.points.check(signal)
        return False

    def check_signal(self) -> None:
        """Stop if a signal has arrived in any process."""
        self.points.check(*self.world.max_over_processes(self.points.signal()))

    def save(self, within: Mapping[str, Any] | None = None) -> None:
        """Write last.pt; `within` is the state of a partial epoch."""
        self.progress["within"] = within
        if self.world.is_first:
            save_state(self.run, self.config, self.fingerprint, self.parts, self.progress)
        self.saved_at = time.monotonic()

    def dump_probes(self, epoch: int) -> None:
        """Write the probe statistics since the last dump, if they are recorded."""
        if self.recorder is not None:
            dump = self.recorder.dump()
            if self.world.is_first:
                save_probes(self.run, epoch, dump, self.progress["files"])

    def write_metrics(self) -> str:
        """Write metrics.csv; return its SHA-256."""
        return write_csv(self.run.metrics, METRICS_COLUMNS, self.progress["rows"])

    def summarize(self, diverged_at: int | None) -> dict[str, Any]:
        """Return the content of summary.json: the result of the last epoch, or where the run diverged."""
        progress = self.progress
        summary = {"status": "done", "epochs_done": progress["epoch"], "seconds": progress["seconds"]}
        last = progress["rows"][-1] if progress["rows"] else {}
        for key in ("validation_loss", "validation_accuracy", "test_loss", "test_accuracy"):
            summary[key] = last.get(key)
        summary |= {"train_loss": None, "train_accuracy": None, "generalization_ratio": None}
        if diverged_at is not None:
            summary |= {"status": "diverged", "diverged_at_step": diverged_at}
        else:
            loss, accuracy = self.evaluate(self.dataset.train, self.check_signal)
            ratio = summary["test_accuracy"] / accuracy if accuracy else None
            summary |= {"train_loss": loss, "train_accuracy": accuracy, "generalization_ratio": ratio}
        if self.config.stop_at_loss is not None:
            summary["reached_loss"] = progress["reached_loss"]
        about = {"identity": identity_hash(self.config), "history": progress["history"]}
        return summary | about | {"files": dict(progress["files"])}

    def steps_done(self, progress: Mapping[str, Any]) -> int:
        """Return the number of global steps that a saved state contains."""
        within = progress["within"]
        return progress["epoch"] * self.steps_per_epoch + (len(within["losses"]) if within else 0)

    def how_far(self) -> str:
        """Return the number of epochs in the saved state as text: 3, or 3.25 within the fourth."""
        return f"{self.steps_done(self.progress) / self.steps_per_epoch:.4g}"


def epoch_line(config: Config, row: Mapping[str, Any]) -> str:
    """Return one line about a finished epoch, given its row of metrics.csv."""
    parts = [
        f"epoch {row['epoch']:>{len(str(config.epochs))}}/{config.epochs}",
        f"lr {row['learning_rate']:.3g}",
    ]
    for split in ("train", "validation", "test"):
        if f"{split}_loss" in row:
            loss = row[f"{split}_loss"]
            words = "not finite" if loss is None else f"{loss:.4f}"
            parts.append(f"{split} loss {words} acc {100 * row[f'{split}_accuracy']:.2f} %")
    minutes_left = row["seconds"] * (config.epochs - row["epoch"]) / 60
    speed = f"trained {row['images_per_second']:,.0f} img/s, {minutes_left:.0f} min left"
    parts.append(f"{row['seconds']:.1f} s ({speed})")
    return " | ".join(parts)

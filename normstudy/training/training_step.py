"""Training steps. Nothing in this module waits for the device."""

import math
from collections.abc import Sequence
from contextlib import nullcontext
from functools import partial
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from config import Config
from models import Network
from normstudy.datasets import Split, training_batch
from normstudy.training.cuda_graphs import Graphed, Graphs
from normstudy.training.optimizer import Optimizer
from normstudy.training.probe_recorder import ProbeRecorder
from normstudy.training.processes import ALONE, World


class StepResult(NamedTuple):
    """The mean loss, the number of correct predictions (both zero-dimensional), and the row of probes if recorded."""

    loss: torch.Tensor
    correct: torch.Tensor
    row: torch.Tensor | None


def forward_in_precision(config: Config, model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the logits (N, classes) in float32, computed in the run's precision."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits = model(images)
    return logits.float()


def loss_or_nan(loss: torch.Tensor, gradients: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the loss, or NaN if any gradient is not finite, without waiting for the device."""
    # Extremes cannot overflow, as a sum could. On the CPU, the infinity norm takes six times as long.
    if loss.device.type == "cpu":
        extremes = [extreme for gradient in gradients for extreme in (gradient.amax(), gradient.amin())]
    else:
        extremes = list(torch._foreach_norm(list(gradients), math.inf))
    return loss + 0 * torch.stack(extremes).abs().max()  # 0·∞ is NaN


class Step:
    """One training step on a batch of `split`, given by its indices (N,) and flips (see to_network_input).

    step(indices, flips, rate, iteration) returns the mean loss before the step (NaN if a gradient is not finite) and
    the number of correct predictions. Both are zero-dimensional tensors that stay valid until the next step. Probe
    statistics, if recorded, are kept under `iteration`. Each process of a `world` computes its share of the batch.
    """

    def __init__(
        self,
        config: Config,
        model: Network,
        optimizer: Optimizer,
        split: Split,
        recorder: ProbeRecorder | None = None,
        world: World = ALONE,
    ) -> None:
        self.config = config
        self.world = world
        self.model = model
        self.network = world.wrap(model)
        self.optimizer = optimizer
        self.split = split
        self.recorder = recorder

    def __call__(
        self, indices: torch.Tensor, flips: torch.Tensor, rate: float | torch.Tensor, iteration: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss, correct, row = self.compute(indices, flips, rate, self.recorder_at(iteration))
        self.keep(iteration, rate, row)
        return loss, correct

    def recorder_at(self, iteration: int) -> ProbeRecorder | None:
        """Return the recorder if it records this iteration, else None."""
        return self.recorder if iteration % self.config.probe_every == 0 else None

    def keep(self, iteration: int, rate: float | torch.Tensor, row: torch.Tensor | None) -> None:
        """Keep the row of probe statistics, if there is one, with the learning rate of the step."""
        if self.recorder is not None and row is not None:
            self.recorder.keep(iteration, row, float(rate))

    def compute(
        self, indices: torch.Tensor, flips: torch.Tensor, rate: float | torch.Tensor, recorder: ProbeRecorder | None
    ) -> StepResult:
        """Update the weights by one step; `recorder`, unless None, observes it."""
        (indices, flips), weight = self.world.share(indices, flips)
        images, labels = training_batch(self.split, indices, flips, self.config.image_size)
        with nullcontext() if recorder is None else recorder.observe() as observation:
            logits = forward_in_precision(self.config, self.network, images)
            loss = F.cross_entropy(logits, labels, label_smoothing=self.config.label_smoothing)
            if self.world.size > 1:
                loss = weight * loss
            self.optimizer.zero_grad()
            loss.backward()
            loss, correct = loss.detach(), (logits.argmax(1) == labels).sum()
            if self.world.size > 1:
                loss, correct = self.world.sum(torch.stack([loss / self.world.size, correct * (weight > 0)]))
            loss = loss_or_nan(loss, self.optimizer.gradients())
            self.optimizer.clip(self.config.clip_grad)
            self.optimizer.step(rate)
        return StepResult(loss, correct, None if observation is None else observation.row)


class GraphedStep(Step):
    """The same step on CUDA, launched as one graph: small batches are otherwise limited by kernel launches.

    The first steps run without a graph. Then one graph is captured for steps with probes and one for steps without.
    Batches of a size other than batch_size (the last of an epoch) never use a graph.
    """

    def __init__(
        self,
        config: Config,
        model: Network,
        optimizer: Optimizer,
        split: Split,
        recorder: ProbeRecorder | None,
        graphs: Graphs,
    ) -> None:
        super().__init__(config, model, optimizer, split, recorder)
        self.graphs = graphs
        device = split.labels.device
        self.indices = torch.zeros(config.batch_size, dtype=torch.int64, device=device)
        has_crops = config.augment == "crop"
        shape = (config.batch_size, 3) if has_crops else (config.batch_size,)
        self.flips = torch.zeros(shape, dtype=torch.int64 if has_crops else torch.bool, device=device)
        self.rate = torch.zeros((), device=device)
        # Keys: whether the step records probes.
        self.steps = {
            is_probed: Graphed(partial(self.compute, self.indices, self.flips, self.rate, each), graphs)
            for is_probed, each in ((True, recorder), (False, None))
        }

    def __call__(
        self, indices: torch.Tensor, flips: torch.Tensor, rate: float | torch.Tensor, iteration: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        if len(indices) != len(self.indices):
            return self.graphs.on_side_stream(
                lambda: super(GraphedStep, self).__call__(indices, flips, rate, iteration)
            )
        self.indices.copy_(indices)
        self.flips.copy_(flips)
        self.rate.fill_(rate)
        loss, correct, row = self.steps[self.recorder_at(iteration) is not None]()
        self.keep(iteration, rate, None if row is None else row.clone())
        return loss, correct


def build_step(
    config: Config,
    model: Network,
    optimizer: Optimizer,
    split: Split,
    recorder: ProbeRecorder | None = None,
    world: World = ALONE,
    graphs: Graphs | None = None,
) -> Step:
    """Return the step for the number of processes; with `graphs`, one that is captured."""
    if graphs is not None:
        return GraphedStep(config, model, optimizer, split, recorder, graphs)
    return Step(config, model, optimizer, split, recorder, world)

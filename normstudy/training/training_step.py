"""Training steps. Nothing in this module waits for the device."""

import math
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F

from config import Config
from models import Network
from normstudy.datasets import Split, training_batch
from normstudy.training.optimizer import Optimizer
from normstudy.training.probe_recorder import ProbeRecorder
from normstudy.training.processes import ALONE, World

STEPS_BEFORE_CAPTURE = 3  # libraries choose their kernels and allocate their buffers in these


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
    largest = torch.stack(torch._foreach_norm(list(gradients), math.inf)).max()  # cannot overflow, as a sum could
    return loss + 0 * largest  # 0·∞ is NaN


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
        self, config: Config, model: Network, optimizer: Optimizer, split: Split, recorder: ProbeRecorder | None = None
    ) -> None:
        super().__init__(config, model, optimizer, split, recorder)
        device = split.labels.device
        self.indices = torch.zeros(config.batch_size, dtype=torch.int64, device=device)
        has_crops = config.augment == "crop"
        shape = (config.batch_size, 3) if has_crops else (config.batch_size,)
        self.flips = torch.zeros(shape, dtype=torch.int64 if has_crops else torch.bool, device=device)
        self.rate = torch.zeros((), device=device)
        self.stream = torch.cuda.Stream(device)
        self.has_failed = False
        # Keys: whether the step records probes.
        self.steps = {True: 0, False: 0}
        self.graphs: dict[bool, tuple[torch.cuda.CUDAGraph, StepResult]] = {}

    def __call__(
        self, indices: torch.Tensor, flips: torch.Tensor, rate: float | torch.Tensor, iteration: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        recorder = self.recorder_at(iteration)
        is_probed = recorder is not None
        if self.has_failed or len(indices) != len(self.indices) or self.steps[is_probed] < STEPS_BEFORE_CAPTURE:
            self.steps[is_probed] += 1
            return self.on_side_stream(lambda: super(GraphedStep, self).__call__(indices, flips, rate, iteration))
        if is_probed not in self.graphs:
            try:
                self.graphs[is_probed] = self.capture(recorder)
            except RuntimeError as error:
                self.has_failed = True
                reason = str(error).partition("\n")[0]
                print(f"--cuda_graph: could not be captured ({reason}); continuing without it", file=sys.stderr)
                return self(indices, flips, rate, iteration)
        self.indices.copy_(indices)
        self.flips.copy_(flips)
        self.rate.fill_(rate)
        graph, (loss, correct, row) = self.graphs[is_probed]
        graph.replay()
        self.keep(iteration, rate, None if row is None else row.clone())
        return loss, correct

    def on_side_stream(
        self, function: Callable[[], tuple[torch.Tensor, torch.Tensor]]
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Run function() on a separate stream, where steps have to run before they are captured."""
        current = torch.cuda.current_stream(self.rate.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = function()
        current.wait_stream(self.stream)
        return result

    def capture(self, recorder: ProbeRecorder | None) -> tuple[torch.cuda.CUDAGraph, StepResult]:
        """Return (graph, its results). Capturing computes nothing; the first replay does."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            results = self.compute(self.indices, self.flips, self.rate, recorder)
        return graph, results


def build_step(
    config: Config,
    model: Network,
    optimizer: Optimizer,
    split: Split,
    recorder: ProbeRecorder | None = None,
    world: World = ALONE,
) -> Step:
    """Return the step for the device, the flags and the number of processes."""
    if config.cuda_graph and split.labels.device.type == "cuda" and world.size == 1:
        return GraphedStep(config, model, optimizer, split, recorder)
    return Step(config, model, optimizer, split, recorder, world)

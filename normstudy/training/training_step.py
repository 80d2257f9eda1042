"""Training steps, and the losses of an epoch. Nothing here waits for the device until an epoch is over."""

import math
import sys
from contextlib import nullcontext

import torch
from torch.nn import functional as F

from normstudy.datasets import training_batch
from normstudy.kernels import loss_or_nan
from normstudy.training.processes import World

STEPS_BEFORE_CAPTURE = 3  # in which libraries choose their kernels and allocate what they keep


def forward_in_precision(config, model, images):
    """The logits (N, classes) in float32, computed in the run's precision."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits = model(images)
    return logits.float()


class Step:
    """One step of SGD on a batch of `split`, given by its indices and flips (N,), both on the split's device.

    step(indices, flips, rate, iteration) gives the mean loss before the step (NaN where a gradient is not finite) and
    the number of right answers, both zero-dimensional tensors that stay valid until the next step. Probes are kept
    under `iteration`, if recorded. Where several processes make up a `world`, each computes its share of the batch.
    """

    def __init__(self, config, model, optimizer, split, recorder=None, world=None):
        self.config = config
        self.world = world or World()
        self.model = model
        self.network = self.world.wrap(model)
        self.optimizer = optimizer
        self.split = split
        self.recorder = recorder

    def __call__(self, indices, flips, rate, iteration):
        loss, correct, row = self.compute(indices, flips, rate, self.is_probed(iteration))
        if row is not None:
            self.recorder.keep(iteration, row)
        return loss, correct

    def is_probed(self, iteration):
        return self.recorder is not None and iteration % self.config.probe_every == 0

    def compute(self, indices, flips, rate, is_probed):
        """(loss, right answers, the recorder's row or None), the weights changed."""
        (indices, flips), weight = self.world.share(indices, flips)
        images, labels = training_batch(self.split, indices, flips, self.config.image_size)
        with self.recorder.observe() if is_probed else nullcontext() as observed:
            logits = forward_in_precision(self.config, self.network, images)
            loss = F.cross_entropy(logits, labels)
            if self.world.size > 1:
                loss = weight * loss
            self.optimizer.zero_grad()
            loss.backward()
        loss, correct = loss.detach(), (logits.argmax(1) == labels).sum()
        if self.world.size > 1:
            loss, correct = self.world.sum(torch.stack([loss / self.world.size, correct * (weight > 0)]))
        loss = loss_or_nan(loss, [parameter.grad for parameter in self.optimizer.parameters])
        self.optimizer.step(rate)
        return loss, correct, observed.row if is_probed else None


class GraphedStep(Step):
    """The same step on CUDA, launched as one graph: small batches are otherwise bound by the launches of kernels.

    The first steps run as they are; then one graph is captured for steps with probes and one for steps without.
    Batches of another size than batch_size (the last of an epoch) never go through a graph.
    """

    def __init__(self, config, model, optimizer, split, recorder=None):
        super().__init__(config, model, optimizer, split, recorder)
        device = split.labels.device
        self.indices = torch.zeros(config.batch_size, dtype=torch.int64, device=device)
        self.flips = torch.zeros(config.batch_size, dtype=torch.bool, device=device)
        self.rate = torch.zeros((), device=device)
        self.stream = torch.cuda.Stream(device)
        self.graphs = {}
        self.has_failed = False
        self.steps = {True: 0, False: 0}

    def __call__(self, indices, flips, rate, iteration):
        is_probed = self.is_probed(iteration)
        if self.has_failed or len(indices) != len(self.indices) or self.steps[is_probed] < STEPS_BEFORE_CAPTURE:
            self.steps[is_probed] += 1
            return self.on_side_stream(super().__call__, indices, flips, rate, iteration)
        if is_probed not in self.graphs:
            try:
                self.graphs[is_probed] = self.capture(is_probed)
            except RuntimeError as error:
                self.has_failed = True
                reason = str(error).partition("\n")[0]
                print(f"--cuda_graph: could not be captured ({reason}); going on without", file=sys.stderr)
                return self(indices, flips, rate, iteration)
        self.indices.copy_(indices)
        self.flips.copy_(flips)
        self.rate.fill_(rate)
        graph, (loss, correct, row) = self.graphs[is_probed]
        graph.replay()
        if is_probed:
            self.recorder.keep(iteration, row.clone())
        return loss, correct

    def on_side_stream(self, function, *arguments):
        """function(*arguments) on a stream of its own, as what is captured later needs it to have run."""
        current = torch.cuda.current_stream(self.rate.device)
        self.stream.wait_stream(current)
        with torch.cuda.stream(self.stream):
            result = function(*arguments)
        current.wait_stream(self.stream)
        return result

    def capture(self, is_probed):
        """(graph, what compute gave in it). Capturing computes nothing: the first replay does."""
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            results = self.compute(self.indices, self.flips, self.rate, is_probed)
        return graph, results


def build_step(config, model, optimizer, split, recorder=None, world=None):
    """The step that suits the device, the flags and the processes."""
    if config.cuda_graph and split.labels.device.type == "cuda" and (world is None or world.size == 1):
        return GraphedStep(config, model, optimizer, split, recorder)
    return Step(config, model, optimizer, split, recorder, world)


def count_steps(samples, batch_size):
    """Steps in one epoch; the last batch may be smaller."""
    return math.ceil(samples / batch_size)

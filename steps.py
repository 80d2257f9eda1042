"""Training steps, and the losses of an epoch. Nothing here waits for the device until an epoch is over."""

import math
import sys
import time
from contextlib import nullcontext

import torch
from torch.nn import functional as F
from torch.optim.sgd import sgd

from data import training_batch
from distributed import World

LOOK_SECONDS = 1.0  # between looks at the losses
RECENT = 50  # steps whose mean loss is shown
STEPS_BEFORE_CAPTURE = 3  # in which libraries choose their kernels and allocate what they keep


def forward(config, model, images):
    """The logits (N, classes) in float32, computed in the run's precision."""
    with torch.autocast(images.device.type, torch.bfloat16, enabled=config.precision == "bf16"):
        logits = model(images)
    return logits.float()


class SGD:
    """Stochastic gradient descent with momentum and an L2 penalty on every parameter, as torch.optim.SGD takes it.

    v ← momentum · v + gradient + weight_decay · w, then w ← w − rate · v. The arithmetic is torch's; its class is
    not used, because the first one that is made imports torch's compiler, which takes seconds.
    """

    def __init__(self, parameters, momentum, weight_decay):
        self.parameters = list(parameters)
        self.settings = {"momentum": momentum, "weight_decay": weight_decay}
        self.velocities = [torch.zeros_like(parameter) if momentum else None for parameter in self.parameters]

    @torch.no_grad()
    def step(self, rate):
        """Moves the parameters along their gradients; rate is a number or a zero-dimensional tensor beside them."""
        gradients = [parameter.grad for parameter in self.parameters]
        is_fused = self.parameters[0].device.type != "mps"
        fixed = {"dampening": 0.0, "nesterov": False, "maximize": False, "fused": is_fused}
        sgd(self.parameters, gradients, self.velocities, lr=rate, **self.settings, **fixed)

    def zero_grad(self):
        for parameter in self.parameters:
            parameter.grad = None

    def tensors(self):
        """The velocities that there are."""
        return [velocity for velocity in self.velocities if velocity is not None]

    def state_dict(self):
        return {"velocities": self.velocities}

    def load_state_dict(self, state):
        """Takes back what state_dict() gave. Raises ValueError where it is of other parameters."""
        velocities = state["velocities"]
        shapes = [[None if v is None else v.shape for v in each] for each in (self.velocities, velocities)]
        if shapes[0] != shapes[1]:
            raise ValueError("the optimizer's state is of other parameters")
        for own, loaded in zip(self.velocities, velocities, strict=True):
            if own is not None:
                own.copy_(loaded)


def loss_or_nan(loss, gradients):
    """The loss; NaN, where any gradient is not finite. Nothing waits for the device."""
    if loss.device.type == "cpu":
        total = torch.stack([gradient.sum() for gradient in gradients]).sum()
    else:
        total = torch.nn.utils.get_total_norm(gradients)
    return loss + 0 * total  # 0·∞ is NaN


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
            logits = forward(self.config, self.network, images)
            loss = F.cross_entropy(logits, labels)
            if self.world.size > 1:
                loss = weight * loss
            self.optimizer.zero_grad()
            loss.backward()
        loss, correct = loss.detach(), (logits.argmax(1) == labels).sum()
        if self.world.size > 1:
            loss, correct = self.world.total(torch.stack([loss / self.world.size, correct * (weight > 0)]))
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
            return self.beside(super().__call__, indices, flips, rate, iteration)
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

    def beside(self, function, *arguments):
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


class Losses:
    """The losses and right answers of one epoch, kept on the device and looked at without waiting for it."""

    def __init__(self, steps, device):
        self.losses = torch.zeros(steps, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.samples = self.recorded = 0
        self.looked = time.perf_counter()
        self._begun = None

    def record(self, loss, correct, samples):
        """Keeps what a step gave for a batch of `samples`."""
        self.losses[self.recorded] = loss
        self.correct += correct.to(self.correct.dtype)
        self.recorded += 1
        self.samples += samples

    def state_dict(self):
        """What the next process needs to go on within the epoch."""
        losses = self.losses[: self.recorded].cpu()
        return {"losses": losses, "correct": int(self.correct), "samples": self.samples}

    def load_state_dict(self, state):
        """Takes back what state_dict() gave."""
        self.recorded, self.samples = len(state["losses"]), state["samples"]
        self.losses[: self.recorded] = state["losses"]
        self.correct.fill_(state["correct"])

    def look(self):
        """(mean loss of the last steps, accuracy so far, first step that was not finite or None), or None: at most
        once in LOOK_SECONDS, and of some steps ago on a device that is still at work."""
        if self._begun is None and time.perf_counter() - self.looked >= LOOK_SECONDS:
            self._begin()
        if self._begun is None:
            return None
        values, samples, event = self._begun
        if event is not None and not event.query():
            return None
        self._begun = None
        self.looked = time.perf_counter()
        loss, correct, bad, first_bad = values.tolist()
        return loss, correct / samples, int(first_bad) if bad else None

    def _begin(self):
        """Starts to copy what look() tells, and notes when it will be there."""
        so_far = self.losses[: self.recorded]
        bad = (~so_far.isfinite()).float()  # float32 throughout: not every device has float64
        values = torch.stack([so_far[-RECENT:].mean(), self.correct.float(), bad.max(), bad.argmax().float()])
        event = None
        if values.device.type == "cuda":
            values = torch.empty(len(values), dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        elif values.device.type != "cpu":
            values = values.cpu()
        self._begun = values, self.samples, event

    def result(self, batch_size):
        """(mean loss over samples, accuracy, first step that was not finite or None) of the whole epoch."""
        losses = self.losses[: self.recorded].cpu().double()
        bad = (~losses.isfinite()).nonzero()
        sizes = torch.full_like(losses, batch_size)
        sizes[-1] = self.samples - batch_size * (self.recorded - 1)
        mean = (losses @ sizes / self.samples).item()
        return mean, self.correct.item() / self.samples, int(bad[0]) if len(bad) else None


def steps_in(samples, batch_size):
    """Steps in one epoch; the last batch may be smaller."""
    return math.ceil(samples / batch_size)

"""One run on several devices: what the processes that torchrun starts share out and put together again.

Every process holds all images and walks through the same batches; each computes its share of a batch, gradients are
averaged by DistributedDataParallel, and the first process alone writes. A World of one process does nothing of this.
"""

import itertools
import os
import warnings
from datetime import timedelta

import torch
import torch.distributed as dist

from normstudy.cli import RunError, UsageError
from normstudy.kernels import pick_device

LONGEST_WAIT = timedelta(hours=2)  # for the first process, which may have many images to decode


def count_processes():
    """How many processes torchrun, or what sets the same variables, started for this run."""
    return int(os.environ.get("WORLD_SIZE", "1")) if "RANK" in os.environ else 1


def join_processes(device_name):
    """(World, torch.device) of this process, which meets the others here. Raises UsageError where there are fewer GPUs
    than processes on this machine, RunError where the others cannot be met."""
    if count_processes() == 1:
        return World(), pick_device(device_name)
    device = _device_of_process(device_name)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    try:
        store, rank, size = next(dist.rendezvous("env://", timeout=LONGEST_WAIT))
        if int(os.environ.get("LOCAL_WORLD_SIZE", "0")) == size:
            # torchrun's store outlives a restart, with the addresses of the dead in it; the count of restarts tells
            # attempts apart where one machine has all processes.
            store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes of this run cannot meet: {str(error).splitlines()[0]}") from None
    return World(rank, size, device), device


def _device_of_process(name):
    """The GPU of this process on its machine, or the CPU where that is asked for or all there is."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device={name} is one device for all processes of torchrun: leave it out, or cpu")
    if name == "cpu":
        return torch.device("cpu")
    local, there = int(os.environ.get("LOCAL_RANK", "0")), torch.cuda.device_count()
    beside = int(os.environ.get("LOCAL_WORLD_SIZE", local + 1))
    if beside > there:
        raise UsageError(f"torchrun started {beside} processes, and here are {there} GPUs: --nproc_per_node={there}")
    torch.cuda.set_device(local)
    return torch.device("cuda", local)


class World:
    """The processes of one run: this is number `rank` of `size`, and the first one, 0, writes."""

    def __init__(self, rank=0, size=1, device=None):
        self.rank, self.size, self.device = rank, size, device
        self.counts = [0] * size  # samples of each process in the batch that was last shared out

    @property
    def is_first(self):
        return self.rank == 0

    def from_first(self, function):
        """What function() gives in the first process, in all of them; where it raises there, all of them end."""
        if self.size == 1:
            return function()
        answer, failure = [None, False], None
        if self.is_first:
            try:
                answer[0] = function()
            except BaseException as error:
                answer[1], failure = True, error
        dist.broadcast_object_list(answer, device=torch.device("cpu"))
        if failure is not None:
            raise failure
        if answer[1]:
            raise SystemExit(1)  # the first process says why
        return answer[0]

    def max_over_processes(self, *numbers):
        """The largest that any process has of each whole number. Waits for the processes, not for their GPUs."""
        if self.size == 1:
            return numbers
        values = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return tuple(values.tolist())

    def sum(self, values):
        """The sum of a tensor over processes, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, tensors):
        """Overwrites tensors by those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wrap(self, model):
        """The network as training calls it: its gradients become the averages over processes."""
        if self.size == 1:
            return model
        # Said of parameters with dimensions of size 1, whose strides mean nothing.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        devices = None if self.device.type == "cpu" else [self.device]
        return torch.nn.parallel.DistributedDataParallel(model, devices, gradient_as_bucket_view=True)

    def share(self, *batch):
        """(this process's part of tensors (N, ...), the weight of its mean loss in the average over processes).

        Parts are as equal as can be. Where a batch has fewer samples than there are processes, some take a sample
        with weight 0, so that all of them meet in every collective.
        """
        if self.size == 1:
            return batch, 1.0
        samples = len(batch[0])
        edges = [samples * rank // self.size for rank in range(self.size + 1)]
        self.counts = [after - before for before, after in itertools.pairwise(edges)]
        own = slice(edges[self.rank], edges[self.rank + 1]) if self.counts[self.rank] else slice(0, 1)
        return [part[own] for part in batch], self.size * self.counts[self.rank] / samples

    def mean(self, values):
        """The mean over samples of a tensor that is the mean over this process's: differentiable, equal in all."""
        return _Total.apply(values * (self.counts[self.rank] / sum(self.counts)))

    def gather(self, x, owner):
        """The whole batch (N, ...) of which x is this process's part, in process `owner`; None in the others."""
        if self.size == 1:
            return x
        x = x.detach()[: self.counts[self.rank]]
        last = x.dim() == 4
        rows = (x.permute(0, 2, 3, 1) if last else x).contiguous()
        padded = rows.new_zeros(max(self.counts), *rows.shape[1:])
        padded[: len(rows)] = rows
        as_bytes = padded.view(torch.uint8)  # whose transfer every backend knows
        parts = [torch.empty_like(as_bytes) for _ in self.counts] if self.rank == owner else None
        dist.gather(as_bytes, parts, owner)
        if parts is None:
            return None
        whole = torch.cat([part.view(x.dtype)[:count] for part, count in zip(parts, self.counts, strict=True)])
        return whole.permute(0, 3, 1, 2) if last else whole

    def leave(self):
        """Ends the meeting, where all have come to the end."""
        if self.size > 1:
            self.max_over_processes(0)
            dist.destroy_process_group()


class _Total(torch.autograd.Function):
    """The sum over processes, differentiated: every process's loss depends on every process's term."""

    @staticmethod
    def forward(ctx, values):
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx, gradient):
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def is_lost_process(error):
    """Whether an exception says that another process of this run is gone."""
    words = ("gloo", "nccl", "connection", "process group", "broken pipe", "timed out")
    return (
        count_processes() > 1 and isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)
    )

"""One run on several devices: the communication between the processes that torchrun starts.

Every process holds all images and goes through the same batches, and each computes its share of a batch. Gradients are
averaged by DistributedDataParallel, and only the first process writes. A World of one process communicates nothing.
"""

import itertools
import warnings
from collections.abc import Callable, Iterable, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from normstudy.cli import RunError, UsageError, is_one_of_several, launcher_number, place_among_processes
from normstudy.kernels import pick_device
from normstudy.training.rendezvous import meet

LONGEST_WAIT = timedelta(hours=2)  # the first process may have many images to decode
T = TypeVar("T")


def join_processes(device_name: str) -> tuple["World", torch.device]:
    """Connect to the other processes of this run; return (World, the device of this process).

    Raises UsageError if --device names a single device or this machine has fewer GPUs than processes, and RunError if
    the others cannot be reached.
    """
    rank, size = place_among_processes()
    if size == 1:
        return World(), pick_device(device_name)
    device = _device_of_process(device_name)
    backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
    store = meet()
    store.set_timeout(LONGEST_WAIT)
    try:
        dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=LONGEST_WAIT)
    except (RuntimeError, ValueError) as error:
        raise RunError(f"the processes of this run cannot connect: {str(error).splitlines()[0]}") from None
    return World(rank, size), device


def _device_of_process(name: str) -> torch.device:
    """Return the GPU of this process on its machine, or the CPU if it was chosen or there is no GPU."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise UsageError(f"--device={name} is one device for all processes of torchrun: leave it out or use cpu")
    if name == "cpu":
        return torch.device("cpu")
    local_rank, gpus = launcher_number("LOCAL_RANK", 0), torch.cuda.device_count()
    local_size = launcher_number("LOCAL_WORLD_SIZE", local_rank + 1)
    if local_size > gpus:
        raise UsageError(
            f"torchrun started {local_size} processes, but this machine has {gpus} GPUs: use --nproc_per_node={gpus}"
        )
    torch.cuda.set_device(local_rank)
    return torch.device("cuda", local_rank)


class World:
    """The processes of one run. This one is number `rank` of `size`; number 0 is the first one, which writes."""

    def __init__(self, rank: int = 0, size: int = 1) -> None:
        self.rank, self.size = rank, size
        self.share_sizes = [0] * size  # samples of each process in the batch shared last

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def from_first(self, function: Callable[[], T]) -> T:
        """Call function() in the first process only and return its result in all; if it raises, all of them end."""
        if self.size == 1:
            return function()
        result, failure = None, None
        if self.is_first:
            try:
                result = function()
            except BaseException as error:
                failure = error
        answer: list[Any] = [result, failure is not None]
        dist.broadcast_object_list(answer, device=torch.device("cpu"))
        if failure is not None:
            raise failure
        if answer[1]:
            raise SystemExit(1)  # the first process prints the reason
        return answer[0]

    def first_before_others(self, function: Callable[[], T]) -> T:
        """Return the result of function(), called in every process; the others wait until the first has called it.

        If it raises in the first one, all of them end.
        """
        results: list[T] = []
        self.from_first(lambda: results.append(function()))
        return results[0] if results else function()

    def max_over_processes(self, *numbers: int) -> tuple[int, ...]:
        """Return the maximum over processes of each integer. Waits for the processes, not for their GPUs."""
        if self.size == 1:
            return numbers
        values = torch.tensor(numbers, dtype=torch.int64)
        dist.all_reduce(values, dist.ReduceOp.MAX)
        return tuple(values.tolist())

    def sum(self, values: torch.Tensor) -> torch.Tensor:
        """Sum a tensor over processes, in place; return it."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def broadcast(self, tensors: Iterable[torch.Tensor]) -> None:
        """Overwrite tensors with those of the first process."""
        if self.size > 1:
            for tensor in tensors:
                dist.broadcast(tensor, 0)

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the network as training calls it, with gradients averaged over processes."""
        if self.size == 1:
            return model
        # PyTorch warns about parameters with dimensions of size 1, whose strides mean nothing.
        warnings.filterwarnings("ignore", message="Grad strides do not match bucket view strides")
        device = next(model.parameters()).device
        devices = None if device.type == "cpu" else [device]
        return nn.parallel.DistributedDataParallel(model, devices, gradient_as_bucket_view=True)

    def share(self, *batch: torch.Tensor) -> tuple[Sequence[torch.Tensor], float]:
        """Return (this process's part of tensors (N, ...), the weight of its mean loss in the average over processes).

        Parts are as equal as possible. If a batch has fewer samples than there are processes, some processes take a
        sample with weight 0, so that all of them take part in every collective operation.
        """
        if self.size == 1:
            return batch, 1.0
        samples = len(batch[0])
        edges = [samples * rank // self.size for rank in range(self.size + 1)]
        self.share_sizes = [after - before for before, after in itertools.pairwise(edges)]
        own_size = self.share_sizes[self.rank]
        own = slice(edges[self.rank], edges[self.rank + 1]) if own_size else slice(0, 1)
        return [part[own] for part in batch], self.size * own_size / samples

    def mean(self, values: torch.Tensor) -> torch.Tensor:
        """Return the mean over all samples, given that of this process: differentiable, the same in all processes."""
        return _Total.apply(values * (self.share_sizes[self.rank] / sum(self.share_sizes)))

    def gather(self, x: torch.Tensor, owner: int) -> torch.Tensor | None:
        """Return the whole batch (N, ...) in process `owner`, None in the others; x is this process's part of it."""
        if self.size == 1:
            return x
        x = x.detach()[: self.share_sizes[self.rank]]
        is_map = x.dim() == 4  # stored with its channels last
        rows = (x.permute(0, 2, 3, 1) if is_map else x).contiguous()
        padded = rows.new_zeros(max(self.share_sizes), *rows.shape[1:])
        padded[: len(rows)] = rows
        as_bytes = padded.view(torch.uint8)  # every backend can transfer bytes
        parts = [torch.empty_like(as_bytes) for _ in self.share_sizes] if self.rank == owner else None
        dist.gather(as_bytes, parts, owner)
        if parts is None:
            return None
        whole = torch.cat([part.view(x.dtype)[:size] for part, size in zip(parts, self.share_sizes, strict=True)])
        return whole.permute(0, 3, 1, 2) if is_map else whole

    def leave(self) -> None:
        """Disconnect once all processes have finished."""
        if self.size > 1:
            self.max_over_processes(0)
            dist.destroy_process_group()


ALONE = World()


class _Total(torch.autograd.Function):
    """The differentiable sum over processes: each process's loss depends on the terms of all processes."""

    @staticmethod
    def forward(ctx: Any, values: torch.Tensor) -> torch.Tensor:
        values = values.clone()
        dist.all_reduce(values)
        return values

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> torch.Tensor:
        gradient = gradient.clone()
        dist.all_reduce(gradient)
        return gradient


def is_lost_process(error: BaseException) -> bool:
    """Whether an exception means that another process of this run has died."""
    words = ("gloo", "nccl", "connection", "process group", "broken pipe", "timed out")
    return is_one_of_several() and isinstance(error, RuntimeError) and any(word in str(error).lower() for word in words)

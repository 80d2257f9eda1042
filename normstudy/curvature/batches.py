"""Batches (inputs, targets): their form, their samples, and whether each pass over them gives the same."""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

Batch = tuple[Any, Any]  # (inputs, targets). Inputs are a tensor, or a tuple, list or dict of tensors
Batches = Iterable[Batch]


def repeatable(batches: Batches) -> Batches:
    """Return batches that can be iterated repeatedly: an iterator is stored as a list.

    Raises ValueError for a single batch.
    """
    if isinstance(batches, Mapping) or (
        isinstance(batches, tuple | list) and any(isinstance(each, torch.Tensor) for each in batches)
    ):
        raise ValueError("batches must be a list of pairs; write a single batch as [(inputs, targets)]")
    return list(batches) if isinstance(batches, Iterator) else batches


def as_pair(batch: Any) -> Batch:
    """Return (inputs, targets) of a batch. Raises ValueError if it is not such a pair."""
    if isinstance(batch, Mapping):
        raise ValueError(
            "a batch is a dict, but must be a pair (inputs, targets), such as (batch, batch.pop('labels'))"
        )
    if not isinstance(batch, tuple | list) or len(batch) != 2:
        raise ValueError(f"a batch is {_kind_of(batch)}, but must be a pair (inputs, targets)")
    return batch[0], batch[1]


def as_arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return (args, kwargs) of the call model(*args, **kwargs): a dict gives keywords, a tuple or list arguments."""
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (tuple(inputs), {}) if isinstance(inputs, tuple | list) else ((inputs,), {})


def map_tensors(function: Callable[[torch.Tensor], Any], values: Any) -> Any:
    """Apply a function to every tensor in nested tuples, lists and dicts; other values stay as they are."""
    if isinstance(values, torch.Tensor):
        return function(values)
    if isinstance(values, Mapping):
        return {name: map_tensors(function, value) for name, value in values.items()}
    if isinstance(values, tuple | list):
        return tuple(map_tensors(function, value) for value in values)
    return values


def tensors_in(values: Any) -> list[torch.Tensor]:
    """Return all tensors in nested tuples, lists and dicts."""
    found: list[torch.Tensor] = []
    map_tensors(found.append, values)
    return found


def move(values: Any, reference: torch.Tensor) -> Any:
    """Move tensors to the device of `reference`, and floating-point ones to its dtype."""

    def moved(tensor: torch.Tensor) -> torch.Tensor:
        tensor = tensor.to(reference.device, reference.dtype if tensor.is_floating_point() else None)
        with torch.inference_mode(False):
            return tensor.clone() if tensor.is_inference() else tensor  # autograd does not take inference tensors

    return map_tensors(moved, values)


def num_samples(targets: Any) -> int:
    """Return the number of samples of a batch: the length of its first target.

    Raises ValueError if there is none.
    """
    tensors = tensors_in(targets)
    if not tensors or tensors[0].dim() == 0 or len(tensors[0]) == 0:
        raise ValueError(f"the targets of a batch are {_kind_of(targets)}, but must be tensors with a row per sample")
    return len(tensors[0])


def take(batch: Batch, rows: slice) -> Batch:
    """Return some samples of a batch, or the whole batch if a tensor of its inputs has no row for each sample."""
    samples = num_samples(batch[1])
    if any(tensor.dim() == 0 or len(tensor) != samples for tensor in tensors_in(batch)):
        return batch
    return map_tensors(lambda tensor: tensor[rows], batch)


def digests(batch: Batch) -> list[bytes]:
    """Return a digest of each sample of a batch, or one digest if it cannot be divided into samples."""
    samples = num_samples(batch[1])
    tensors = [tensor.detach().cpu().contiguous() for tensor in tensors_in(batch)]
    if any(tensor.dim() == 0 or len(tensor) != samples for tensor in tensors):
        return [_digest(tensors)]
    return [_digest([tensor[index] for tensor in tensors]) for index in range(samples)]


def _digest(tensors: list[torch.Tensor]) -> bytes:
    digest = hashlib.blake2b(digest_size=8)
    for tensor in tensors:
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.digest()


def _kind_of(value: Any) -> str:
    """Return a short description of a value for a message."""
    if isinstance(value, torch.Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    length = f" of length {len(value)}" if isinstance(value, tuple | list) else ""
    return f"a {type(value).__name__}{length}"

"""A plan that fits the measurement of a Hessian into memory."""

import argparse
import math
from dataclasses import dataclass

import torch

from normstudy.cli import RunError
from normstudy.curvature import FEWEST_SAMPLES, bytes_per_sample
from normstudy.datasets import Split
from normstudy.kernels import free_memory, pick_device
from normstudy.measures.checkpoints import Checkpoint

BATCH_SHARE = 0.25  # fraction of the free memory; gradients and temporary tensors need more
GRAPHS_SHARE = 0.4
BASIS_SHARE = 0.8


@dataclass(frozen=True)
class MemoryPlan:
    """The batch size, the number of Lanczos vectors and their device, and the bytes that each needs."""

    batch_size: int
    batch_bytes: float  # memory that a product keeps for its backward pass
    lanczos_steps: int  # one vector each
    basis_device: str
    basis_bytes: int
    graph_bytes: float  # memory of the gradient graphs of all batches; 0 if none are kept


def plan_memory(checkpoint: Checkpoint, subset: Split, args: argparse.Namespace, dimension: int) -> MemoryPlan:
    """Return the MemoryPlan for a matrix with `dimension` rows. Raises the errors of fit_batch and place_basis."""
    batch_size, batch_bytes = fit_batch(checkpoint, subset, args)
    vector_bytes = dimension * next(checkpoint.model.parameters()).element_size()
    steps = min(args.lanczos_steps, dimension)
    vectors = max(steps, 2 * args.eigenvectors + 11 if args.eigenvectors else 0)
    basis_bytes = min(vectors, dimension + 1) * vector_bytes
    basis_device = place_basis(args, checkpoint.device, basis_bytes)
    spared = basis_bytes if basis_device == str(checkpoint.device) else 0
    graph_bytes = fit_graphs(checkpoint, subset, args, batch_size, vector_bytes, spared)
    return MemoryPlan(batch_size, batch_bytes, steps, basis_device, basis_bytes, graph_bytes)


def fit_batch(checkpoint: Checkpoint, subset: Split, args: argparse.Namespace) -> tuple[int, float]:
    """Return the batch size and the bytes that a product keeps for its backward pass.

    The batch size is --batch_size, or less if such a batch needs more than BATCH_SHARE of the free memory. Raises
    RunError if it must be smaller and --bn_mode=train forbids that.
    """
    blocks = args.image_blocks if args.bn_mode == "train" else 1
    batch_size = math.ceil(len(subset) / blocks) if blocks > 1 else min(args.batch_size, len(subset))
    per_sample = _bytes_per_sample(checkpoint, subset, args, keep_graphs=False)
    free = free_memory(checkpoint.device)
    fitting = max(1, int(min(batch_size, BATCH_SHARE * free / max(per_sample, 1))))
    if fitting < batch_size and args.bn_mode == "train":
        raise RunError(
            f"a batch of {batch_size} takes {per_sample * batch_size / 1e9:.1f} GB, but {checkpoint.device} has "
            f"{free / 1e9:.1f} GB free; "
            + (
                f"raise --image_blocks to {math.ceil(len(subset) / fitting)} or more"
                if blocks > 1
                else f"lower --batch_size to {fitting} or less"
            )
        )
    return fitting, per_sample * fitting


def place_basis(args: argparse.Namespace, device: torch.device, basis_bytes: int) -> str:
    """Return the name of the device that stores the Lanczos vectors.

    Raises RunError if they do not fit, and UsageError if this machine lacks the device.
    """
    names = [args.basis_device] if args.basis_device != "auto" else dict.fromkeys([str(device), "cpu"])
    for name in names:
        free = free_memory(pick_device(name))
        if basis_bytes < BASIS_SHARE * free:
            return name
    raise RunError(
        f"{args.lanczos_steps} Lanczos vectors (or those of --eigenvectors) take {basis_bytes / 1e9:.1f} GB, but "
        f"{name} has {free / 1e9:.1f} GB free; lower --lanczos_steps to "
        f"{int(args.lanczos_steps * BASIS_SHARE * free / basis_bytes)} or less"
    )


def fit_graphs(
    checkpoint: Checkpoint,
    subset: Split,
    args: argparse.Namespace,
    batch_size: int,
    vector_bytes: int,
    spared: int,
) -> float:
    """Return the bytes that the gradient graphs of all batches need, or 0 if they are not to be kept.

    They are kept if they fit into GRAPHS_SHARE of the free memory that remains after `spared` bytes are set aside.
    """
    if args.curvature != "hessian" or len(subset) < FEWEST_SAMPLES:
        return 0
    images = len(subset) * _bytes_per_sample(checkpoint, subset, args, keep_graphs=True)
    # Each graph has its own gradients, and its own weights with the following norms folded in.
    weights = 2 * vector_bytes * math.ceil(len(subset) / batch_size)
    return images + weights if images + weights < GRAPHS_SHARE * (free_memory(checkpoint.device) - spared) else 0


def _bytes_per_sample(checkpoint: Checkpoint, subset: Split, args: argparse.Namespace, keep_graphs: bool) -> float:
    """Return bytes_per_sample for the first images of a subset; 0 if the subset is too small to need a plan."""
    if len(subset) < FEWEST_SAMPLES:
        return 0
    batch = next(checkpoint.batches(subset.take(slice(0, FEWEST_SAMPLES)), FEWEST_SAMPLES))
    return bytes_per_sample(
        checkpoint.model, batch, curvature=args.curvature, bn_mode=args.bn_mode, keep_graphs=keep_graphs
    )

"""The matrix that run_hessian.py measures, as products over batches and over blocks of images."""

import argparse
import contextlib
import itertools
import sys
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from normstudy.cli import RunError, progress_bar
from normstudy.curvature import ImageBlocks, hessian_matvec
from normstudy.datasets import Split, deal_blocks
from normstudy.measures.checkpoints import Checkpoint
from normstudy.measures.hessian_memory import MemoryPlan

if TYPE_CHECKING:
    from tqdm import tqdm

Matvec = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Task:
    """One measurement.

    images: the images, block after block. block_sizes: the number of images of each block. pool: the number of images
    of which these are a random part. layer_sizes: the number of parameters of each layer.
    """

    checkpoint: Checkpoint
    images: Split
    block_sizes: list[int]
    pool: int | None
    args: argparse.Namespace
    layer_sizes: dict[str, int]
    plan: MemoryPlan

    @property
    def dimension(self) -> int:
        return sum(self.layer_sizes.values())

    @property
    def products(self) -> int:
        """The number of products, without those that --trace_error adds."""
        steps = self.plan.lanczos_steps
        products = self.args.num_probes * steps + self.args.trace_probes
        if len(self.block_sizes) > 1:
            products += (steps + 1) // 2 + 2  # the cross-fitted eigenvalue and the error of the largest
        return products

    @property
    def has_block_statistics(self) -> bool:
        """Whether each block is a batch with its own statistics."""
        return self.args.bn_mode == "train" and len(self.block_sizes) > 1

    @property
    def statistics_size(self) -> int | None:
        """The number of images that share batch statistics, or None in eval mode."""
        if self.args.bn_mode == "eval":
            return None
        return self.block_sizes[0] if self.has_block_statistics else self.plan.batch_size


def number_of_blocks(samples: int, wanted: int) -> int:
    """Return a number of blocks: a divisor of `samples` from `wanted` to twice that, or else `wanted`.

    It is at most `samples`, and 1 if one block is wanted.
    """
    if wanted == 1 or samples <= wanted:
        return min(wanted, samples)
    return next((each for each in range(wanted, min(2 * wanted, samples) + 1) if samples % each == 0), wanted)


def block_order(images: Split, num_blocks: int) -> tuple[Split, list[int]]:
    """Return the images, block after block, and the sizes of the blocks, over which each class is dealt out evenly."""
    blocks = deal_blocks(images.labels.cpu(), num_blocks)
    return images.take(torch.cat(blocks).to(images.labels.device)), [len(block) for block in blocks]


class CountedBatches:
    """Batches of consecutive images of a task. Each pass advances the progress bar by their share of a product."""

    def __init__(self, task: Task, progress: "Progress", images: slice, batch_size: int) -> None:
        self.task, self.progress, self.batch_size = task, progress, batch_size
        self.images = task.images.take(images)

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in self.task.checkpoint.batches(self.images, self.batch_size):
            yield images, labels
            if self.progress.bar is not None:
                self.progress.bar.update(len(labels) / len(self.task.images))


class Progress:
    """The progress bar of products, if one is shown."""

    bar: "tqdm | None" = None

    @contextlib.contextmanager
    def shown(self, total: int, title: str, unit: str) -> Iterator[None]:
        """Show a progress bar inside a `with` block."""
        with progress_bar(total, title, unit=unit) as self.bar:
            yield
        self.bar = None

    def expect(self, products: int) -> None:
        """Set the total number of products that the bar shows."""
        if self.bar is not None:
            self.bar.total = products
            self.bar.refresh()


def whole_batches(task: Task, progress: Progress) -> CountedBatches:
    """Return the batches of all images."""
    size = task.block_sizes[0] if task.has_block_statistics else task.plan.batch_size
    return CountedBatches(task, progress, slice(None), size)


def checked_matvec(task: Task, progress: Progress) -> Matvec:
    """Return the product v ↦ Hv of all images after its checks, and print their warnings.

    Raises RunError if a check fails.
    """
    run = task.checkpoint.run
    if task.has_block_statistics and len(set(task.block_sizes)) > 1:
        samples = len(task.images)
        fitting = samples - samples % len(task.block_sizes)
        raise RunError(
            f"{run.path}: {samples} images do not divide into {len(task.block_sizes)} blocks of equal size. Each block "
            "is a batch with its own statistics, so their sizes must be equal; use "
            f"--samples={fitting}, or another --image_blocks"
        )
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            matvec = _matvec(task, whole_batches(task, progress), keep_graphs=task.plan.graph_bytes > 0, checks=True)
    except ValueError as error:
        raise RunError(f"{run.path}: {error}") from error
    for warning in caught:
        print(f"{run.path.name}: {warning.message}", file=sys.stderr, flush=True)
    return matvec


def image_blocks(task: Task, progress: Progress) -> ImageBlocks | None:
    """Return the products of each block of images, or None for a single block."""
    sizes = task.block_sizes
    if len(sizes) < 2:
        return None
    edges = torch.tensor([0, *sizes]).cumsum(0).tolist()
    middle = edges[len(sizes) // 2]

    def product(start: int, stop: int) -> Matvec:
        size = sizes[0] if task.has_block_statistics else task.plan.batch_size
        return _matvec(task, CountedBatches(task, progress, slice(start, stop), size))

    products = [product(start, stop) for start, stop in itertools.pairwise(edges)]
    halves = product(0, middle), product(middle, edges[-1])
    return ImageBlocks(products, sizes, task.pool, halves)


def _matvec(task: Task, batches: CountedBatches, keep_graphs: bool = False, checks: bool = False) -> Matvec:
    args = task.args
    matvec, _ = hessian_matvec(
        task.checkpoint.model,
        batches,
        curvature=args.curvature,
        bn_mode=args.bn_mode,
        scale=args.scale,
        keep_graphs=keep_graphs,
        checks=checks,
    )
    return matvec

"""Batches of images, prepared on the device: order, flips, scaling, resizing."""

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from config import EVALUATION_BATCH
from normstudy.datasets.splits import Split, seeded_generator

Batch = tuple[torch.Tensor, torch.Tensor]  # (images, labels)


def to_network_input(
    images: torch.Tensor, flips: torch.Tensor | None = None, image_size: int | None = None
) -> torch.Tensor:
    """Scale uint8 images (N, 3, H, W) to float32 in [−1, 1] (mean 0.5, std 0.5), channels_last.

    flips (N,) bool marks images to mirror. image_size, if given, is the side in pixels to resize to (bilinear).
    """
    if flips is not None:
        images = torch.where(flips[:, None, None, None], images.flip(3), images)
    x = images.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)
    if image_size is not None and x.shape[2:] != (image_size, image_size):
        shrinks = image_size < max(x.shape[2:])
        x = F.interpolate(x, (image_size, image_size), mode="bilinear", align_corners=False, antialias=shrinks)
        x = x.contiguous(memory_format=torch.channels_last)
    return x


def training_order(split: Split, seed: int, epoch: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order of the samples in an epoch, and whether each is mirrored: (len(split),) int64 and bool.

    Both depend only on (seed, epoch), and are on the split's device.
    """
    generator = seeded_generator("epoch", seed, epoch)
    order = torch.randperm(len(split), generator=generator)
    flips = torch.rand(len(split), generator=generator) < 0.5
    return order.to(split.labels.device), flips.to(split.labels.device)


def training_batch(split: Split, indices: torch.Tensor, flips: torch.Tensor, image_size: int | None = None) -> Batch:
    """Return the batch of the samples at `indices` (N,); `flips` (N,) marks those to mirror."""
    return to_network_input(split.images[indices], flips, image_size), split.labels[indices]


def evaluation_batches(
    split: Split, image_size: int | None = None, batch_size: int = EVALUATION_BATCH, first: int = 0, every: int = 1
) -> Iterator[Batch]:
    """Yield the unaugmented batches of a split in order: batch `first` and every `every`-th batch after it."""
    for start in range(first * batch_size, len(split), every * batch_size):
        yield (
            to_network_input(split.images[start : start + batch_size], image_size=image_size),
            split.labels[start : start + batch_size],
        )

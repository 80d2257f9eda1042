"""Batches of images, prepared on the device: order, flips, scaling, resizing."""

from collections.abc import Iterator

import torch
from torch.nn import functional as F

from config import EVALUATION_BATCH
from normstudy.datasets.splits import Split, seeded_generator

CROP_PADDING = 4  # pixels on each side
Batch = tuple[torch.Tensor, torch.Tensor]  # (images, labels)


def to_network_input(
    images: torch.Tensor, flips: torch.Tensor | None = None, image_size: int | None = None
) -> torch.Tensor:
    """Scale uint8 images (N, 3, H, W) to float32 in [−1, 1] (mean 0.5, std 0.5), channels_last.

    flips (N,) bool marks images to mirror; or (N, 3) int64 holds for each image whether to mirror it, and the top and
    left of its crop, from 0 to 2 · CROP_PADDING. image_size, if given, is the side to resize to (bilinear).
    """
    if flips is not None:
        if flips.dim() == 2:
            images, flips = _crop(images, flips[:, 1], flips[:, 2]), flips[:, 0] > 0
        images = torch.where(flips[:, None, None, None], images.flip(3), images)
    x = images.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)
    if image_size is not None and x.shape[2:] != (image_size, image_size):
        shrinks = image_size < max(x.shape[2:])
        x = F.interpolate(x, (image_size, image_size), mode="bilinear", align_corners=False, antialias=shrinks)
        x = x.contiguous(memory_format=torch.channels_last)
    return x


def _crop(images: torch.Tensor, top: torch.Tensor, left: torch.Tensor) -> torch.Tensor:
    """Pad images (N, 3, H, W) with black pixels, and cut an (H, W) crop out of each at (top, left), (N,) each."""
    samples, _, height, width = images.shape
    padded = F.pad(images, (CROP_PADDING,) * 4)
    rows = top[:, None, None] + torch.arange(height, device=images.device)[:, None]
    columns = left[:, None, None] + torch.arange(width, device=images.device)
    crops = padded[torch.arange(samples, device=images.device)[:, None, None], :, rows, columns]  # (N, H, W, 3)
    return crops.permute(0, 3, 1, 2)


def training_order(split: Split, seed: int, epoch: int, augment: str = "flip") -> tuple[torch.Tensor, torch.Tensor]:
    """Return the order of the samples in an epoch, (len(split),) int64, and their augmentation.

    The augmentation is the `flips` of to_network_input: (len(split),) bool, or (len(split), 3) int64 for crops. Both
    depend only on (seed, epoch), and are on the split's device.
    """
    generator = seeded_generator("epoch", seed, epoch)
    order = torch.randperm(len(split), generator=generator)
    flips = torch.rand(len(split), generator=generator) < 0.5
    if augment == "none":
        flips = torch.zeros_like(flips)
    if augment == "crop":
        corners = torch.randint(0, 2 * CROP_PADDING + 1, (len(split), 2), generator=generator)
        flips = torch.cat([flips[:, None], corners], dim=1)
    return order.to(split.labels.device), flips.to(split.labels.device)


def training_batch(split: Split, indices: torch.Tensor, flips: torch.Tensor, image_size: int | None = None) -> Batch:
    """Return the batch of the samples at `indices` (N,), augmented by `flips` as in to_network_input."""
    return to_network_input(split.images[indices], flips, image_size), split.labels[indices]


def evaluation_batches(
    split: Split, image_size: int | None = None, batch_size: int = EVALUATION_BATCH
) -> Iterator[Batch]:
    """Yield the unaugmented batches of a split in order."""
    for start in range(0, len(split), batch_size):
        yield (
            to_network_input(split.images[start : start + batch_size], image_size=image_size),
            split.labels[start : start + batch_size],
        )

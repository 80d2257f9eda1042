"""Batches of images, made on the device: order, flips, scaling, resizing."""

import torch
from torch.nn import functional as F

from config import EVALUATION_BATCH
from normstudy.datasets.splits import seeded_generator

# Batches


def prepare(images, flips=None, image_size=None):
    """Network input from uint8 images (N, 3, H, W): float32 in [−1, 1] (mean 0.5, std 0.5), channels_last.

    flips (N,) bool mirrors those images; image_size resizes (bilinear) where it differs from H or W.
    """
    if flips is not None:
        images = torch.where(flips[:, None, None, None], images.flip(3), images)
    x = images.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)
    if image_size is not None and x.shape[2:] != (image_size, image_size):
        shrinks = image_size < max(x.shape[2:])
        x = F.interpolate(x, (image_size, image_size), mode="bilinear", align_corners=False, antialias=shrinks)
        x = x.contiguous(memory_format=torch.channels_last)
    return x


def training_order(split, seed, epoch):
    """(order, flips), (len(split),) each: the order of the samples in an epoch, and whether each is mirrored then.

    They depend on (seed, epoch) alone; they lie on the split's device.
    """
    generator = seeded_generator("epoch", seed, epoch)
    order = torch.randperm(len(split), generator=generator)
    flips = torch.rand(len(split), generator=generator) < 0.5
    return order.to(split.labels.device), flips.to(split.labels.device)


def training_batch(split, indices, flips, image_size=None):
    """(images, labels) of some samples of a split; flips goes with indices, (N,) each."""
    return prepare(split.images[indices], flips, image_size), split.labels[indices]


def training_batches(split, batch_size, seed, epoch, image_size=None, first_step=0):
    """Shuffled, randomly flipped (images, labels) of one epoch, from its step `first_step` on.

    The last batch may be smaller.
    """
    order, flips = training_order(split, seed, epoch)
    for start in range(first_step * batch_size, len(split), batch_size):
        batch = slice(start, start + batch_size)
        yield training_batch(split, order[batch], flips[batch], image_size)


def evaluation_batches(split, image_size=None, batch_size=EVALUATION_BATCH, first=0, every=1):
    """(images, labels) in order, unaugmented; the batch `first` and each `every`-th one after it."""
    for start in range(first * batch_size, len(split), every * batch_size):
        yield (
            prepare(split.images[start : start + batch_size], image_size=image_size),
            split.labels[start : start + batch_size],
        )

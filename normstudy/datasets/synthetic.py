"""Synthetic images, made from the seed."""

import torch
from torch.nn import functional as F

from normstudy.datasets.splits import Dataset, Split, seeded_generator

SYNTHETIC_CLASSES = 10
SYNTHETIC_SIZE = 32
SYNTHETIC_TRAIN, SYNTHETIC_TEST = 5000, 1000


def make_synthetic(seed: int) -> Dataset:
    """Make 5,000 training and 1,000 test images of 32×32 pixels in ten classes, within a second.

    Each class is a smooth random pattern; each image shows it shifted, with changed colors, and with noise. The classes
    can be learned from a few hundred images.
    """
    generator = seeded_generator("synthetic", seed)
    coarse = torch.randn(SYNTHETIC_CLASSES, 3, 6, 6, generator=generator)
    patterns = F.interpolate(coarse, (SYNTHETIC_SIZE + 8,) * 2, mode="bicubic", align_corners=False)

    def split(count: int) -> Split:
        labels = torch.arange(count) % SYNTHETIC_CLASSES
        shifts = torch.randint(0, 9, (2, count), generator=generator)
        span = torch.arange(SYNTHETIC_SIZE)
        rows, columns = (shifts[axis][:, None] + span for axis in (0, 1))
        x = patterns[labels[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        contrast = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
        x = contrast * x + torch.randn(count, 3, 1, 1, generator=generator)
        x = x + 1.5 * torch.randn(x.shape, generator=generator)
        return Split((x * 40 + 127.5).clamp(0, 255).to(torch.uint8), labels)

    names = tuple(f"pattern {index}" for index in range(SYNTHETIC_CLASSES))
    return Dataset(split(SYNTHETIC_TRAIN), split(SYNTHETIC_TEST), names)

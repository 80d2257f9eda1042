"""The data set that a Config names."""

from pathlib import Path

import torch

from config import Config
from normstudy.cli import UsageError
from normstudy.datasets.cifar import load_cifar
from normstudy.datasets.image_folder import load_image_folder
from normstudy.datasets.splits import Dataset, Split, balanced_subset
from normstudy.datasets.synthetic import make_synthetic


def load(config: Config) -> Dataset:
    """Load the data set that a Config names, on the CPU, with its subsets and its validation split.

    Raises RunError if it cannot be read, and UsageError if it is too small for the flags.
    """
    if config.dataset == "Synthetic":
        dataset = make_synthetic(config.seed)
    elif config.dataset == "ImageFolder":
        dataset = load_image_folder(Path(config.data_dir), config.image_size)
    else:
        dataset = load_cifar(config.dataset, Path(config.data_dir), config.download)
    train, test = dataset.train, dataset.test
    if config.train_samples is not None:
        train = train.take(_subset("train_samples", train, config.train_samples, dataset.classes))
    if config.test_samples is not None:
        test = test.take(_subset("test_samples", test, config.test_samples, dataset.classes))
    validation = None
    if config.val_fraction > 0:
        held_out = round(config.val_fraction * len(train))
        if not 0 < held_out < len(train):
            raise UsageError(f"--val_fraction={config.val_fraction:g} of {len(train)} images leaves a split empty")
        chosen = torch.zeros(len(train), dtype=torch.bool)
        chosen[_subset("val_fraction", train, held_out, dataset.classes)] = True
        train, validation = train.take(~chosen), train.take(chosen)
    return Dataset(train, test, dataset.classes, validation)


def _subset(flag: str, split: Split, count: int, classes: tuple[str, ...]) -> torch.Tensor:
    """Return the indices of a balanced subset (see balanced_subset). Raises UsageError that names the flag."""
    try:
        return balanced_subset(split.labels, count, len(classes))
    except ValueError as error:
        raise UsageError(f"--{flag} asks for {count} of {len(split)} images: {error}") from None

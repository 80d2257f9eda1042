"""The data set that a Config names."""

from pathlib import Path

import torch

from config import Config
from normstudy.cli import UsageError, notify
from normstudy.datasets.cifar import load_cifar
from normstudy.datasets.image_folder import load_image_folder
from normstudy.datasets.splits import Dataset, Split, balanced_subset, describe_counts
from normstudy.datasets.synthetic import make_synthetic


def load(config: Config) -> Dataset:
    """Load the data set that a Config names, on the CPU, with its subsets and its validation split.

    Raises RunError if it cannot be read, and UsageError if it is too small for the flags.
    """
    if config.dataset == "Synthetic":
        dataset = make_synthetic(config.seed)
    elif config.dataset == "ImageFolder":
        dataset = load_image_folder(Path(config.data_dir), config.image_size, config.cache_dir)
    else:
        dataset = load_cifar(config.dataset, Path(config.data_dir), config.download, config.cache_dir)
    train, test = dataset.train, dataset.test
    if config.train_samples is not None:
        train = train.take(_subset("train_samples", train, config.train_samples, dataset.classes, config.balance))
    if config.test_samples is not None:
        test = test.take(_subset("test_samples", test, config.test_samples, dataset.classes, config.balance))
    validation = None
    if config.val_fraction > 0:
        held_out = round(config.val_fraction * len(train))
        if not 0 < held_out < len(train):
            raise UsageError(f"--val_fraction={config.val_fraction:g} of {len(train)} images leaves a split empty")
        chosen = torch.zeros(len(train), dtype=torch.bool)
        chosen[_subset("val_fraction", train, held_out, dataset.classes, config.balance, keep=1)] = True
        train, validation = train.take(~chosen), train.take(chosen)
    return Dataset(train, test, dataset.classes, validation)


def _subset(flag: str, split: Split, count: int, classes: tuple[str, ...], balance: str, keep: int = 0) -> torch.Tensor:
    """Return the indices of a subset (see balanced_subset), and print how many of each class it has if that differs.

    Raises UsageError that names the flag if there are too few images.
    """
    try:
        indices = balanced_subset(split.labels, count, len(classes), balance=balance, keep=keep)
    except ValueError as error:
        rest = f" if {keep} of each class stays in training" if keep else ""
        raise UsageError(f"--{flag} asks for {count} of {len(split)} images, but {error}{rest}") from None
    if words := describe_counts(split.labels[indices], classes):
        notify(f"--{flag} takes {words}")
    return indices

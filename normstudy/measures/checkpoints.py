"""The network of a finished run at one epoch."""

import argparse
import hashlib
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from config import Config
from models import Network, build_from_config
from normstudy.cli import RunError
from normstudy.datasets import Dataset, Split, balanced_subset, describe_counts, evaluation_batches
from normstudy.storage import RunDirectory, read_torch


class Subset(NamedTuple):
    """The images of a measurement.

    counts: the number of images of each class. all_counts: the same for the split from which they were taken.
    """

    images: Split
    indices_sha256: str
    counts: list[int]
    all_counts: list[int]

    def describe(self) -> dict[str, Any]:
        """Return the description of the images for the measurement's JSON file."""
        return {
            "num_samples": len(self.images),
            "sample_indices_sha256": self.indices_sha256,
            "class_counts": self.counts,
        }

    def is_proportional(self) -> bool:
        """Return whether the classes have the shares that they have in the split, up to one image each."""
        share = sum(self.counts) / sum(self.all_counts)
        return all(abs(count - share * whole) <= 1 for count, whole in zip(self.counts, self.all_counts, strict=True))

    def pool(self) -> int | None:
        """Return the number of images of which this subset is a random part, for the finite-population correction.

        It is the number of images in the split if the subset is proportional. Otherwise the class with the smallest
        fraction of its images in the subset counts for all, so that no error is too small; None if it has no image.
        """
        if self.is_proportional():
            return sum(self.all_counts)
        if any(whole and not count for count, whole in zip(self.counts, self.all_counts, strict=True)):
            return None
        ratios = [whole / count for count, whole in zip(self.counts, self.all_counts, strict=True) if count]
        return math.ceil(sum(self.counts) * max(ratios))


class Checkpoint:
    """The network of a finished run at one epoch, and the images that it was trained and tested on.

    target: the JSON file of the measurement.
    """

    def __init__(
        self,
        run: RunDirectory,
        config: Config,
        path: Path,
        sha256: str | None,
        dataset: Dataset,
        dtype: torch.dtype,
        device: torch.device,
        pause: Callable[[], object],
        target: Path,
    ) -> None:
        self.run = run
        self.config = config
        self.epoch = epoch_of(path)
        self.dataset = dataset
        self.device = device
        self.pause = pause
        self.target = target
        self.sha256 = sha256
        model = _load_model(config, path, sha256, len(dataset.classes)).eval()
        self.model = model.to(device, dtype).to(memory_format=torch.channels_last)

    def subset(self, split: Split, args: argparse.Namespace) -> Subset:
        """Return the subset of a Split that --samples, --balance and --seed choose.

        If the Split has at most --samples images, all of them are taken. Print the number of images of each class if
        they differ by more than one.
        """
        labels, num_classes = split.labels.cpu(), len(self.dataset.classes)
        indices = torch.arange(len(split))
        if args.samples < len(split):
            indices = balanced_subset(labels, args.samples, num_classes, args.seed, balance=args.balance)
        if counts := describe_counts(labels[indices], self.dataset.classes):
            print(f"{self.run.path.name}: {len(indices)} images, {counts}", flush=True)
        return Subset(
            split.take(indices.to(split.labels.device)),
            hashlib.sha256(indices.numpy().astype("<i8").tobytes()).hexdigest(),
            torch.bincount(labels[indices], minlength=num_classes).tolist(),
            torch.bincount(labels, minlength=num_classes).tolist(),
        )

    def training_subset(self, args: argparse.Namespace) -> Subset:
        """Return the subset of the training images on which the loss is measured.

        Print that the loss is not the training loss if the classes have other shares than in all training images.
        """
        subset = self.subset(self.dataset.train, args)
        if not subset.is_proportional():
            print(
                f"{self.run.path.name}: the classes have other shares in these images than in all training images, so "
                "their loss does not estimate the training loss; --balance=proportional does",
                flush=True,
            )
        return subset

    def batches(self, split: Split, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches (images, labels) of a Split in order, prepared for this network.

        A signal takes effect between two batches.
        """
        for batch in evaluation_batches(split, self.config.image_size, batch_size):
            self.pause()
            yield batch


def epoch_of(path: Path) -> int:
    """Return the epoch in the name of a checkpoint."""
    return int(path.stem.removeprefix("epoch_"))


def _load_model(config: Config, path: Path, sha256: str | None, num_classes: int) -> Network:
    """Load the network of a checkpoint. Raises RunError if it does not fit the Config or has non-finite values."""
    state = read_torch(path, sha256)
    try:
        model = build_from_config(config, num_classes)
        model.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()[:120]
        raise RunError(f"{path} does not fit the network of {path.parents[1] / 'config.json'} ({reason})") from None
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise RunError(f"{path} has non-finite values in {name}")
    return model

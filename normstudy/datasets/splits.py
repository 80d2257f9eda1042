"""Data sets as uint8 tensors, and class-balanced subsets of them."""

import hashlib
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

SUBSET_SEED = 0  # subsets and the validation split are the same for every training seed


@dataclass(frozen=True)
class Split:
    """Images (N, 3, H, W) uint8 and labels (N,) int64, on one device."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, indices: torch.Tensor | slice) -> "Split":
        """Return the samples at these indices, or those that a mask (N,) bool selects."""
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """The splits of one data set; `validation` is None if nothing is held out."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    validation: Split | None = None

    def to(self, device: torch.device) -> "Dataset":
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), validation=validation)

    def fingerprint(self) -> str:
        """Return the first 16 hex digits of the SHA-256 of the class names and of every image and label."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for split in (self.train, self.test, self.validation):
            if split is not None:
                digest.update(tensor_digest(split.images, split.labels).encode())
        return digest.hexdigest()[:16]

    def describe(self) -> dict[str, Any]:
        """Return the description of the images for a run's config.json."""
        return {
            "fingerprint": self.fingerprint(),
            "classes": list(self.classes),
            "image_shape": list(self.train.images.shape[1:]),
            "train_samples": len(self.train),
            "validation_samples": 0 if self.validation is None else len(self.validation),
            "test_samples": len(self.test),
        }


def seeded_generator(*key: str | int) -> torch.Generator:
    """Return a CPU generator seeded by the hash of `key`, so that adjacent seeds and epochs have nothing in common."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def balanced_subset(labels: torch.Tensor, count: int, num_classes: int, seed: int = SUBSET_SEED) -> torch.Tensor:
    """Return sorted indices (count,) of a subset with equally many samples of each class.

    The first classes get the remainder. labels: (N,) int64. Raises ValueError if a class has too few samples.
    """
    order = torch.randperm(len(labels), generator=seeded_generator("subset", seed))
    chosen = []
    for label in range(num_classes):
        wanted = count // num_classes + (label < count % num_classes)
        members = order[labels[order] == label]
        if len(members) < wanted:
            raise ValueError(f"class {label} has {len(members)} images, but a balanced subset needs {wanted}")
        chosen.append(members[:wanted])
    return torch.cat(chosen).sort().values


def deal_blocks(labels: torch.Tensor, num_blocks: int) -> list[torch.Tensor]:
    """Deal samples into blocks; return the indices of each. Sizes, and counts of a class, differ by at most one.

    labels: (N,) int64, N at least num_blocks.
    """
    order = torch.argsort(labels, stable=True)
    return [order[index::num_blocks] for index in range(num_blocks)]


def tensor_digest(*tensors: torch.Tensor) -> str:
    """Return the SHA-256 of the shapes and bytes of tensors, in hex."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(np.ascontiguousarray(tensor.cpu().numpy()).data)
    return digest.hexdigest()

"""Data sets as uint8 tensors, and class-balanced subsets of them."""

import hashlib
from dataclasses import dataclass, replace

import numpy as np
import torch

SUBSET_SEED = 0  # subsets and the validation split are the same for every training seed


@dataclass(frozen=True)
class Split:
    """images (N, 3, H, W) uint8 and labels (N,) int64, on one device."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self):
        return len(self.labels)

    def to(self, device):
        return Split(self.images.to(device), self.labels.to(device))

    def take(self, indices):
        return Split(self.images[indices], self.labels[indices])


@dataclass(frozen=True)
class Dataset:
    """The splits of one data set; `validation` is None where nothing is held out."""

    train: Split
    test: Split
    classes: tuple[str, ...]
    validation: Split | None = None

    def to(self, device):
        validation = None if self.validation is None else self.validation.to(device)
        return replace(self, train=self.train.to(device), test=self.test.to(device), validation=validation)

    def fingerprint(self):
        """The first 16 hex digits of the SHA-256 of every image and label."""
        digest = hashlib.sha256(repr(self.classes).encode())
        for split in (self.train, self.test, self.validation):
            if split is not None:
                digest.update(tensor_digest(split.images, split.labels).encode())
        return digest.hexdigest()[:16]


def seeded_generator(*key):
    """A CPU generator seeded by the hash of `key`, so that neighbouring seeds and epochs share nothing."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:8], "little") >> 1)


def balanced_subset(labels, count, num_classes, seed=SUBSET_SEED):
    """Sorted indices of `count` samples, equally many of each class (the first classes get the remainder).

    labels (N,) int64. Raises ValueError where a class has too few samples.
    """
    order = torch.randperm(len(labels), generator=seeded_generator("subset", seed))
    chosen = []
    for label in range(num_classes):
        wanted = count // num_classes + (label < count % num_classes)
        members = order[labels[order] == label]
        if len(members) < wanted:
            raise ValueError(f"class {label} has {len(members)} images, a balanced subset needs {wanted}")
        chosen.append(members[:wanted])
    return torch.cat(chosen).sort().values


def tensor_digest(*tensors):
    """SHA-256 over the shapes and bytes of CPU tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(np.ascontiguousarray(tensor.numpy()))
    return digest.hexdigest()

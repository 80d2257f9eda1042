"""Data sets as uint8 tensors, and class-balanced subsets of them."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

MOST_NAMED = 10  # classes whose counts are all printed
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


def balanced_subset(
    labels: torch.Tensor,
    count: int,
    num_classes: int,
    seed: int = SUBSET_SEED,
    *,
    balance: str = "equal",
    keep: int = 0,
) -> torch.Tensor:
    """Return sorted indices (count,) of a random subset whose number of samples per class is that of shares_of_classes.

    labels: (N,) int64. keep: number of samples of each class that are not taken. Raises ValueError if fewer than
    `count` samples can be taken.
    """
    sizes = torch.bincount(labels, minlength=num_classes).sub(keep).clamp_min(0).tolist()
    wanted = shares_of_classes(sizes, count, balance)
    order = torch.randperm(len(labels), generator=seeded_generator("subset", seed))
    chosen = [order[labels[order] == label][:share] for label, share in enumerate(wanted)]
    return torch.cat(chosen).sort().values


def shares_of_classes(sizes: Sequence[int], count: int, balance: str = "equal") -> list[int]:
    """Return how many of `count` samples each class gives, at most all that it has.

    With balance "equal", they are as equal as the sizes of the classes allow: small classes give all samples, and the
    others equally many. With "proportional", they are the sizes times count/sum(sizes), rounded by largest remainders.
    The first classes get what equal shares or remainders leave over. Raises ValueError if there are too few samples.
    """
    total = sum(sizes)
    if count > total:
        raise ValueError(f"there are only {total}")
    if balance == "proportional":
        shares = [size * count // max(total, 1) for size in sizes]
        by_remainder = sorted(range(len(sizes)), key=lambda label: -(sizes[label] * count % max(total, 1)))
        for label in by_remainder[: count - sum(shares)]:
            shares[label] += 1
        return shares
    rest, level = count, 0
    for index, size in enumerate(sorted(sizes)):
        level = rest // (len(sizes) - index)
        if size > level:
            break
        rest -= size
    shares = [min(size, level) for size in sizes]
    larger = [label for label, size in enumerate(sizes) if size > level]
    for label in larger[: count - sum(shares)]:
        shares[label] += 1
    return shares


def fewest_samples(sizes: Sequence[int], balance: str = "equal") -> int:
    """Return a number of samples from which on shares_of_classes takes one of each class. No size may be 0."""
    if balance == "equal":
        return len(sizes)
    total = sum(sizes)
    enough = total
    while enough > len(sizes) and min(shares_of_classes(sizes, enough - 1, balance)) > 0:
        enough -= 1
    return enough


def describe_counts(labels: torch.Tensor, classes: Sequence[str]) -> str:
    """Return a text with the number of images of each class, or an empty text if they differ by at most one."""
    counts = torch.bincount(labels.cpu(), minlength=len(classes)).tolist()
    if max(counts) - min(counts) <= 1:
        return ""
    if len(classes) <= MOST_NAMED:
        return ", ".join(f"{count} of {name}" for name, count in zip(classes, counts, strict=True))
    fewest = sorted(range(len(classes)), key=lambda label: counts[label])[:3]
    named = ", ".join(f"{counts[label]} of {classes[label]}" for label in fewest)
    return f"{min(counts)} to {max(counts)} images of each class ({named}, …)"


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

"""Caches of decoded images: a dict of tensors beside the files it was read from, with a digest of both."""

import hashlib
import os
import sys
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from normstudy.datasets.splits import Dataset, Split, tensor_digest
from normstudy.storage import remove_leftovers, write_torch

CACHE_NAME = "decoded-images.pt"
LEFTOVER_SECONDS = 3600  # after which nobody still writes a cache


def files_digest(files: Iterable[tuple[str, os.DirEntry[str]]]) -> str:
    """A hash of the name, size, modification time and inode of each file (the inode tells folders that swapped names).

    files: (name, entry), in an order that does not change.
    """
    lines = []
    for name, entry in files:
        status = entry.stat()
        lines.append(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def write_cache(stored: dict[str, Any], cache: Path, source: str) -> None:
    """Write decoded images with a checksum and the digest of their source; a failure is only a warning.

    stored: {train_images, train_labels, test_images, test_labels, resized_to}, and classes if the source names them.
    """
    remove_leftovers(cache.parent, f".{cache.name}.*.tmp", LEFTOVER_SECONDS)
    try:
        write_torch(cache, stored | {"listing": source, "digest": _content_digest(stored)})
    except OSError as error:
        warnings.warn(f"the decoded images could not be kept in {cache}: {error.strerror}", stacklevel=3)


def read_cache(cache: Path, source: str, image_size: int | None) -> dict[str, Any] | None:
    """The dict of write_cache, or None if it is missing, damaged, of another source or of another image size."""
    if not cache.exists():
        return None
    try:
        stored = torch.load(cache, weights_only=True, map_location="cpu")
        if stored["listing"] != source or stored["resized_to"] not in (None, image_size):
            return None
        if stored["digest"] == _content_digest(stored):
            return stored
    except Exception:  # torch.load has no common base for what a damaged file raises; decoding again replaces it
        pass
    print(f"{cache} is damaged: the images are read anew", file=sys.stderr)
    return None


def _content_digest(stored: dict[str, Any]) -> str:
    names = repr(stored["classes"]) if "classes" in stored else ""
    return names + tensor_digest(
        *[stored[f"{split}_{part}"] for split in ("train", "test") for part in ("images", "labels")]
    )


def to_dataset(stored: dict[str, Any], classes: tuple[str, ...]) -> Dataset:
    """The Dataset of decoded images; see write_cache."""
    train, test = (Split(stored[f"{split}_images"], stored[f"{split}_labels"]) for split in ("train", "test"))
    return Dataset(train, test, classes)

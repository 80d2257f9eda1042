"""Caches of decoded images: a dict of tensors next to the image files, with a digest of both."""

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
LEFTOVER_SECONDS = 3600  # older temporary files are from killed processes


def files_digest(files: Iterable[tuple[str, os.DirEntry[str]]]) -> str:
    """Return a hash of the name, size, modification time and inode of each file.

    files: (name, entry) in a fixed order. The inode reveals folders that swapped names.
    """
    lines = []
    for name, entry in files:
        status = entry.stat()
        lines.append(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def write_cache(stored: dict[str, Any], cache: Path, source: str) -> None:
    """Write decoded images with a checksum and the digest of their source; warn if this fails.

    stored: {train_images, train_labels, test_images, test_labels, resized_to}, and classes if the source names them.
    """
    remove_leftovers(cache.parent, f".{cache.name}.*.tmp", LEFTOVER_SECONDS)
    try:
        write_torch(cache, stored | {"listing": source, "digest": _content_digest(stored)})
    except OSError as error:
        warnings.warn(f"the decoded images could not be cached in {cache}: {error.strerror}", stacklevel=3)


def read_cache(cache: Path, source: str, image_size: int | None) -> dict[str, Any] | None:
    """Return the dict of write_cache, or None if it is missing, damaged, or of another source or image size."""
    if not cache.exists():
        return None
    try:
        stored = torch.load(cache, weights_only=True, map_location="cpu")
        if stored["listing"] != source or stored["resized_to"] not in (None, image_size):
            return None
        if stored["digest"] == _content_digest(stored):
            return stored
    except Exception:  # torch.load raises unrelated types for a damaged file; decoding again replaces it
        pass
    print(f"{cache} is damaged: reading the images again", file=sys.stderr)
    return None


def _content_digest(stored: dict[str, Any]) -> str:
    names = repr(stored["classes"]) if "classes" in stored else ""
    return names + tensor_digest(
        *[stored[f"{split}_{part}"] for split in ("train", "test") for part in ("images", "labels")]
    )


def to_dataset(stored: dict[str, Any], classes: tuple[str, ...]) -> Dataset:
    """Return the Dataset of decoded images; see write_cache."""
    train, test = (Split(stored[f"{split}_images"], stored[f"{split}_labels"]) for split in ("train", "test"))
    return Dataset(train, test, classes)

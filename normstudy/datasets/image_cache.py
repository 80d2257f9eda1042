"""Caches of decoded images: a dict of tensors in a file, with a digest of the image files and of the tensors."""

import errno
import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from normstudy.cli import describe_os_error, notify
from normstudy.datasets.splits import Dataset, Split, tensor_digest
from normstudy.storage import remove_leftovers, write_torch

CACHE_NAME = "decoded-images.pt"
LEFTOVER_SECONDS = 3600  # older temporary files are from killed processes
READ_ONLY = (errno.EROFS, errno.EACCES, errno.EPERM)


def cache_files(folder: Path, name: str, cache_dir: str | None = None) -> list[Path]:
    """Return the places of the cache of a folder's images, in the order in which they are tried.

    They are `name` in the folder itself, and then in the user's cache folder; with cache_dir, only in cache_dir.
    Outside the folder, its own name and a hash of its path are added to the name.
    """
    whole = folder.resolve()
    digest = hashlib.sha256(os.fsencode(whole)).hexdigest()[:8]
    elsewhere = f"{whole.name}-{digest}-{name}"
    if cache_dir is not None:
        return [Path(cache_dir).expanduser() / elsewhere]
    base = _user_cache()
    return [folder / name] if base is None else [folder / name, base / elsewhere]


def _user_cache() -> Path | None:
    """Return this program's folder in the user's cache folder, or None for a user without a home folder."""
    base = Path(os.environ.get("XDG_CACHE_HOME", ""))
    if not base.is_absolute():  # the specification of XDG_CACHE_HOME says to ignore these
        try:
            base = Path.home() / ".cache"
        except RuntimeError:
            return None
    return base / "normstudy"


def files_digest(files: Iterable[tuple[str, str | os.DirEntry[str]]]) -> str:
    """Return a hash of the name, size, modification time and inode of each file.

    files: (name, path) in a fixed order. The inode reveals folders that swapped names.
    """
    lines = []
    for name, path in files:
        status = os.stat(path)
        lines.append(f"{name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}")
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def write_cache(stored: dict[str, Any], caches: Sequence[Path], source: str) -> None:
    """Write decoded images with a checksum and the digest of their source to the first place that can be written.

    A line on stderr says if this is not the first place, or if it fails.
    stored: {train_images, train_labels, test_images, test_labels, resized_to}, and perhaps classes and unreadable.
    """
    content = stored | {"listing": source, "digest": _content_digest(stored)}
    failures = []
    for cache in caches:
        remove_leftovers(cache.parent, f".{cache.name}.*.tmp", LEFTOVER_SECONDS)
        try:
            write_torch(cache, content)
        except OSError as error:
            failures.append(describe_os_error(error).partition(";")[0])
            if error.errno in READ_ONLY:
                continue
            break
        if failures:
            notify(
                f"{caches[0].parent} cannot be written to, so the decoded images are cached in {cache}; --cache_dir "
                "chooses another folder"
            )
        return
    notify(
        f"the decoded images could not be cached, so the next run decodes them again ({'; '.join(failures)}); "
        "--cache_dir chooses another folder"
    )


def read_cache(caches: Iterable[Path], source: str, image_size: int | None) -> dict[str, Any] | None:
    """Return the dict of write_cache from the first place that has it for this source and image size, or None."""
    for cache in caches:
        stored = _read_one(cache, source, image_size)
        if stored is not None:
            return stored
    return None


def _read_one(cache: Path, source: str, image_size: int | None) -> dict[str, Any] | None:
    if not os.access(cache, os.R_OK):
        return None
    try:
        stored = torch.load(cache, weights_only=True, map_location="cpu")
        if stored["listing"] != source or not _fits(stored, image_size):
            return None
        if stored["digest"] == _content_digest(stored):
            return stored
    except Exception:  # torch.load raises unrelated types for a damaged file; decoding again replaces it
        pass
    notify(f"{cache} is damaged: reading the images again")
    return None


def _fits(stored: dict[str, Any], image_size: int | None) -> bool:
    """Return whether decoding for this image_size would give the stored images."""
    if stored["resized_to"] is not None or image_size is None:
        return stored["resized_to"] == image_size
    return max(stored["train_images"].shape[2:]) <= image_size


def _content_digest(stored: dict[str, Any]) -> str:
    names = "".join(repr(stored[name]) for name in ("classes", "unreadable") if name in stored)
    return names + tensor_digest(
        *[stored[f"{split}_{part}"] for split in ("train", "test") for part in ("images", "labels")]
    )


def to_dataset(stored: dict[str, Any], classes: tuple[str, ...]) -> Dataset:
    """Return the Dataset of decoded images; see write_cache."""
    train, test = (Split(stored[f"{split}_images"], stored[f"{split}_labels"]) for split in ("train", "test"))
    return Dataset(train, test, classes)

"""Folders of images: train/<class>/ and test/<class>/."""

import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError

from normstudy.cli import RunError, progress_bar
from normstudy.datasets.image_cache import CACHE_NAME, files_digest, read_cache, to_dataset, write_cache
from normstudy.datasets.splits import Dataset

LabelledFiles = dict[str, list[tuple[os.DirEntry[str], int]]]  # {split: [(file, label)]}
T = TypeVar("T")


def load_image_folder(data_dir: Path, image_size: int | None = None) -> Dataset:
    """Load `data_dir`/train/<class>/ and `data_dir`/test/<class>/ in any format that PIL reads.

    If all images have the same size, they keep it; otherwise all are resized to image_size. The decoded images are
    cached next to the folders. The cache is used only if its checksum is right and no file's path, size or time has
    changed. Raises RunError for missing folders, unreadable files (by name), and differing sizes without image_size.
    """
    classes, files = _list_images(data_dir)
    named = (
        (f"{split}/{classes[label]}/{entry.name}", entry) for split, found in files.items() for entry, label in found
    )
    listing = files_digest(named)
    cache = data_dir / CACHE_NAME
    stored = read_cache(cache, listing, image_size)
    if stored is None:
        stored = _decode(files, image_size)
        write_cache(stored, cache, listing)
    return to_dataset(stored, classes)


def _list_images(data_dir: Path) -> tuple[tuple[str, ...], LabelledFiles]:
    """Return the class names and the files of an image folder, sorted by name."""
    known = Image.registered_extensions()
    names: dict[str, list[str]] = {}
    files: LabelledFiles = {}
    for split in ("train", "test"):
        folder = data_dir / split
        if not folder.is_dir():
            is_too_deep = data_dir.name in ("train", "test") and (data_dir.parent / split).is_dir()
            hint = f"; try --data_dir={data_dir.parent}" if is_too_deep else ""
            raise RunError(f"{folder} is not a folder: --data_dir must contain train/<class>/ and test/<class>/{hint}")
        folders = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
        names[split] = sorted(folders)
        files[split] = [
            (entry, label)
            for label, name in enumerate(names[split])
            for entry in sorted(os.scandir(folder / name), key=lambda entry: entry.name)
            if os.path.splitext(entry.name)[1].lower() in known and not entry.name.startswith(".")
        ]
        if not files[split]:
            raise RunError(f"{folder} contains no images in folders named after their class")
    if names["train"] != names["test"]:
        unpaired = sorted(set(names["train"]) ^ set(names["test"]))
        raise RunError(f"class {unpaired[0]} of {data_dir} is in only one of train and test")
    return tuple(names["train"]), files


def _decode(files: LabelledFiles, image_size: int | None) -> dict[str, Any]:
    """Return the decoded images and their labels; see write_cache.

    resized_to is None if all files have the same size, which is then kept. One thread decodes, because of the GIL.
    """
    total = sum(len(entries) for entries in files.values())
    unreadable: dict[str, str] = {}
    sizes = set()
    for entries in files.values():
        for entry, _ in entries:
            size = _open_image(entry, lambda image: image.size, unreadable)
            if size is not None:
                sizes.add(size)
    has_one_size = len(sizes) == 1
    if not has_one_size and image_size is None and not unreadable:
        shapes = _first_few(f"{width}×{height}" for width, height in sizes)
        raise RunError(f"the images differ in size ({shapes}): give --image_size to resize them")

    def pixels(image: Image.Image) -> np.ndarray:
        image = _to_rgb(image)
        if has_one_size or image_size is None:
            return np.asarray(image)
        return np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR))

    stored: dict[str, Any] = {"resized_to": None if has_one_size else image_size}
    with progress_bar(total, "decoding images") as bar:
        for split, entries in files.items():
            arrays: list[np.ndarray] = []
            for entry, _ in entries:
                array = _open_image(entry, pixels, unreadable)
                if array is not None:
                    arrays.append(array)
                bar.update()
            if not unreadable:
                stored[f"{split}_images"] = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
            stored[f"{split}_labels"] = torch.tensor([label for _, label in entries])
    if unreadable:
        raise RunError(
            f"{len(unreadable)} of {total} files cannot be read as images: {_first_few(unreadable.values())}"
        )
    return stored


def _to_rgb(image: Image.Image) -> Image.Image:
    """Convert an image to 8-bit RGB: scale 16 bits, drop alpha. Raises ValueError for floating-point pixels."""
    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _open_image(entry: os.DirEntry[str], use: Callable[[Image.Image], T], unreadable: dict[str, str]) -> T | None:
    """Return use(image). If PIL cannot read the file, return None and add its path and the reason to `unreadable`."""
    try:
        with Image.open(entry.path) as image:
            return use(image)
    except Exception as error:  # PIL raises many types for unreadable files; each file is reported by name
        reason = "not an image" if isinstance(error, UnidentifiedImageError) else error
        unreadable[entry.path] = f"{entry.path} ({reason})"
        return None


def _first_few(names: Iterable[str], limit: int = 5) -> str:
    """Return the first names as text, and how many more there are."""
    in_order = sorted(names)
    more = f" and {len(in_order) - limit} more" if len(in_order) > limit else ""
    return ", ".join(in_order[:limit]) + more

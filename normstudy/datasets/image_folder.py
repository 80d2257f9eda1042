"""Folders of images: train/<class>/ and test/<class>/."""

from pathlib import Path
from typing import Any

import numpy as np
import torch

from normstudy.cli import RunError, notify, progress_bar
from normstudy.datasets.image_cache import CACHE_NAME, cache_files, files_digest, read_cache, to_dataset, write_cache
from normstudy.datasets.image_decoding import VERSION, Unreadable, decode_image, resize
from normstudy.datasets.image_listing import BOTH, Listing, first_few, list_images, unused_folders
from normstudy.datasets.splits import Dataset

LARGE = 100e6  # bytes of images above which --image_size is recommended
SMALL_SIDE = 64  # the side in pixels of the recommendation


def load_image_folder(data_dir: Path, image_size: int | None = None, cache_dir: str | None = None) -> Dataset:
    """Load `data_dir`/train/<class>/ and `data_dir`/test/<class>/ in any format that PIL reads.

    Without image_size, all images must have the same size, which they keep. With it, they keep it if they have one size
    with no side above image_size; otherwise each is resized to image_size × image_size pixels while it is decoded.

    The decoded images are cached (see cache_files). A cache is used only if its checksum is right and no file's path,
    size or time has changed. Lines on stderr count everything that was left out, and say how much memory the images
    take before they are decoded. Raises RunError as list_images does, for a class without readable images, and for
    differing sizes without image_size.
    """
    listing = list_images(data_dir)
    digest = _digest(listing)
    caches = {size: cache_files(data_dir, _cache_name(size), cache_dir) for size in (image_size, None)}
    found = (read_cache(places, digest, image_size) for places in caches.values())
    cached = next((each for each in found if each is not None), None)
    stored = cached or _decode(listing, image_size)
    _report_left_out(data_dir, listing, stored["unreadable"])
    _check_classes(listing, stored)
    if cached is None:
        write_cache(stored, caches[stored["resized_to"]], digest)
    return to_dataset(stored, listing.classes)


def _cache_name(image_size: int | None) -> str:
    """Return the name of the cache of images that were resized to image_size, or that have their own size (None)."""
    return CACHE_NAME if image_size is None else CACHE_NAME.replace(".", f"-{image_size}.")


def _digest(listing: Listing) -> str:
    """Return a hash of everything in the files and in this program that changes the pixels or labels."""
    named = (
        (f"{split}/{file.label}/{listing.classes[file.label]}/{file.name}", file.path)
        for split in BOTH
        for file in listing.files[split]
    )
    try:
        return f"{VERSION} {files_digest(named)}"
    except OSError as error:
        raise RunError(f"{error.filename} cannot be read: {error.strerror}") from None


def _decode(listing: Listing, image_size: int | None) -> dict[str, Any]:
    """Return the decoded images, their labels and the unreadable files; see write_cache. Print what they need.

    resized_to is None if the images keep their size. One thread decodes, because of the GIL.
    """
    total = sum(map(len, listing.files.values()))
    images = {split: _Images(len(listing.files[split]), image_size) for split in BOTH}
    labels: dict[str, list[int]] = {split: [] for split in BOTH}
    unreadable: list[list[str]] = []
    shapes: dict[tuple[int, ...], None] = {}
    is_any_shrunk = False
    with progress_bar(total, "decoding images") as bar:
        for split in BOTH:
            for file in listing.files[split]:
                bar.update()
                try:
                    pixels, is_shrunk = decode_image(file.path, image_size)
                except Unreadable as reason:
                    unreadable.append([split, f"{file.name}: {reason}"])
                    continue
                if not shapes:
                    notify(_needs(total, pixels.shape, image_size))
                shapes[pixels.shape] = None
                if len(shapes) > 1 and image_size is None:
                    sizes = first_few(f"{width}×{height}" for height, width, _ in shapes)
                    raise RunError(f"the images differ in size ({sizes}): give --image_size to resize them")
                images[split].add(pixels)
                labels[split].append(file.label)
                is_any_shrunk |= is_shrunk
    resized_to = image_size if is_any_shrunk or len(shapes) > 1 else None
    stored: dict[str, Any] = {"resized_to": resized_to, "unreadable": unreadable}
    for split in BOTH:
        stored[f"{split}_images"] = images[split].stack(resized_to)
        stored[f"{split}_labels"] = torch.tensor(labels[split], dtype=torch.int64)
    return stored


class _Images:
    """The images of a split while they are decoded, in about the memory that they take in the end.

    With an image_size, the images are small, and their common size is known when all are decoded. Otherwise all have
    the size of the first one.
    """

    def __init__(self, count: int, image_size: int | None) -> None:
        self.count, self.image_size = count, image_size
        self.arrays: list[np.ndarray] = []
        self.stacked, self.added = torch.empty(0, 3, 1, 1, dtype=torch.uint8), 0

    def add(self, pixels: np.ndarray) -> None:
        """Add the pixels (H, W, 3) of the next image."""
        if self.image_size is not None:
            self.arrays.append(pixels)
            return
        if not self.added:
            self.stacked = torch.empty(self.count, 3, *pixels.shape[:2], dtype=torch.uint8)
        self.stacked[self.added] = torch.tensor(pixels).permute(2, 0, 1)
        self.added += 1

    def stack(self, resized_to: int | None) -> torch.Tensor:
        """Return all images (N, 3, H, W), resized to resized_to × resized_to pixels unless it is None."""
        if self.image_size is None:
            return self.stacked if self.added == self.count else self.stacked[: self.added].clone()
        if not self.arrays:
            return self.stacked
        arrays = self.arrays if resized_to is None else (resize(each, resized_to) for each in self.arrays)
        return torch.stack([torch.tensor(each) for each in arrays]).permute(0, 3, 1, 2).contiguous()


def _needs(count: int, shape: tuple[int, ...], image_size: int | None) -> str:
    """Return a text with about the memory that `count` images take, from the shape of one of them (H, W, 3)."""
    height, width, channels = shape
    size = count * height * width * channels
    words = f"decoding {count:,} images of {width}×{height} pixels: about {_bytes(size)} of memory, "
    words += "and as much on disk for the cache"
    if image_size is None and size > LARGE and height * width > 4 * SMALL_SIDE**2:
        words += f" (--image_size={SMALL_SIDE} would take {_bytes(count * SMALL_SIDE**2 * channels)})"
    return words


def _bytes(count: float) -> str:
    for unit, size in (("GB", 1e9), ("MB", 1e6)):
        if count >= size:
            return f"{count / size:.1f} {unit}"
    return f"{count / 1e3:.0f} kB"


def _report_left_out(data_dir: Path, listing: Listing, unreadable: list[list[str]]) -> None:
    """Print what was left out of each split, and which folders were not used. unreadable: [split, file and reason]."""
    for split, words in unreadable:
        listing.left_out[split].add("unreadable", words)
    for split in BOTH:
        if counts := listing.left_out[split].describe():
            notify(f"left out of {listing.folders[split]}: {counts}")
    for name in unused_folders(data_dir, listing.folders.values()):
        notify(f"left out of {data_dir}: the folder {name} (--val_fraction takes validation images from train)")


def _check_classes(listing: Listing, stored: dict[str, Any]) -> None:
    """Raise RunError if a class has no readable image in a split."""
    for split in BOTH:
        for label, name in enumerate(listing.classes):
            if not (stored[f"{split}_labels"] == label).any():
                folder = listing.folders[split]
                raise RunError(
                    f"no image of class {name} in {folder} can be read ({listing.left_out[split].describe()})"
                )

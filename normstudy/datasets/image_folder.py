"""Folders of images: train/<class>/ and test/<class>/."""

import hashlib
import os

import numpy as np
import torch

from normstudy.cli import RunError, progress_bar
from normstudy.datasets.image_cache import CACHE_NAME, read_cache, write_cache
from normstudy.datasets.splits import Dataset, Split


def image_folder(data_dir, image_size=None):
    """`data_dir`/train/<class>/ and /test/<class>/ in any format that PIL reads, decoded once and cached.

    Images of one common size keep it; otherwise image_size says what all are resized to. The cache beside the
    images is used only while its checksum holds and every file's path, size and time are those it was made from.
    Raises RunError for missing folders, unreadable files (by name), and sizes that differ.
    """
    classes, files = _list_images(data_dir)
    listing = _listing_digest(classes, files)
    cache = data_dir / CACHE_NAME
    stored = read_cache(cache, listing, image_size)
    if stored is None:
        stored = _decode(files, image_size)
        write_cache(stored, cache, listing)
    splits = [Split(stored[f"{name}_images"], stored[f"{name}_labels"]) for name in ("train", "test")]
    return Dataset(*splits, classes)


def _list_images(data_dir):
    """(class names, {split: [(path, label)]}) of an image folder, sorted by name."""
    from PIL import Image

    known = Image.registered_extensions()
    names, files = {}, {}
    for split in ("train", "test"):
        folder = data_dir / split
        if not folder.is_dir():
            is_too_deep = data_dir.name in ("train", "test") and (data_dir.parent / split).is_dir()
            hint = f"; try --data_dir={data_dir.parent}" if is_too_deep else ""
            raise RunError(f"{folder} is not a folder: --data_dir needs train/<class>/ and test/<class>/ in it{hint}")
        folders = [entry.name for entry in os.scandir(folder) if entry.is_dir() and not entry.name.startswith(".")]
        names[split] = sorted(folders)
        files[split] = [
            (entry, label)
            for label, name in enumerate(names[split])
            for entry in sorted(os.scandir(folder / name), key=lambda entry: entry.name)
            if os.path.splitext(entry.name)[1].lower() in known and not entry.name.startswith(".")
        ]
        if not files[split]:
            raise RunError(f"{folder} holds no images in folders named after their class")
    if names["train"] != names["test"]:
        unpaired = sorted(set(names["train"]) ^ set(names["test"]))
        raise RunError(f"class {unpaired[0]} of {data_dir} is in only one of train and test")
    return tuple(names["train"]), files


def _listing_digest(classes, files):
    """A hash of every file's path, size, modification time and inode (which tells folders that swapped names)."""
    lines = []
    for split, entries in files.items():
        for entry, label in entries:
            status = entry.stat()
            lines.append(
                f"{split}/{classes[label]}/{entry.name}\0{status.st_size}\0{status.st_mtime_ns}\0{status.st_ino}"
            )
    return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()


def _decode(files, image_size):
    """{train_images, train_labels, test_images, test_labels, resized_to} in one thread, which the GIL favours.

    resized_to is None where the files have one common size, which is then kept.
    """
    from PIL import Image

    total = sum(len(entries) for entries in files.values())
    sizes, unreadable = set(), {}
    for entries in files.values():
        for entry, _ in entries:
            sizes.add(_open_image(entry, lambda image: image.size, unreadable))
    has_one_size = len(sizes - {None}) == 1
    if not has_one_size and image_size is None and not unreadable:
        shapes = first_few(f"{width}×{height}" for width, height in sizes)
        raise RunError(f"the images differ in size ({shapes}): give --image_size to resize them")

    def pixels(image):
        image = _to_rgb(image)
        if has_one_size or image_size is None:
            return np.asarray(image)
        return np.asarray(image.resize((image_size, image_size), Image.Resampling.BILINEAR))

    stored = {"resized_to": None if has_one_size else image_size}
    with progress_bar(total, "decoding images") as bar:
        for split, entries in files.items():
            arrays = []
            for entry, _ in entries:
                arrays.append(_open_image(entry, pixels, unreadable))
                bar.update()
            if not unreadable:
                stored[f"{split}_images"] = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
            stored[f"{split}_labels"] = torch.tensor([label for _, label in entries])
    if unreadable:
        raise RunError(f"{len(unreadable)} of {total} files cannot be read as images: {first_few(unreadable.values())}")
    return stored


def _to_rgb(image):
    """A PIL image in 8-bit RGB; 16 bits are scaled, alpha is dropped. Raises ValueError for floating-point pixels."""
    from PIL import Image

    if image.mode == "F":
        raise ValueError("floating-point pixels have no known range")
    if image.mode.startswith("I"):
        image = Image.fromarray((np.asarray(image).clip(0, 65535) / 257).round().astype(np.uint8))
    if "transparency" in image.info:
        image = image.convert("RGBA")
    return image.convert("RGB")


def _open_image(entry, use, unreadable):
    """use(the opened image); where PIL cannot, None, and `unreadable` gets the file's name and why."""
    from PIL import Image

    try:
        with Image.open(entry.path) as image:
            return use(image)
    except Exception as error:  # PIL raises many types for what files can hold; each is reported by name
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else error
        unreadable[entry.path] = f"{entry.path} ({reason})"
        return None


def first_few(items, most=5):
    """The first few of `items` as text, and how many more there are."""
    items = sorted(map(str, items))
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more

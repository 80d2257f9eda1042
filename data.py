"""Data sets as uint8 tensors, and batches of them made on the device: no workers, no PIL in the loop.

Images are (N, 3, H, W) uint8, labels (N,) int64. Data order and flips are functions of (seed, epoch) alone.
"""

import contextlib
import hashlib
import os
import sys
import warnings
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from config import EVALUATION_BATCH, progress_bar
from errors import RunError, UsageError
from files import remove_leftovers, write_torch

SUBSET_SEED = 0  # subsets and the validation split are the same for every training seed
SYNTHETIC_CLASSES = 10
SYNTHETIC_SIZE = 32
SYNTHETIC_TRAIN, SYNTHETIC_TEST = 5000, 1000
CACHE_NAME = "decoded-images.pt"
LEFTOVER_SECONDS = 3600  # after which nobody still writes a cache
CIFAR_FOLDERS = {"CIFAR-10": "cifar-10-batches-py", "CIFAR-100": "cifar-100-python"}


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
                digest.update(_digest(split.images, split.labels).encode())
        return digest.hexdigest()[:16]


def load(config):
    """The data set that a Config names, on the CPU, subsets and validation split taken.

    Raises RunError where it cannot be read, UsageError where it is smaller than the flags ask.
    """
    if config.dataset == "Synthetic":
        dataset = synthetic(config.seed)
    elif config.dataset == "ImageFolder":
        dataset = image_folder(Path(config.data_dir), config.image_size)
    else:
        dataset = cifar(config.dataset, Path(config.data_dir), config.download)
    train, test = dataset.train, dataset.test
    if config.train_samples is not None:
        train = train.take(_subset("train_samples", train, config.train_samples, dataset.classes))
    if config.test_samples is not None:
        test = test.take(_subset("test_samples", test, config.test_samples, dataset.classes))
    validation = None
    if config.val_fraction > 0:
        held_out = round(config.val_fraction * len(train))
        if not 0 < held_out < len(train):
            raise UsageError(f"--val_fraction={config.val_fraction:g} of {len(train)} images leaves a split empty")
        chosen = torch.zeros(len(train), dtype=torch.bool)
        chosen[_subset("val_fraction", train, held_out, dataset.classes)] = True
        train, validation = train.take(~chosen), train.take(chosen)
    return Dataset(train, test, dataset.classes, validation)


def _subset(flag, split, count, classes):
    try:
        return balanced_subset(split.labels, count, len(classes))
    except ValueError as error:
        raise UsageError(f"--{flag} asks for {count} of {len(split)} images: {error}") from None


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


# Batches


def prepare(images, flips=None, image_size=None):
    """Network input from uint8 images (N, 3, H, W): float32 in [−1, 1] (mean 0.5, std 0.5), channels_last.

    flips (N,) bool mirrors those images; image_size resizes (bilinear) where it differs from H or W.
    """
    if flips is not None:
        images = torch.where(flips[:, None, None, None], images.flip(3), images)
    x = images.to(torch.float32, memory_format=torch.channels_last).div_(127.5).sub_(1)
    if image_size is not None and x.shape[2:] != (image_size, image_size):
        shrinks = image_size < max(x.shape[2:])
        x = F.interpolate(x, (image_size, image_size), mode="bilinear", align_corners=False, antialias=shrinks)
        x = x.contiguous(memory_format=torch.channels_last)
    return x


def training_order(split, seed, epoch):
    """(order, flips), (len(split),) each: the order of the samples in an epoch, and whether each is mirrored then.

    They depend on (seed, epoch) alone; they lie on the split's device.
    """
    generator = seeded_generator("epoch", seed, epoch)
    order = torch.randperm(len(split), generator=generator)
    flips = torch.rand(len(split), generator=generator) < 0.5
    return order.to(split.labels.device), flips.to(split.labels.device)


def training_batch(split, indices, flips, image_size=None):
    """(images, labels) of some samples of a split; flips goes with indices, (N,) each."""
    return prepare(split.images[indices], flips, image_size), split.labels[indices]


def training_batches(split, batch_size, seed, epoch, image_size=None, first_step=0):
    """Shuffled, randomly flipped (images, labels) of one epoch, from its step `first_step` on.

    The last batch may be smaller.
    """
    order, flips = training_order(split, seed, epoch)
    for start in range(first_step * batch_size, len(split), batch_size):
        batch = slice(start, start + batch_size)
        yield training_batch(split, order[batch], flips[batch], image_size)


def evaluation_batches(split, image_size=None, batch_size=EVALUATION_BATCH, first=0, every=1):
    """(images, labels) in order, unaugmented; the batch `first` and each `every`-th one after it."""
    for start in range(first * batch_size, len(split), every * batch_size):
        yield (
            prepare(split.images[start : start + batch_size], image_size=image_size),
            split.labels[start : start + batch_size],
        )


# Data sets


def synthetic(seed):
    """Ten classes of smooth random patterns, shifted, recoloured and noisy: learnable from a few hundred images.

    5,000 training and 1,000 test images of 32×32, made from the seed within a second.
    """
    generator = seeded_generator("synthetic", seed)
    coarse = torch.randn(SYNTHETIC_CLASSES, 3, 6, 6, generator=generator)
    patterns = F.interpolate(coarse, (SYNTHETIC_SIZE + 8,) * 2, mode="bicubic", align_corners=False)

    def split(count):
        labels = torch.arange(count) % SYNTHETIC_CLASSES
        shifts = torch.randint(0, 9, (2, count), generator=generator)
        span = torch.arange(SYNTHETIC_SIZE)
        rows, columns = (shifts[axis][:, None] + span for axis in (0, 1))
        x = patterns[labels[:, None, None], :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2)
        contrast = 0.5 + torch.rand(count, 1, 1, 1, generator=generator)
        x = contrast * x + torch.randn(count, 3, 1, 1, generator=generator)
        x = x + 1.5 * torch.randn(x.shape, generator=generator)
        return Split((x * 40 + 127.5).clamp(0, 255).to(torch.uint8), labels)

    names = tuple(f"pattern {index}" for index in range(SYNTHETIC_CLASSES))
    return Dataset(split(SYNTHETIC_TRAIN), split(SYNTHETIC_TEST), names)


def cifar(name, data_dir, download):
    """CIFAR-10 or CIFAR-100 through torchvision, which checks every file's md5 before it is read. Raises RunError.

    What was read is kept beside the archive's folder, for torchvision alone takes seconds to import; it is used only
    while its checksum holds and every file of the folder is as it was.
    """
    cache = data_dir / f"{name}-{CACHE_NAME}"
    folder = data_dir / CIFAR_FOLDERS[name]
    stored = _read_cache(cache, _folder_digest(folder), None)
    if stored is None:
        stored = _read_cifar(name, data_dir, download)
        _keep(stored, cache, _folder_digest(folder))
    splits = [Split(stored[f"{split}_images"], stored[f"{split}_labels"]) for split in ("train", "test")]
    return Dataset(*splits, tuple(stored["classes"]))


def _folder_digest(folder):
    """A hash of the name, size, modification time and inode of every file in a folder."""
    with contextlib.suppress(OSError):
        entries = sorted((entry.name, entry.stat()) for entry in os.scandir(folder))
        lines = [f"{name}\0{found.st_size}\0{found.st_mtime_ns}\0{found.st_ino}" for name, found in entries]
        return hashlib.sha256("\n".join(lines).encode("utf-8", "surrogateescape")).hexdigest()
    return "no folder"


def _read_cifar(name, data_dir, download):
    """{train_images, train_labels, test_images, test_labels, classes, resized_to} as torchvision reads them."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise RunError(f"torchvision does not work beside this torch ({error}); install the pair that fits") from None
    reader = {"CIFAR-10": datasets.CIFAR10, "CIFAR-100": datasets.CIFAR100}[name]
    try:
        parts = {split: reader(str(data_dir), train=split == "train", download=download) for split in ("train", "test")}
    except (OSError, RuntimeError) as error:
        found = f"{name} is not in {data_dir} or is damaged there: add --download=True, or"
        if download:
            found = f"{name} could not be fetched into {data_dir} ({str(error).splitlines()[0]}):"
        raise RunError(
            f"{found} unpack its archive so that {data_dir / reader.base_folder} exists (--data_dir names the folder)"
        ) from None
    stored = {"resized_to": None, "classes": list(parts["train"].classes)}
    for split, part in parts.items():
        stored[f"{split}_images"] = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        stored[f"{split}_labels"] = torch.tensor(part.targets)
    return stored


def _keep(stored, cache, listing):
    """Writes what was read into the cache, with its checksum and the listing of what it was read from."""
    remove_leftovers(cache.parent, f".{cache.name}.*.tmp", LEFTOVER_SECONDS)
    try:
        write_torch(cache, stored | {"listing": listing, "digest": _cache_digest(stored)})
    except OSError as error:
        warnings.warn(f"the decoded images could not be kept in {cache}: {error.strerror}", stacklevel=3)


def image_folder(data_dir, image_size=None):
    """`data_dir`/train/<class>/ and /test/<class>/ in any format that PIL reads, decoded once and cached.

    Images of one common size keep it; otherwise image_size says what all are resized to. The cache beside the
    images is used only while its checksum holds and every file's path, size and time are those it was made from.
    Raises RunError for missing folders, unreadable files (by name), and sizes that differ.
    """
    classes, files = _list_images(data_dir)
    listing = _listing_digest(classes, files)
    cache = data_dir / CACHE_NAME
    stored = _read_cache(cache, listing, image_size)
    if stored is None:
        stored = _decode(files, image_size)
        _keep(stored, cache, listing)
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


def _digest(*tensors):
    """SHA-256 over the shapes and bytes of CPU tensors."""
    digest = hashlib.sha256()
    for tensor in tensors:
        digest.update(repr(tuple(tensor.shape)).encode())
        digest.update(np.ascontiguousarray(tensor.numpy()))
    return digest.hexdigest()


def _cache_digest(stored):
    names = repr(stored["classes"]) if "classes" in stored else ""
    return names + _digest(*[stored[f"{split}_{part}"] for split in ("train", "test") for part in ("images", "labels")])


def _read_cache(cache, listing, image_size):
    """The cache's dict, or None where it is missing, stale or damaged."""
    if not cache.exists():
        return None
    try:
        stored = torch.load(cache, weights_only=True, map_location="cpu")
        if stored["listing"] != listing or stored["resized_to"] not in (None, image_size):
            return None
        if stored["digest"] == _cache_digest(stored):
            return stored
    except Exception:  # torch.load has no common base for what a damaged file raises; decoding again mends it
        pass
    print(f"{cache} is damaged: the images are read anew", file=sys.stderr)
    return None


def _decode(files, image_size):
    """{train_images, train_labels, test_images, test_labels, resized_to} in one thread, which the GIL favours.

    resized_to is None where the files have one common size, which is then kept.
    """
    from PIL import Image

    total = sum(len(entries) for entries in files.values())
    sizes, unreadable = set(), {}
    for entries in files.values():
        for entry, _ in entries:
            sizes.add(_open(entry, lambda image: image.size, unreadable))
    has_one_size = len(sizes - {None}) == 1
    if not has_one_size and image_size is None and not unreadable:
        shapes = _few(f"{width}×{height}" for width, height in sizes)
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
                arrays.append(_open(entry, pixels, unreadable))
                bar.update()
            if not unreadable:
                stored[f"{split}_images"] = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2).contiguous()
            stored[f"{split}_labels"] = torch.tensor([label for _, label in entries])
    if unreadable:
        raise RunError(f"{len(unreadable)} of {total} files cannot be read as images: {_few(unreadable.values())}")
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


def _open(entry, use, unreadable):
    """use(the opened image); where PIL cannot, None, and `unreadable` gets the file's name and why."""
    from PIL import Image

    try:
        with Image.open(entry.path) as image:
            return use(image)
    except Exception as error:  # PIL raises many types for what files can hold; each is reported by name
        reason = "not an image" if isinstance(error, Image.UnidentifiedImageError) else error
        unreadable[entry.path] = f"{entry.path} ({reason})"
        return None


def _few(items, most=5):
    """The first few of `items` as text, and how many more there are."""
    items = sorted(map(str, items))
    more = f" and {len(items) - most} more" if len(items) > most else ""
    return ", ".join(items[:most]) + more

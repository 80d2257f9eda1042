"""CIFAR-10 and CIFAR-100 through torchvision."""

import contextlib
import hashlib
import os

import torch

from normstudy.cli import RunError
from normstudy.datasets.image_cache import CACHE_NAME, read_cache, write_cache
from normstudy.datasets.splits import Dataset, Split

CIFAR_FOLDERS = {"CIFAR-10": "cifar-10-batches-py", "CIFAR-100": "cifar-100-python"}


def cifar(name, data_dir, download):
    """CIFAR-10 or CIFAR-100 through torchvision, which checks every file's md5 before it is read. Raises RunError.

    What was read is kept beside the archive's folder, for torchvision alone takes seconds to import; it is used only
    while its checksum holds and every file of the folder is as it was.
    """
    cache = data_dir / f"{name}-{CACHE_NAME}"
    folder = data_dir / CIFAR_FOLDERS[name]
    stored = read_cache(cache, _folder_digest(folder), None)
    if stored is None:
        stored = _read_cifar(name, data_dir, download)
        write_cache(stored, cache, _folder_digest(folder))
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

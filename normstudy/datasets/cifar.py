"""CIFAR-10 and CIFAR-100 through torchvision."""

import os
from pathlib import Path
from typing import Any

import torch

from normstudy.cli import RunError
from normstudy.datasets.image_cache import CACHE_NAME, cache_files, files_digest, read_cache, to_dataset, write_cache
from normstudy.datasets.splits import Dataset

CIFAR_FOLDERS = {"CIFAR-10": "cifar-10-batches-py", "CIFAR-100": "cifar-100-python"}
CIFAR_ARCHIVES = {"CIFAR-10": "cifar-10-python.tar.gz", "CIFAR-100": "cifar-100-python.tar.gz"}


def load_cifar(name: str, data_dir: Path, download: bool, cache_dir: str | None = None) -> Dataset:
    """Load CIFAR-10 or CIFAR-100 through torchvision, which checks every file's md5 before it is read.

    The images are cached next to the archive's folder or in cache_dir (see cache_files), because importing torchvision
    takes seconds. The cache is used only if its checksum is right and no file of the folder has changed. data_dir
    contains the archive's folder, or is this folder itself. Raises RunError if the images cannot be read.
    """
    data_dir = _parent_of_batches(name, data_dir)
    caches = cache_files(data_dir, f"{name}-{CACHE_NAME}", cache_dir)
    folder = data_dir / CIFAR_FOLDERS[name]
    stored = read_cache(caches, _folder_digest(folder), None)
    if stored is None:
        stored = _read_cifar(name, data_dir, download)
        write_cache(stored, caches, _folder_digest(folder))
    return to_dataset(stored, tuple(stored["classes"]))


def _parent_of_batches(name: str, data_dir: Path) -> Path:
    """Return the folder that contains the archive's folder, which data_dir itself may be."""
    absolute = Path(os.path.abspath(data_dir))
    is_archive_folder = absolute.name == CIFAR_FOLDERS[name] and not (data_dir / CIFAR_FOLDERS[name]).exists()
    return absolute.parent if is_archive_folder else data_dir


def _folder_digest(folder: Path) -> str:
    try:
        return files_digest((entry.name, entry) for entry in sorted(os.scandir(folder), key=lambda entry: entry.name))
    except OSError:
        return "no folder"


def _read_cifar(name: str, data_dir: Path, download: bool) -> dict[str, Any]:
    """Return the images, labels and class names as torchvision reads them; see write_cache."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        raise RunError(f"torchvision does not work with this torch ({error}); install matching versions") from None
    reader = {"CIFAR-10": datasets.CIFAR10, "CIFAR-100": datasets.CIFAR100}[name]
    try:
        parts = {split: reader(str(data_dir), train=split == "train", download=download) for split in ("train", "test")}
    except (OSError, RuntimeError) as error:
        archive = data_dir / CIFAR_ARCHIVES[name]
        found = f"{name} is missing from {data_dir} or damaged: add --download=True, or"
        if download:
            found = f"{name} could not be downloaded to {data_dir} ({str(error).splitlines()[0]}):"
        elif data_dir.is_file():
            raise RunError(
                f"--data_dir={data_dir} is a file; give the folder that contains it, and --download=True to unpack it"
            ) from None
        elif archive.exists():
            found = f"{archive} is not unpacked: add --download=True, which unpacks it without a download, or"
        raise RunError(
            f"{found} unpack its archive so that {data_dir / reader.base_folder} exists (--data_dir names the folder)"
        ) from None
    stored: dict[str, Any] = {"resized_to": None, "classes": list(parts["train"].classes)}
    for split, part in parts.items():
        stored[f"{split}_images"] = torch.from_numpy(part.data).permute(0, 3, 1, 2).contiguous()
        stored[f"{split}_labels"] = torch.tensor(part.targets)
    return stored

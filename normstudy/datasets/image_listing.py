"""Which files of a folder are images of which class, and how many files are left out for which reason."""

import contextlib
import importlib
import os
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from PIL import Image

from normstudy.cli import RunError

SPELLINGS = {"train": ("train", "training"), "test": ("test", "testing")}
BOTH = ("train", "test")
VALIDATION = ("val", "valid", "validation")
HEIC = (".heic", ".heif", ".hif")
HEIC_HINT = "to use HEIC images, convert them to JPEG or pip install pillow-heif"
FEW = 5  # names or kinds of files in one line
REASONS = {  # {reason: (singular, plural)}
    "unreadable": ("unreadable image", "unreadable images"),
    "hidden": ("hidden file or folder", "hidden files and folders"),
    "outside": ("image outside the class folders", "images outside the class folders"),
    "link": ("link that leads nowhere or in a circle", "links that lead nowhere or in a circle"),
    "empty": ("empty class folder", "empty class folders"),
}


@dataclass(frozen=True)
class ImageFile:
    """An image file: its path, its name below the folder of its split, and the label of its class."""

    path: str
    name: str
    label: int


@dataclass
class LeftOut:
    """The files of a split that are left out: their number by extension and by reason, and some of their names."""

    extensions: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    names: dict[str, list[str]] = field(default_factory=dict)  # {reason: the names of some files or folders}

    def add(self, reason: str, *names: str) -> None:
        """Count a file or folder that is left out for one of REASONS."""
        self.reasons[reason] += 1
        self.names.setdefault(reason, []).extend(names)

    def add_file(self, name: str) -> None:
        """Count a file with an extension that Pillow does not know."""
        self.extensions[os.path.splitext(name)[1].lower() or "no extension"] += 1

    def update(self, other: "LeftOut") -> None:
        """Add the counts and names of another LeftOut."""
        self.extensions.update(other.extensions)
        self.reasons.update(other.reasons)
        for reason, names in other.names.items():
            self.names.setdefault(reason, []).extend(names)

    def describe(self) -> str:
        """Return the counts as text, or an empty text if nothing is left out."""
        parts = []
        if self.extensions:
            in_order = sorted(self.extensions, key=lambda name: (-self.extensions[name], name))
            kinds = ", ".join(f"{name} {self.extensions[name]}" for name in in_order[:FEW])
            kinds += ", …" if len(self.extensions) > FEW else ""
            hint = f"; {HEIC_HINT}" if self.extensions.keys() & set(HEIC) else ""
            files = (
                "file with an unknown extension" if self.extensions.total() == 1 else "files with unknown extensions"
            )
            parts.append(f"{self.extensions.total():,} {files} ({kinds}{hint})")
        for reason, (one, several) in REASONS.items():
            if count := self.reasons[reason]:
                names = f" ({first_few(self.names[reason])})" if self.names.get(reason) else ""
                parts.append(f"{count:,} {one if count == 1 else several}{names}")
        return ", ".join(parts)


@dataclass(frozen=True)
class Listing:
    """The images of a folder. Both dicts have the keys train and test.

    classes: the names in Unicode's composed form (NFC), in order. folders: the folder of each split.
    """

    classes: tuple[str, ...]
    folders: dict[str, Path]
    files: dict[str, list[ImageFile]]
    left_out: dict[str, LeftOut]


def list_images(data_dir: Path) -> Listing:
    """List the images of `data_dir`/train/<class>/ and `data_dir`/test/<class>/, with those in subfolders of a class.

    Files of a class are in the order of their names. Class names are compared in NFC, because other systems store them
    decomposed. An empty class folder counts as absent. Raises RunError if a folder is missing, if a class has no images
    in one of both, or if none of the files in a class folder is an image.
    """
    try:
        folders = {split: _split_folder(data_dir, split) for split in BOTH}
        left_out = {split: LeftOut() for split in BOTH}
        members = {split: _classes(folder, left_out[split]) for split, folder in folders.items()}
    except OSError as error:
        raise RunError(f"the images in {data_dir} cannot be listed: {error.strerror} ({error.filename})") from None
    _check_pairs(folders, members, left_out)
    classes = tuple(members["train"])
    files = {
        split: [
            ImageFile(path, path.removeprefix(f"{folders[split]}{os.sep}"), label)
            for label, name in enumerate(classes)
            for path in members[split][name]
        ]
        for split in BOTH
    }
    return Listing(classes, folders, files, left_out)


def first_few(names: Iterable[str]) -> str:
    """Return the first names as text, and how many more there are."""
    in_order = sorted(names)
    more = f" and {len(in_order) - FEW} more" if len(in_order) > FEW else ""
    return ", ".join(in_order[:FEW]) + more


def unused_folders(data_dir: Path, used: Iterable[Path]) -> list[str]:
    """Return the names of the folders in `data_dir` that are named like a split and not used."""
    names = {name for spellings in (*SPELLINGS.values(), VALIDATION) for name in spellings}
    alike = [name for name in _subfolders(data_dir) if name.casefold() in names]
    return [name for name in alike if not any(os.path.samefile(data_dir / name, folder) for folder in used)]


def _subfolders(folder: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def _split_folder(data_dir: Path, split: str) -> Path:
    """Return the folder of a split, which may be spelled in another usual way. Raises RunError if there is none."""
    expected = data_dir / split
    if expected.is_dir():
        return expected
    inside = _subfolders(data_dir) if data_dir.is_dir() else []
    alike = [name for name in inside if name.casefold() in SPELLINGS[split]]
    if len(alike) == 1:
        return data_dir / alike[0]
    if alike:
        raise RunError(
            f"{data_dir} contains {' and '.join(alike)}: rename the folder with the {split} images to {split}"
        )
    hint = _hint(data_dir, split, inside)
    raise RunError(f"{expected} is not a folder: --data_dir must contain train/<class>/ and test/<class>/{hint}")


def _hint(data_dir: Path, split: str, inside: list[str]) -> str:
    """Return what to do about a missing split, or an empty text. inside: the names of the folders in `data_dir`."""
    validation = [name for name in inside if name.casefold() in VALIDATION]
    if split == "test" and validation:
        return f"; to test on the images in {validation[0]}, rename that folder to test"
    is_split = data_dir.name.casefold() in (*SPELLINGS["train"], *SPELLINGS["test"], *VALIDATION)
    for folder in [data_dir.parent] * (is_split and data_dir.is_dir()) + [data_dir / name for name in inside]:
        with contextlib.suppress(PermissionError):
            if any(name.casefold() in SPELLINGS[split] for name in _subfolders(folder)):
                return f"; try --data_dir={folder}"
    return ""


def _classes(folder: Path, left_out: LeftOut) -> dict[str, list[str]]:
    """Return {class: the paths of its images} of a split, sorted by class."""
    folders: dict[str, list[str]] = {}
    for entry in _sorted_entries(str(folder)):
        if entry.name.startswith("."):
            left_out.add("hidden")
        elif entry.is_dir():
            folders.setdefault(unicodedata.normalize("NFC", entry.name), []).append(entry.path)
        elif is_image_name(entry.name):
            left_out.add("outside")
        else:
            left_out.add_file(entry.name)
    found = {}
    for name in sorted(folders):
        here = LeftOut()
        images = [path for each in folders[name] for path in _images_below(each, here)]
        if images:
            found[name] = images
        elif here.extensions or here.reasons["link"]:
            raise RunError(f"class {name} of {folder} has no images: it contains {here.describe()}")
        else:
            here.add("empty", name)
        left_out.update(here)
    return found


def _images_below(folder: str, left_out: LeftOut, parents: tuple[tuple[int, int], ...] = ()) -> Iterator[str]:
    """Yield the paths of the images in a folder and its subfolders. A link to a folder above is not followed."""
    status = os.stat(folder)
    identity = (status.st_dev, status.st_ino)
    if identity in parents:
        left_out.add("link")
        return
    for entry in _sorted_entries(folder):
        if entry.name.startswith("."):
            left_out.add("hidden")
        elif entry.is_dir():
            yield from _images_below(entry.path, left_out, (*parents, identity))
        elif not entry.is_file():
            left_out.add("link")
        elif is_image_name(entry.name):
            yield entry.path
        else:
            left_out.add_file(entry.name)


def _sorted_entries(folder: str) -> list[os.DirEntry[str]]:
    return sorted(os.scandir(folder), key=lambda entry: entry.name)


def is_image_name(name: str) -> bool:
    """Return whether a file has the extension of a format that Pillow, with pillow-heif if installed, reads."""
    extension = os.path.splitext(name)[1].lower()
    if extension in HEIC:
        with contextlib.suppress(ImportError):
            importlib.import_module("pillow_heif").register_heif_opener()
    return extension in Image.registered_extensions()


def _check_pairs(
    folders: dict[str, Path], members: dict[str, dict[str, list[str]]], left_out: dict[str, LeftOut]
) -> None:
    """Raise RunError if a split has no images, or a class has images in only one of both."""
    for split, folder in folders.items():
        if not members[split]:
            rest = left_out[split].describe()
            found = f": it contains {rest}" if rest else ""
            raise RunError(f"{folder} contains no images in folders named after their class{found}")
    alone = {split: members[split].keys() - members[other].keys() for split, other in (BOTH, BOTH[::-1])}
    where = [f"{first_few(names)} only in {folders[split]}" for split, names in alone.items() if names]
    if where:
        raise RunError(
            f"a class needs images in both folders, but there are images of {' and of '.join(where)}; add images, or "
            "give the folders of a class the same name in both"
        )

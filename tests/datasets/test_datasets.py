"""Data sets arrive as they are on disk, caches are never trusted, and batches are functions of (seed, epoch)."""

import errno
import hashlib
import itertools
import os
import pickle
import shutil
import sys
import tarfile
import types
from dataclasses import replace
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch.nn import functional as F

from config import parse_args
from normstudy.cli import RunError, UsageError
from normstudy.datasets import balanced_subset, cifar, evaluation_batches, image_cache, loading
from normstudy.datasets.batches import prepare, training_batches
from normstudy.datasets.image_folder import image_folder
from normstudy.datasets.splits import Dataset, Split
from normstudy.datasets.synthetic import synthetic as make_synthetic


def complaint(call):
    """The one line with which `call` says what a user can mend."""
    with pytest.raises(RunError) as caught:
        call()
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    return lines[0]


def load(**flags):
    return loading.load(parse_args([f"--{name}={value}" for name, value in flags.items()]))


def random_images(count, height=8, width=8, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, height, width), dtype=torch.uint8, generator=generator)


def random_split(count, num_classes=2, seed=0, **size):
    return Split(random_images(count, seed=seed, **size), torch.arange(count) % num_classes)


def numbered_split(count, num_classes=1):
    """Sample i is an image filled with i, so that neither flips nor scaling hide which sample it is."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(count, 3, 4, 4).contiguous()
    return Split(images, torch.arange(count) % num_classes)


def numbers(images):
    """Which samples of a numbered split these prepared images are."""
    return ((images[:, 0, 0, 0] + 1) * 127.5).round().long().tolist()


def same(a, b):
    return torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)


def same_dataset(a, b):
    return a.classes == b.classes and same(a.train, b.train) and same(a.test, b.test)


def same_batches(a, b):
    pairs = itertools.zip_longest(a, b, fillvalue=(None, None))
    return all(torch.equal(x, y) and torch.equal(s, t) for (x, s), (y, t) in pairs)


# CIFAR


@pytest.fixture
def vision():
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not import: {error}")
    return datasets


def cifar_batches(name):
    """(the Dataset, {file name: content}) of a small archive with the layout of CIFAR-10 or CIFAR-100."""
    generator = np.random.default_rng(0)
    if name == "CIFAR-10":
        counts = {f"data_batch_{index}": 3 + index for index in range(1, 6)} | {"test_batch": 5}
        classes, label_key, meta = [f"thing {index}" for index in range(10)], "labels", "batches.meta"
        contents = {meta: {"label_names": classes, "num_cases_per_batch": 10000, "num_vis": 3072}}
    else:
        counts = {"train": 30, "test": 20}
        classes, label_key, meta = [f"thing {index}" for index in range(100)], "fine_labels", "meta"
        contents = {meta: {"fine_label_names": classes, "coarse_label_names": ["living", "not living"]}}
    splits = {"train": [], "test": []}
    for file_name, count in counts.items():
        rows = generator.integers(0, 256, (count, 3 * 32 * 32), dtype=np.uint8)
        labels = generator.integers(0, len(classes), count).tolist()
        contents[file_name] = {"data": rows, label_key: labels, "coarse_labels": [0] * count, "batch_label": "a batch"}
        splits["test" if "test" in file_name else "train"].append((rows, labels))
    train, test = (
        Split(
            torch.from_numpy(np.concatenate([rows for rows, _ in parts])).reshape(-1, 3, 32, 32),
            torch.tensor([label for _, labels in parts for label in labels]),
        )
        for parts in splits.values()
    )
    return Dataset(train, test, tuple(classes)), {key: pickle.dumps(value, 2) for key, value in contents.items()}


def md5(content):
    return hashlib.md5(content).hexdigest()


@pytest.fixture(params=["CIFAR-10", "CIFAR-100"])
def archive(request, vision, tmp_path, monkeypatch):
    """name, expected Dataset, folder that holds the unpacked batches; torchvision knows their md5 sums."""
    expected, contents = cifar_batches(request.param)
    reader = {"CIFAR-10": vision.CIFAR10, "CIFAR-100": vision.CIFAR100}[request.param]
    for attribute in ("train_list", "test_list"):
        sums = [[file_name, md5(contents[file_name])] for file_name, _ in getattr(reader, attribute)]
        monkeypatch.setattr(reader, attribute, sums)
    monkeypatch.setattr(reader, "meta", reader.meta | {"md5": md5(contents[reader.meta["filename"]])})
    folder = tmp_path / "data" / reader.base_folder
    folder.mkdir(parents=True)
    for file_name, content in contents.items():
        (folder / file_name).write_bytes(content)
    return types.SimpleNamespace(name=request.param, reader=reader, expected=expected, folder=folder, contents=contents)


@pytest.fixture
def packed_archive(archive, vision, tmp_path, monkeypatch):
    """The same batches, packed, at a file:// address; nothing is unpacked."""
    packed = tmp_path / "site" / archive.reader.filename
    packed.parent.mkdir()
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(archive.folder, archive.reader.base_folder)
    shutil.rmtree(archive.folder)
    monkeypatch.setattr(archive.reader, "url", packed.as_uri())
    monkeypatch.setattr(archive.reader, "tgz_md5", md5(packed.read_bytes()))

    def retrieve(url, path, *_):
        shutil.copyfile(url2pathname(urlparse(url).path), path)

    monkeypatch.setattr(vision.utils, "_urlretrieve", retrieve)  # its own asks for a length, which files lack
    archive.packed = packed
    return archive


def test_cifar_pixels_labels_and_class_names_arrive_as_they_are_on_disk(archive):
    assert same_dataset(load(dataset=archive.name, data_dir=archive.folder.parent), archive.expected)


def test_cifar_is_read_once_and_then_from_its_cache(archive, monkeypatch):
    settings = {"dataset": archive.name, "data_dir": archive.folder.parent}
    load(**settings)
    monkeypatch.setattr(cifar, "_read_cifar", None)
    assert same_dataset(load(**settings), archive.expected)
    assert cifar.CIFAR_FOLDERS[archive.name] == archive.reader.base_folder


@pytest.mark.parametrize("damage", ["cache", "folder"])
def test_a_cache_of_cifar_is_left_where_it_or_the_archive_is_not_as_it_was(archive, damage):
    settings = {"dataset": archive.name, "data_dir": archive.folder.parent}
    load(**settings)
    cache = archive.folder.parent / f"{archive.name}-{image_cache.CACHE_NAME}"
    if damage == "cache":
        content = cache.read_bytes()
        cache.write_bytes(flip_byte(content, content.index(archive.expected.test.images.numpy().tobytes())))
        assert same_dataset(load(**settings), archive.expected)
    else:
        (archive.folder / archive.reader.test_list[0][0]).write_bytes(b"something else")
        assert "--download=True" in complaint(lambda: load(**settings))


def test_a_cache_of_cifar_that_cannot_be_written_is_a_warning(archive, monkeypatch):
    def refuse(path, value):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(image_cache, "write_torch", refuse)
    with pytest.warns(UserWarning, match="Read-only"):
        found = load(dataset=archive.name, data_dir=archive.folder.parent)
    assert same_dataset(found, archive.expected)


def test_code_in_a_cifar_batch_does_not_run(archive, tmp_path):
    made = tmp_path / "made by the payload"
    content = pickle.dumps({"data": Payload(made), "labels": []}, 2)
    for file_name in archive.contents:
        (archive.folder / file_name).write_bytes(content)
    complaint(lambda: load(dataset=archive.name, data_dir=archive.folder.parent))
    assert not made.exists()
    pickle.loads(content)
    assert made.exists(), "the payload is not live: this test would prove nothing"


@pytest.mark.parametrize("flip_or_remove", ["flip", "remove"])
def test_a_cifar_batch_that_is_not_the_published_one_is_refused(archive, flip_or_remove):
    path = archive.folder / archive.reader.train_list[0][0]
    content = path.read_bytes()
    path.unlink()
    if flip_or_remove == "flip":
        path.write_bytes(content[:-9] + bytes([content[-9] ^ 1]) + content[-8:])
    message = complaint(lambda: load(dataset=archive.name, data_dir=archive.folder.parent))
    assert "--download=True" in message
    assert "--data_dir" in message


def test_a_cifar_folder_that_is_not_there_is_named_with_what_to_do(archive, tmp_path):
    message = complaint(lambda: load(dataset=archive.name, data_dir=tmp_path / "elsewhere"))
    assert all(words in message for words in (str(tmp_path / "elsewhere"), "--download=True", "--data_dir"))


def test_download_fetches_checks_and_unpacks_cifar(packed_archive):
    found = load(dataset=packed_archive.name, data_dir=packed_archive.folder.parent, download=True)
    assert same_dataset(found, packed_archive.expected)


def test_download_mends_a_damaged_cifar_batch(packed_archive):
    packed_archive.folder.mkdir()
    (packed_archive.folder / packed_archive.reader.train_list[0][0]).write_bytes(b"half a batch")
    found = load(dataset=packed_archive.name, data_dir=packed_archive.folder.parent, download=True)
    assert same_dataset(found, packed_archive.expected)


def test_download_fetches_nothing_that_is_there(archive, monkeypatch):
    monkeypatch.setattr(archive.reader, "url", "file:///nothing/lies/here.tar.gz")
    found = load(dataset=archive.name, data_dir=archive.folder.parent, download=True)
    assert same_dataset(found, archive.expected)


@pytest.mark.parametrize("harm", ["absent", "damaged"])
def test_a_download_that_fails_is_said_in_one_line(packed_archive, harm):
    if harm == "absent":
        packed_archive.packed.unlink()
    else:
        packed_archive.packed.write_bytes(b"an error page")
    message = complaint(lambda: load(dataset=packed_archive.name, data_dir=packed_archive.folder.parent, download=True))
    assert str(packed_archive.folder.parent) in message


def test_a_torchvision_that_is_not_installed_is_named(monkeypatch, tmp_path):
    monkeypatch.setitem(sys.modules, "torchvision", None)
    assert "torchvision" in complaint(lambda: load(dataset="CIFAR-10", data_dir=tmp_path))


def test_a_torchvision_that_does_not_fit_torch_is_named(monkeypatch, tmp_path):
    class Misfit(types.ModuleType):
        def __getattr__(self, name):
            raise RuntimeError("operator torchvision::nms does not exist")

    monkeypatch.setitem(sys.modules, "torchvision", Misfit("torchvision"))
    message = complaint(lambda: load(dataset="CIFAR-10", data_dir=tmp_path))
    assert "operator torchvision::nms does not exist" in message


# ImageFolder


def write_image(path, pixels, **options):
    """Writes pixels (3, H, W) uint8 in the format that the path's extension names."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path, **options)


def make_folder(root, extension="bmp", height=8, width=8, seed=0):
    """Three training and two test images of each of two classes; gives the Dataset they hold."""
    splits = {}
    for name, count in (("train", 3), ("test", 2)):
        images = random_images(2 * count, height, width, seed=seed + count)
        labels = torch.tensor([0] * count + [1] * count)
        for index, (image, label) in enumerate(zip(images, labels, strict=True)):
            write_image(root / name / ("ant", "bee")[label] / f"{index}.{extension}", image)
        splits[name] = Split(images, labels)
    return Dataset(**splits, classes=("ant", "bee"))


@pytest.fixture
def no_decoding(monkeypatch):
    """A function that forbids PIL from then on."""

    def forbid():
        def refuse(*_, **__):
            raise AssertionError("an image was decoded")

        monkeypatch.setattr(Image, "open", refuse)

    return forbid


def quadrants():
    """Four flat colours in 8×8 blocks, which every format can hold: (3, 16, 16)."""
    colours = torch.tensor([[200, 30, 40], [20, 180, 60], [30, 50, 220], [240, 240, 10]], dtype=torch.uint8)
    return colours.T.reshape(3, 2, 2).repeat_interleave(8, 1).repeat_interleave(8, 2).contiguous()


@pytest.mark.parametrize(
    ("extension", "options", "tolerance"),
    [
        ("png", {}, 0),
        ("PNG", {}, 0),
        ("bmp", {}, 0),
        ("gif", {}, 0),
        ("tiff", {}, 0),
        ("tif", {"compression": "tiff_lzw"}, 0),
        ("webp", {"lossless": True}, 0),
        ("jpg", {"quality": 100, "subsampling": 0}, 2),
        ("jpeg", {"quality": 100, "subsampling": 0}, 2),
    ],
)
def test_every_usual_format_is_read(extension, options, tolerance, tmp_path):
    pixels = quadrants()
    for split in ("train", "test"):
        write_image(tmp_path / split / "class" / f"image.{extension}", pixels, **options)
    difference = image_folder(tmp_path).train.images[0].int() - pixels.int()
    assert difference.abs().max() <= tolerance


def gray_image(mode):
    """(the image in `mode`, the (8, 8) levels from 0 to 255 that it shows)."""
    levels = np.arange(64, dtype=np.uint8).reshape(8, 8) * 4
    return {
        "grayscale": lambda: (Image.fromarray(levels), levels),
        "gray with alpha": lambda: (Image.merge("LA", [Image.fromarray(levels)] * 2), levels),
        "16-bit": lambda: (Image.fromarray(levels.astype(np.uint16) * 257), levels),
        "black and white": lambda: (Image.fromarray(levels > 99), (levels > 99) * np.uint8(255)),
    }[mode]()


@pytest.mark.parametrize("extension", ["png", "tiff"])
@pytest.mark.parametrize("mode", ["grayscale", "gray with alpha", "16-bit", "black and white"])
def test_gray_images_become_rgb_with_three_equal_channels(mode, extension, tmp_path):
    image, levels = gray_image(mode)
    for split in ("train", "test"):
        (tmp_path / split / "class").mkdir(parents=True)
        image.save(tmp_path / split / "class" / f"image.{extension}")
    assert torch.equal(image_folder(tmp_path).train.images[0], torch.from_numpy(levels).expand(3, 8, 8))


@pytest.mark.filterwarnings("error")  # a user can do nothing about a warning here
@pytest.mark.parametrize("mode", ["RGBA", "palette", "palette with one transparent colour", "palette with alpha"])
def test_colour_images_become_rgb_without_their_alpha(mode, tmp_path):
    pixels = quadrants()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    options = {}
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)))
    else:
        image = image.quantize(4)
        options = {
            "palette with one transparent colour": {"transparency": 0},
            "palette with alpha": {"transparency": bytes([0, 99, 200, 255])},
        }.get(mode, {})
    for split in ("train", "test"):
        (tmp_path / split / "class").mkdir(parents=True)
        image.save(tmp_path / split / "class" / "image.png", **options)
    assert torch.equal(image_folder(tmp_path).train.images[0], pixels)


def test_labels_follow_the_sorted_class_names_and_images_the_sorted_file_names(tmp_path):
    names = [("zebra", "b"), ("ant", "z"), ("Bee", "m"), ("ant", "a"), ("zebra", "a")]
    images = random_images(len(names))
    for split in ("train", "test"):
        for (label, name), pixels in zip(names, images, strict=True):
            write_image(tmp_path / split / label / f"{name}.png", pixels)
    expected = Split(images[[2, 3, 1, 4, 0]], torch.tensor([0, 1, 1, 2, 2]))
    assert same_dataset(image_folder(tmp_path), Dataset(expected, expected, ("Bee", "ant", "zebra")))


def test_height_and_width_keep_their_places(tmp_path):
    expected = make_folder(tmp_path, height=4, width=6)
    assert same_dataset(image_folder(tmp_path), expected)


def test_what_is_not_an_image_of_a_class_is_ignored(tmp_path):
    expected = make_folder(tmp_path)
    stray = random_images(1)[0]
    write_image(tmp_path / "train" / "stray.png", stray)
    write_image(tmp_path / "train" / "ant" / ".hidden.png", stray)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "ant" / "no-extension").write_bytes(b"\0")
    assert same_dataset(image_folder(tmp_path), expected)


def test_hidden_folders_are_not_classes(tmp_path):
    expected = make_folder(tmp_path)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    assert same_dataset(image_folder(tmp_path), expected)


def test_the_command_line_reads_an_image_folder(tmp_path):
    expected = make_folder(tmp_path)
    assert same_dataset(load(dataset="ImageFolder", data_dir=tmp_path), expected)


# ImageFolder: sizes


def make_folder_of_two_sizes(root):
    """Flat images, so that resizing must give back their colours."""
    colours = random_images(4)[:, :, :1, :1]
    for colour, side, (split, label) in zip(
        colours, (8, 12, 12, 8), itertools.product(("train", "test"), ("ant", "bee")), strict=True
    ):
        write_image(root / split / label / "image.png", colour.expand(3, side, side + 1))
    return colours


def test_images_of_several_sizes_need_image_size(tmp_path):
    make_folder_of_two_sizes(tmp_path)
    message = complaint(lambda: image_folder(tmp_path))
    assert all(words in message for words in ("9×8", "13×12", "--image_size"))


@pytest.mark.parametrize("image_size", [10, 7, 16])
def test_images_of_several_sizes_are_resized_to_image_size(image_size, tmp_path):
    colours = make_folder_of_two_sizes(tmp_path)
    found = load(dataset="ImageFolder", data_dir=tmp_path, image_size=image_size)
    assert torch.equal(found.train.images, colours[:2].expand(2, 3, image_size, image_size))


def test_a_cache_of_another_image_size_is_not_used(tmp_path):
    make_folder_of_two_sizes(tmp_path)
    image_folder(tmp_path, image_size=10)
    assert image_folder(tmp_path, image_size=6).train.images.shape == (2, 3, 6, 6)


def test_a_cache_of_resized_images_does_not_hide_that_their_sizes_differ(tmp_path):
    make_folder_of_two_sizes(tmp_path)
    image_folder(tmp_path, image_size=10)
    assert "--image_size" in complaint(lambda: image_folder(tmp_path))


def test_images_of_one_size_keep_it_and_their_cache_serves_every_image_size(tmp_path, no_decoding):
    expected = make_folder(tmp_path)
    image_folder(tmp_path, image_size=16)
    no_decoding()
    assert same_dataset(image_folder(tmp_path), expected)


# ImageFolder: the cache


def test_a_second_load_equals_the_first_and_decodes_nothing(tmp_path, no_decoding):
    expected = make_folder(tmp_path)
    image_folder(tmp_path)
    no_decoding()
    assert same_dataset(image_folder(tmp_path), expected)


def make_folder_without_times(root):
    """Files of the same names, sizes and times in each class, as an archive that keeps no times unpacks them."""
    make_folder(root)
    for folder in root.glob("*/*"):
        for index, path in enumerate(sorted(folder.iterdir())):
            os.utime(path.rename(folder / f"{index}.bmp"), (10**9, 10**9))


def rewrite_later(root):
    """New pixels in as many bytes, a second later."""
    path = root / "train" / "ant" / "1.bmp"
    changed = path.stat().st_mtime_ns + 10**9
    write_image(path, random_images(1, seed=9)[0])
    os.utime(path, ns=(changed, changed))


def rewrite_longer(root):
    """New pixels in more bytes, at the same time stamp."""
    path = root / "train" / "ant" / "1.bmp"
    changed = path.stat().st_mtime_ns
    write_image(path, random_images(1, seed=9)[0])
    path.write_bytes(path.read_bytes() + b"\0")
    os.utime(path, ns=(changed, changed))


def add(root):
    write_image(root / "test" / "bee" / "new.bmp", random_images(1, seed=9)[0])


def remove(root):
    (root / "test" / "bee" / "1.bmp").unlink()


def move_to_the_other_split(root):
    (root / "train" / "ant" / "1.bmp").rename(root / "test" / "ant" / "9.bmp")


def move_to_the_other_class(root):
    (root / "train" / "ant" / "1.bmp").rename(root / "train" / "bee" / "9.bmp")


def rename(root):
    (root / "train" / "ant" / "1.bmp").rename(root / "train" / "ant" / "9.bmp")


def add_class(root):
    for split in ("train", "test"):
        write_image(root / split / "aardvark" / "new.bmp", random_images(1, seed=9)[0])


def swap_classes(root):
    """The class folders exchange their names."""
    for split in ("train", "test"):
        ants, bees, aside = (root / split / name for name in ("ant", "bee", "aside"))
        ants.rename(aside)
        bees.rename(ants)
        aside.rename(bees)


CHANGES = [
    rewrite_later,
    rewrite_longer,
    add,
    remove,
    move_to_the_other_split,
    move_to_the_other_class,
    rename,
    add_class,
    swap_classes,
]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_change_of_the_files_is_noticed(change, tmp_path):
    make_folder_without_times(tmp_path)
    before = image_folder(tmp_path)
    change(tmp_path)
    found = image_folder(tmp_path)
    (tmp_path / image_cache.CACHE_NAME).unlink()
    truth = image_folder(tmp_path)
    assert not same_dataset(truth, before)
    assert same_dataset(found, truth)


def flip_byte(content, position):
    return content[:position] + bytes([content[position] ^ 1]) + content[position + 1 :]


DAMAGES = {
    "empty": lambda cache, expected: b"",
    "cut in the middle": lambda cache, expected: cache[: len(cache) // 2],
    "last byte cut": lambda cache, expected: cache[:-1],
    "a pixel changed": lambda cache, expected: flip_byte(cache, cache.index(expected.test.images.numpy().tobytes())),
    "a label changed": lambda cache, expected: flip_byte(cache, cache.index(expected.train.labels.numpy().tobytes())),
    "garbage": lambda cache, expected: bytes(range(256)) * 9,
    "another pickle": lambda cache, expected: pickle.dumps({"listing": "another"}, 2),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_cache_is_noticed_and_mended(damage, tmp_path, no_decoding, capsys):
    expected = make_folder(tmp_path)
    image_folder(tmp_path)
    cache = tmp_path / image_cache.CACHE_NAME
    cache.write_bytes(DAMAGES[damage](cache.read_bytes(), expected))
    capsys.readouterr()
    assert same_dataset(image_folder(tmp_path), expected)
    assert capsys.readouterr().err == f"{cache} is damaged: the images are read anew\n"
    no_decoding()
    assert same_dataset(image_folder(tmp_path), expected)


def test_a_bit_flipped_anywhere_in_the_cache_never_changes_the_data(tmp_path):
    expected = make_folder(tmp_path)
    image_folder(tmp_path)
    cache = tmp_path / image_cache.CACHE_NAME
    whole = cache.read_bytes()
    for position in range(0, len(whole), 41):
        cache.write_bytes(flip_byte(whole, position))
        assert same_dataset(image_folder(tmp_path), expected)


class Payload:
    """Unpickling it makes a folder: what foreign code in a file would do."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def test_code_in_a_foreign_cache_does_not_run(tmp_path):
    expected = make_folder(tmp_path)
    made = tmp_path / "made by the payload"
    torch.save({"listing": Payload(made)}, tmp_path / image_cache.CACHE_NAME)
    assert same_dataset(image_folder(tmp_path), expected)
    assert not made.exists()


def test_a_cache_copied_from_another_folder_is_not_used(tmp_path):
    make_folder(tmp_path / "other", seed=50)
    image_folder(tmp_path / "other")
    expected = make_folder(tmp_path / "mine")
    (tmp_path / "other" / image_cache.CACHE_NAME).rename(tmp_path / "mine" / image_cache.CACHE_NAME)
    assert same_dataset(image_folder(tmp_path / "mine"), expected)


def test_a_folder_that_cannot_be_written_still_loads_with_a_warning(tmp_path, monkeypatch):
    expected = make_folder(tmp_path)

    def refuse(*_):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(image_cache, "write_torch", refuse)
    with pytest.warns(UserWarning, match="Read-only file system"):
        assert same_dataset(image_folder(tmp_path), expected)


# ImageFolder: what a user can mend


UNREADABLE = {
    "garbage": lambda content: b"garbage",
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("kinds", [["garbage"], ["empty"], ["truncated"], ["garbage", "truncated"]], ids="+".join)
def test_unreadable_files_are_counted_and_named(kinds, tmp_path):
    make_folder(tmp_path, "png")
    paths = [tmp_path / "train" / "bee" / "4.png", tmp_path / "test" / "ant" / "1.png"]
    for path, kind in zip(paths, itertools.cycle(kinds)):
        path.write_bytes(UNREADABLE[kind](path.read_bytes()))
    message = complaint(lambda: image_folder(tmp_path))
    assert all(words in message for words in ("2 of 10 files", *map(str, paths)))


def test_many_unreadable_files_are_counted_and_the_first_named(tmp_path):
    make_folder(tmp_path, "png")
    for path in tmp_path.glob("*/*/*.png"):
        path.write_bytes(b"garbage")
    message = complaint(lambda: image_folder(tmp_path))
    assert all(words in message for words in ("10 of 10 files", str(tmp_path / "test" / "ant" / "0.png"), "5 more"))


def test_a_file_that_was_mended_is_read(tmp_path):
    expected = make_folder(tmp_path, "png")
    path = tmp_path / "train" / "ant" / "0.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    complaint(lambda: image_folder(tmp_path))
    path.write_bytes(whole)
    assert same_dataset(image_folder(tmp_path), expected)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_named(split, tmp_path):
    make_folder(tmp_path)
    (tmp_path / split).rename(tmp_path / "aside")
    assert str(tmp_path / split) in complaint(lambda: image_folder(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_images_is_named(split, tmp_path):
    make_folder(tmp_path)
    for path in tmp_path.glob(f"{split}/*/*"):
        path.unlink()
    assert str(tmp_path / split) in complaint(lambda: image_folder(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_of_one_split_alone_is_named(split, tmp_path):
    make_folder(tmp_path)
    write_image(tmp_path / split / "wasp" / "0.bmp", random_images(1)[0])
    assert "wasp" in complaint(lambda: image_folder(tmp_path))


# Synthetic


@pytest.fixture(scope="module")
def synthetic():
    return make_synthetic(0)


@pytest.fixture
def small_synthetic(monkeypatch):
    monkeypatch.setattr("normstudy.datasets.synthetic.SYNTHETIC_TRAIN", 200)
    monkeypatch.setattr("normstudy.datasets.synthetic.SYNTHETIC_TEST", 50)


def test_synthetic_has_the_documented_sizes(synthetic):
    shapes = [tuple(split.images.shape) for split in (synthetic.train, synthetic.test)]
    assert shapes == [(5000, 3, 32, 32), (1000, 3, 32, 32)]


def test_synthetic_is_a_function_of_the_seed(small_synthetic):
    first = make_synthetic(3)
    torch.manual_seed(99)
    assert same_dataset(make_synthetic(3), first)


def test_synthetic_differs_between_seeds(small_synthetic):
    assert len({make_synthetic(seed).fingerprint() for seed in range(4)}) == 4


def test_synthetic_is_balanced(synthetic):
    counts = [torch.bincount(split.labels).tolist() for split in (synthetic.train, synthetic.test)]
    assert counts == [[500] * 10, [100] * 10]


def test_synthetic_repeats_no_image(synthetic):
    images = torch.cat([synthetic.train.images, synthetic.test.images])
    assert len({image.numpy().tobytes() for image in images}) == 6000


def test_synthetic_is_learnable_yet_not_by_its_class_means_alone(synthetic):
    """Measured over four seeds: the nearest class mean is right on 81 to 85 % of the test images."""
    pixels, test_pixels = (prepare(split.images).flatten(1) for split in (synthetic.train, synthetic.test))
    means = torch.stack([pixels[synthetic.train.labels == label].mean(0) for label in range(10)])
    accuracy = (torch.cdist(test_pixels, means).argmin(1) == synthetic.test.labels).double().mean()
    assert 0.5 < accuracy < 0.95


# Subsets and the validation split


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 9), st.randoms(use_true_random=False))
def test_a_subset_is_balanced_sorted_without_repeats_and_repeatable(class_sizes, seed, shuffler):
    labels = [label for label, size in enumerate(class_sizes) for _ in range(size)]
    shuffler.shuffle(labels)
    labels = torch.tensor(labels)
    count = shuffler.randint(0, min(class_sizes) * len(class_sizes))
    indices = balanced_subset(labels, count, len(class_sizes), seed)
    counts = torch.bincount(labels[indices], minlength=len(class_sizes))
    assert (len(indices), counts.max() - counts.min() <= 1) == (count, True)
    assert indices.tolist() == sorted(set(indices.tolist()))
    assert torch.equal(indices, balanced_subset(labels, count, len(class_sizes), seed))


def test_subsets_of_two_seeds_differ():
    labels = torch.arange(1000) % 10
    assert not torch.equal(balanced_subset(labels, 100, 10, seed=0), balanced_subset(labels, 100, 10, seed=1))


def test_a_subset_is_not_just_the_first_samples():
    assert balanced_subset(torch.arange(1000) % 10, 100, 10).max() > 900


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [0, 0, 0, 0]], ids=["short", "absent"])
def test_a_class_with_too_few_samples_is_an_error_that_names_it(labels):
    with pytest.raises(ValueError, match="class 1"):
        balanced_subset(torch.tensor(labels), 4, 2)


def test_train_samples_and_test_samples_take_balanced_parts(small_synthetic):
    found = load(dataset="Synthetic", train_samples=60, test_samples=20)
    counts = [torch.bincount(split.labels).tolist() for split in (found.train, found.test)]
    assert counts == [[6] * 10, [2] * 10]


def test_subsets_keep_images_with_their_labels(small_synthetic):
    full, found = make_synthetic(0), load(dataset="Synthetic", train_samples=60, test_samples=20)
    for whole, part in ((full.train, found.train), (full.test, found.test)):
        label_of = {image.numpy().tobytes(): int(label) for image, label in zip(*vars(whole).values(), strict=True)}
        assert [label_of[image.numpy().tobytes()] for image in part.images] == part.labels.tolist()


@pytest.mark.parametrize("flag", ["train_samples", "test_samples"])
def test_more_samples_than_there_are_is_a_usage_error_that_names_the_flag(flag, small_synthetic):
    with pytest.raises(UsageError, match=f"--{flag}"):
        load(dataset="Synthetic", **{flag: 1000})


@pytest.fixture
def numbered(monkeypatch):
    """`Synthetic` is a data set of 100 training images, each filled with its own number, for every seed."""
    monkeypatch.setattr(
        loading, "synthetic", lambda seed: Dataset(numbered_split(100, 10), numbered_split(20, 10), tuple("abcdefghij"))
    )


def members(split):
    return split.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(("fraction", "sizes"), [(0.1, (90, 10)), (0.25, (75, 25)), (0.5, (50, 50))])
def test_train_and_validation_are_everything_once(fraction, sizes, numbered):
    found = load(dataset="Synthetic", val_fraction=fraction)
    assert (len(found.train), len(found.validation)) == sizes
    assert sorted(members(found.train) + members(found.validation)) == list(range(100))


def test_validation_labels_stay_with_their_images_and_are_balanced(numbered):
    found = load(dataset="Synthetic", val_fraction=0.2)
    assert found.validation.labels.tolist() == [number % 10 for number in members(found.validation)]
    assert torch.bincount(found.validation.labels).tolist() == [2] * 10


def test_the_validation_split_is_the_same_for_every_seed(numbered):
    held_out = [members(load(dataset="Synthetic", val_fraction=0.2, seed=seed).validation) for seed in (0, 1, 7)]
    assert held_out[0] == held_out[1] == held_out[2]


def test_validation_is_held_out_of_the_training_subset(numbered):
    found = load(dataset="Synthetic", train_samples=50, val_fraction=0.2)
    assert (len(found.train), len(found.validation)) == (40, 10)


def test_nothing_is_held_out_by_default(numbered):
    found = load(dataset="Synthetic")
    assert (found.validation, members(found.train)) == (None, list(range(100)))


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_split_that_would_be_empty_is_a_usage_error(fraction, numbered):
    with pytest.raises(UsageError, match="--val_fraction"):
        load(dataset="Synthetic", val_fraction=fraction)


# Batches


def batch_sizes(batches):
    return [len(labels) for _, labels in batches]


def epoch_images(split, **options):
    """All images of one epoch of training batches, in the order they come."""
    return torch.cat([images for images, _ in training_batches(split, **options)])


def order(seed, epoch):
    return numbers(epoch_images(numbered_split(50), batch_size=8, seed=seed, epoch=epoch))


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(23, 5, [5, 5, 5, 5, 3]), (20, 5, [5] * 4), (21, 5, [5] * 4 + [1]), (3, 8, [3]), (4, 1, [1] * 4)],
)
def test_every_sample_comes_once_an_epoch_and_the_last_batch_may_be_smaller(count, batch_size, sizes):
    batches = list(training_batches(numbered_split(count), batch_size, seed=0, epoch=1))
    assert batch_sizes(batches) == sizes
    assert sorted(number for images, _ in batches for number in numbers(images)) == list(range(count))


def test_labels_stay_with_their_images():
    for images, labels in training_batches(numbered_split(50, num_classes=7), 8, seed=0, epoch=1):
        assert labels.tolist() == [number % 7 for number in numbers(images)]


def test_training_shuffles():
    assert order(seed=0, epoch=0) != list(range(50))


def test_the_order_differs_between_all_epochs_and_seeds():
    assert len({tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


def test_flips_differ_between_all_epochs_and_seeds():
    """On 50 copies of one image the order cannot be seen, the flips can."""
    split = Split(random_images(1).repeat(50, 1, 1, 1), torch.zeros(50, dtype=torch.long))
    plain = prepare(split.images[:1])[0]
    flips = set()
    for seed, epoch in itertools.product(range(4), repeat=2):
        images = epoch_images(split, batch_size=8, seed=seed, epoch=epoch)
        flips.add(tuple(torch.equal(image, plain) for image in images))
    assert len(flips) == 16


def test_order_and_flips_do_not_depend_on_the_global_random_state():
    split = random_split(50)
    first = list(training_batches(split, 8, seed=0, epoch=1))
    torch.manual_seed(99)
    assert same_batches(first, training_batches(split, 8, seed=0, epoch=1))


def test_batches_leave_the_global_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(training_batches(random_split(50), 8, seed=0, epoch=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_order_and_flips_do_not_depend_on_the_batch_size():
    split = random_split(50)
    small, large = (epoch_images(split, batch_size=size, seed=0, epoch=1) for size in (8, 50))
    assert torch.equal(small, large)


@pytest.mark.parametrize("first_step", range(8))
def test_first_step_continues_the_same_stream(first_step):
    split = random_split(50)
    whole = list(training_batches(split, 8, seed=0, epoch=1))
    rest = list(training_batches(split, 8, seed=0, epoch=1, first_step=first_step))
    assert len(rest) == 7 - first_step
    assert same_batches(rest, whole[first_step:])


def test_every_image_is_an_original_or_its_mirror_image_and_about_half_are_mirrored():
    split = numbered_split(250)
    split.images[:, :, :, 0] = 255  # a white left edge: the number stands on the right
    plain, mirrored = prepare(split.images), prepare(split.images.flip(3))
    num_mirrored = 0
    for image in epoch_images(split, batch_size=32, seed=0, epoch=1):
        is_mirrored = bool(image[0, 0, 0] < 1)
        number = numbers(image[None, :, :, 1:])[0]
        assert torch.equal(image, (mirrored if is_mirrored else plain)[number])
        num_mirrored += is_mirrored
    assert 95 <= num_mirrored <= 155  # four standard deviations


def test_training_batches_are_resized_to_image_size():
    split = random_split(6)
    plain = epoch_images(split, batch_size=4, seed=0, epoch=1)
    resized = epoch_images(split, batch_size=4, seed=0, epoch=1, image_size=16)
    torch.testing.assert_close(resized, F.interpolate(plain, (16, 16), mode="bilinear"), atol=1e-6, rtol=0)


def test_evaluation_batches_come_in_order_and_unaugmented():
    split = random_split(11)
    batches = list(evaluation_batches(split, batch_size=4))
    assert batch_sizes(batches) == [4, 4, 3]
    assert torch.equal(torch.cat([images for images, _ in batches]), prepare(split.images))
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)


def test_evaluation_batches_are_resized_to_image_size():
    shapes = [tuple(images.shape) for images, _ in evaluation_batches(random_split(3), image_size=12, batch_size=2)]
    assert shapes == [(2, 3, 12, 12), (1, 3, 12, 12)]


def test_prepare_gives_mean_one_half_and_standard_deviation_one_half():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = (levels.double() / 255 - 0.5) / 0.5
    torch.testing.assert_close(prepare(levels).double(), expected, atol=2e-7, rtol=0)


@pytest.mark.parametrize("image_size", [None, 8, 12, 5])
def test_prepare_gives_channels_last_float32(image_size):
    x = prepare(random_images(4), image_size=image_size)
    assert (x.dtype, x.is_contiguous(memory_format=torch.channels_last)) == (torch.float32, True)


def test_prepare_leaves_its_images_as_they_are():
    images = random_images(4)
    before = images.clone()
    prepare(images, torch.tensor([True, False, True, False]), image_size=5)
    assert torch.equal(images, before)


def test_prepare_mirrors_left_and_right_of_the_chosen_images():
    images = random_images(4)
    mirrored = torch.stack([images[0].flip(2), images[1], images[2], images[3].flip(2)])
    assert torch.equal(prepare(images, torch.tensor([True, False, False, True])), prepare(mirrored))


@pytest.mark.parametrize("image_size", [5, 6, 12])
@pytest.mark.parametrize("shape", [(8, 8), (6, 8)])
def test_prepare_resizes_bilinearly_with_antialiasing_where_it_shrinks(shape, image_size):
    images = random_images(4, *shape)
    expected = F.interpolate(
        prepare(images), (image_size, image_size), mode="bilinear", antialias=image_size < max(shape)
    )
    torch.testing.assert_close(prepare(images, image_size=image_size), expected, atol=1e-6, rtol=0)


def test_prepare_shrinks_without_losing_what_lies_between_the_sampled_pixels():
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[..., ::4] = 255
    assert prepare(images, image_size=4)[..., 1:3].mean().item() == pytest.approx(-0.5, abs=0.05)


def test_prepare_does_not_resample_images_of_the_size_asked_for():
    images = random_images(4)
    assert torch.equal(prepare(images, image_size=8), prepare(images))


# The fingerprint


def three_splits():
    return Dataset(random_split(6, seed=1), random_split(4, seed=2), ("ant", "bee"), random_split(2, seed=3))


def test_equal_data_have_equal_fingerprints():
    first, second = three_splits(), three_splits()
    assert first.fingerprint() == second.fingerprint()


def test_the_fingerprint_does_not_depend_on_how_the_tensors_lie_in_memory():
    dataset = three_splits()
    images = dataset.train.images.contiguous(memory_format=torch.channels_last)
    assert replace(dataset, train=replace(dataset.train, images=images)).fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize("split", ["train", "test", "validation"])
@pytest.mark.parametrize("part", ["images", "labels"])
def test_the_fingerprint_changes_with_every_pixel_and_label(split, part):
    dataset = three_splits()
    prints = {dataset.fingerprint()}
    values = getattr(getattr(dataset, split), part).flatten()
    positions = range(0, len(values), 1 if part == "labels" else 37)
    for position in positions:
        values[position] ^= 1
        prints.add(dataset.fingerprint())
        values[position] ^= 1
    assert len(prints) == 1 + len(positions)


@pytest.mark.parametrize(
    "change",
    [
        lambda dataset: {"classes": ("ant", "wasp")},
        lambda dataset: {"classes": ("bee", "ant")},
        lambda dataset: {"validation": None},
        lambda dataset: {"test": dataset.validation, "validation": dataset.test},
        lambda dataset: {"train": dataset.train.take(torch.tensor([1, 0, 2, 3, 4, 5]))},
        lambda dataset: {"train": Split(dataset.train.images.reshape(6, 3, 4, 16), dataset.train.labels)},
    ],
    ids=["class name", "class order", "no validation", "splits exchanged", "sample order", "shape"],
)
def test_the_fingerprint_changes_with(change):
    dataset = three_splits()
    assert replace(dataset, **change(dataset)).fingerprint() != dataset.fingerprint()

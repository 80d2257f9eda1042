"""The cache of a folder of images is used only while the files are unchanged and its checksum is right."""

import errno
import os
import pickle

import pytest
import torch
from datasets_helpers import (
    flip_byte,
    load,
    make_folder,
    make_folder_of_two_sizes,
    random_images,
    same_dataset,
    write_image,
)
from helpers import Payload, complaint
from PIL import Image

from normstudy.datasets import image_cache, image_folder
from normstudy.datasets.image_folder import load_image_folder
from normstudy.storage import write_torch


@pytest.fixture
def no_decoding(monkeypatch):
    """A function that makes PIL fail from then on."""

    def forbid():
        def refuse(*_, **__):
            raise AssertionError("an image was decoded")

        monkeypatch.setattr(Image, "open", refuse)

    return forbid


def test_a_second_load_equals_the_first_and_decodes_nothing(tmp_path, no_decoding):
    expected = make_folder(tmp_path)
    load_image_folder(tmp_path)
    no_decoding()
    assert same_dataset(load_image_folder(tmp_path), expected)


def test_a_cache_of_another_image_size_is_not_used(tmp_path):
    make_folder_of_two_sizes(tmp_path)
    load_image_folder(tmp_path, image_size=10)
    assert load_image_folder(tmp_path, image_size=6).train.images.shape == (2, 3, 6, 6)


def test_a_cache_of_resized_images_does_not_hide_that_their_sizes_differ(tmp_path):
    make_folder_of_two_sizes(tmp_path)
    load_image_folder(tmp_path, image_size=10)
    assert "--image_size" in complaint(lambda: load_image_folder(tmp_path))


def test_images_of_one_size_keep_it_and_their_cache_serves_every_image_size(tmp_path, no_decoding):
    expected = make_folder(tmp_path)
    load_image_folder(tmp_path, image_size=16)
    no_decoding()
    assert same_dataset(load_image_folder(tmp_path), expected)


# Changes of the files


def make_folder_without_times(root):
    """Make files of the same names, sizes and times in each class, as an archive without times unpacks them."""
    make_folder(root)
    for folder in root.glob("*/*"):
        for index, path in enumerate(sorted(folder.iterdir())):
            os.utime(path.rename(folder / f"{index}.bmp"), (10**9, 10**9))


def rewrite_later(root):
    """Write new pixels in as many bytes, one second later."""
    path = root / "train" / "ant" / "1.bmp"
    changed = path.stat().st_mtime_ns + 10**9
    write_image(path, random_images(1, seed=9)[0])
    os.utime(path, ns=(changed, changed))


def rewrite_longer(root):
    """Write new pixels in more bytes, with the same time stamp."""
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
    """Exchange the names of the class folders."""
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
    before = load_image_folder(tmp_path)
    change(tmp_path)
    found = load_image_folder(tmp_path)
    (tmp_path / image_cache.CACHE_NAME).unlink()
    truth = load_image_folder(tmp_path)
    assert not same_dataset(truth, before)
    assert same_dataset(found, truth)


def test_a_cache_copied_from_another_folder_is_not_used(tmp_path):
    make_folder(tmp_path / "other", seed=50)
    load_image_folder(tmp_path / "other")
    expected = make_folder(tmp_path / "mine")
    (tmp_path / "other" / image_cache.CACHE_NAME).rename(tmp_path / "mine" / image_cache.CACHE_NAME)
    assert same_dataset(load_image_folder(tmp_path / "mine"), expected)


# Damage


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
    load_image_folder(tmp_path)
    cache = tmp_path / image_cache.CACHE_NAME
    cache.write_bytes(DAMAGES[damage](cache.read_bytes(), expected))
    capsys.readouterr()
    assert same_dataset(load_image_folder(tmp_path), expected)
    assert capsys.readouterr().err.splitlines()[0] == f"{cache} is damaged: reading the images again"
    no_decoding()
    assert same_dataset(load_image_folder(tmp_path), expected)


def test_a_bit_flipped_anywhere_in_the_cache_never_changes_the_data(tmp_path):
    expected = make_folder(tmp_path)
    load_image_folder(tmp_path)
    cache = tmp_path / image_cache.CACHE_NAME
    whole = cache.read_bytes()
    for position in range(0, len(whole), 41):
        cache.write_bytes(flip_byte(whole, position))
        assert same_dataset(load_image_folder(tmp_path), expected)


def test_code_in_a_foreign_cache_does_not_run(tmp_path):
    expected = make_folder(tmp_path)
    made = tmp_path / "made by the payload"
    torch.save({"listing": Payload(made)}, tmp_path / image_cache.CACHE_NAME)
    assert same_dataset(load_image_folder(tmp_path), expected)
    assert not made.exists()


# Where the cache is written


@pytest.fixture
def read_only(monkeypatch):
    """A function that makes a folder read-only for the cache; the user's cache folder is monkeypatched as well."""

    def forbid(*folders):
        def refuse(path, content):
            if path.parent in folders:
                raise OSError(errno.EROFS, "Read-only file system", str(path))
            return write_torch(path, content)

        monkeypatch.setattr(image_cache, "write_torch", refuse)

    return forbid


@pytest.mark.parametrize("variable", ["XDG_CACHE_HOME", "HOME"])
def test_the_cache_of_a_read_only_folder_goes_to_the_users_cache_folder(
    variable, tmp_path, read_only, no_decoding, monkeypatch, capsys
):
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setenv(variable, str(tmp_path / "user"))
    images, user = tmp_path / "images", tmp_path / "user" / (".cache" if variable == "HOME" else "") / "normstudy"
    expected = make_folder(images)
    read_only(images)
    load_image_folder(images)
    [cache] = user.iterdir()
    lines = capsys.readouterr().err.splitlines()
    assert lines[-1] == (
        f"{images} cannot be written to, so the decoded images are cached in {cache}; --cache_dir chooses another "
        "folder"
    )
    no_decoding()
    assert same_dataset(load_image_folder(images), expected)
    assert capsys.readouterr().err == ""


def test_a_cache_that_can_be_written_nowhere_costs_one_line_and_no_images(tmp_path, read_only, monkeypatch, capsys):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "user"))
    expected = make_folder(tmp_path / "images")
    read_only(tmp_path / "images", tmp_path / "user" / "normstudy")
    assert same_dataset(load_image_folder(tmp_path / "images"), expected)
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 2  # the first is about memory
    assert all(words in lines[1] for words in ("could not be cached", "Read-only file system", "--cache_dir"))


def test_cache_dir_holds_the_caches_of_several_folders_and_nothing_is_written_beside_the_images(tmp_path, no_decoding):
    expected = [make_folder(tmp_path / name / "images", seed=seed) for name, seed in (("one", 0), ("two", 9))]
    flags = {"dataset": "ImageFolder", "cache_dir": tmp_path / "caches"}
    for name in ("one", "two"):
        load(data_dir=tmp_path / name / "images", **flags)
    assert not [*tmp_path.glob(f"*/images/*{image_cache.CACHE_NAME}")]
    no_decoding()
    found = [load(data_dir=tmp_path / name / "images", **flags) for name in ("one", "two")]
    assert all(same_dataset(a, b) for a, b in zip(found, expected, strict=True))


def test_a_cache_dir_that_is_a_file_costs_one_line_and_no_images(tmp_path, capsys):
    expected = make_folder(tmp_path / "images")
    (tmp_path / "file").write_text("")
    assert same_dataset(load_image_folder(tmp_path / "images", cache_dir=str(tmp_path / "file")), expected)
    assert "could not be cached, so the next run decodes them again (File exists " in capsys.readouterr().err
    assert not [*tmp_path.glob(f"images/*{image_cache.CACHE_NAME}")]


def test_caches_of_two_image_sizes_are_kept_beside_each_other(tmp_path, no_decoding):
    make_folder_of_two_sizes(tmp_path)
    for size in (10, 6):
        load_image_folder(tmp_path, image_size=size)
    no_decoding()
    for size in (10, 6):
        assert load_image_folder(tmp_path, image_size=size).train.images.shape == (2, 3, size, size)


def test_a_cache_of_images_with_their_own_size_does_not_serve_a_smaller_image_size(tmp_path):
    make_folder(tmp_path)
    load_image_folder(tmp_path)
    assert load_image_folder(tmp_path, image_size=4).train.images.shape == (6, 3, 4, 4)


def test_a_cache_of_another_version_of_the_decoder_is_not_used(tmp_path, monkeypatch, capsys):
    make_folder(tmp_path)
    monkeypatch.setattr(image_folder, "VERSION", "another")
    load_image_folder(tmp_path)
    monkeypatch.undo()
    capsys.readouterr()
    load_image_folder(tmp_path)
    assert "decoding 10 images" in capsys.readouterr().err

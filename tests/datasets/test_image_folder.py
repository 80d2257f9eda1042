"""A folder of images is loaded as it is on disk, in every usual format; wrong folders and files are named."""

import errno
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from datasets_helpers import load, make_folder, make_folder_of_two_sizes, random_images, same_dataset, write_image
from helpers import complaint
from PIL import Image

from normstudy.datasets import Dataset, Split
from normstudy.datasets.image_folder import load_image_folder


def quadrants():
    """Return four flat colors in 8×8 blocks, which every format can store: (3, 16, 16)."""
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
    difference = load_image_folder(tmp_path).train.images[0].int() - pixels.int()
    assert difference.abs().max() <= tolerance


def gray_image(mode):
    """Return (image in `mode`, the (8, 8) levels from 0 to 255 that it shows)."""
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
    assert torch.equal(load_image_folder(tmp_path).train.images[0], torch.from_numpy(levels).expand(3, 8, 8))


@pytest.mark.filterwarnings("error")  # a user could do nothing about a warning here
@pytest.mark.parametrize("mode", ["RGBA", "palette", "palette with one transparent colour", "palette with alpha"])
def test_colour_images_become_rgb_without_their_alpha(mode, tmp_path):
    pixels = quadrants()
    image = Image.fromarray(pixels.permute(1, 2, 0).numpy())
    if mode == "RGBA":
        image.putalpha(Image.fromarray(np.arange(256, dtype=np.uint8).reshape(16, 16)))
    else:
        image = image.quantize(4)
    transparency: dict[str, Any] = {
        "palette with one transparent colour": 0,
        "palette with alpha": bytes([0, 99, 200, 255]),
    }
    options = {"transparency": transparency[mode]} if mode in transparency else {}
    for split in ("train", "test"):
        (tmp_path / split / "class").mkdir(parents=True)
        image.save(tmp_path / split / "class" / "image.png", **options)
    assert torch.equal(load_image_folder(tmp_path).train.images[0], pixels)


def test_labels_follow_the_sorted_class_names_and_images_the_sorted_file_names(tmp_path):
    names = [("zebra", "b"), ("ant", "z"), ("Bee", "m"), ("ant", "a"), ("zebra", "a")]
    images = random_images(len(names))
    for split in ("train", "test"):
        for (label, name), pixels in zip(names, images, strict=True):
            write_image(tmp_path / split / label / f"{name}.png", pixels)
    expected = Split(images[[2, 3, 1, 4, 0]], torch.tensor([0, 1, 1, 2, 2]))
    assert same_dataset(load_image_folder(tmp_path), Dataset(expected, expected, ("Bee", "ant", "zebra")))


def test_height_and_width_keep_their_places(tmp_path):
    expected = make_folder(tmp_path, height=4, width=6)
    assert same_dataset(load_image_folder(tmp_path), expected)


def test_what_is_not_an_image_of_a_class_is_ignored(tmp_path):
    expected = make_folder(tmp_path)
    stray = random_images(1)[0]
    write_image(tmp_path / "train" / "stray.png", stray)
    write_image(tmp_path / "train" / "ant" / ".hidden.png", stray)
    (tmp_path / "train" / "ant" / "notes.txt").write_text("not an image")
    (tmp_path / "train" / "ant" / "no-extension").write_bytes(b"\0")
    assert same_dataset(load_image_folder(tmp_path), expected)


def test_hidden_folders_are_not_classes(tmp_path):
    expected = make_folder(tmp_path)
    (tmp_path / "train" / ".ipynb_checkpoints").mkdir()
    assert same_dataset(load_image_folder(tmp_path), expected)


def test_the_command_line_reads_an_image_folder(tmp_path):
    expected = make_folder(tmp_path)
    assert same_dataset(load(dataset="ImageFolder", data_dir=tmp_path), expected)


# Sizes


def test_images_of_several_sizes_need_image_size(tmp_path):
    make_folder_of_two_sizes(tmp_path)
    message = complaint(lambda: load_image_folder(tmp_path))
    assert all(words in message for words in ("9×8", "13×12", "--image_size"))


@pytest.mark.parametrize("image_size", [10, 7, 16])
def test_images_of_several_sizes_are_resized_to_image_size(image_size, tmp_path):
    colours = make_folder_of_two_sizes(tmp_path)
    found = load(dataset="ImageFolder", data_dir=tmp_path, image_size=image_size)
    assert torch.equal(found.train.images, colours[:2].expand(2, 3, image_size, image_size))


# Errors that a user can fix


UNREADABLE = {
    "garbage": lambda content: b"garbage",
    "empty": lambda content: b"",
    "truncated": lambda content: content[: len(content) // 2],
}


@pytest.mark.parametrize("kind", UNREADABLE)
def test_unreadable_files_are_left_out_counted_and_named(kind, tmp_path, capsys):
    expected = make_folder(tmp_path, "png")
    path = tmp_path / "train" / "bee" / "4.png"
    path.write_bytes(UNREADABLE[kind](path.read_bytes()))
    kept = expected.train.take(torch.tensor([0, 1, 2, 3, 5]))
    for _ in range(2):  # the second time from the cache
        assert same_dataset(load_image_folder(tmp_path), replace(expected, train=kept))
        errors = capsys.readouterr().err
        assert f"left out of {tmp_path / 'train'}: 1 unreadable image (bee/4.png: " in errors
        assert f"left out of {tmp_path / 'test'}" not in errors


def test_a_class_without_a_readable_image_is_named_with_its_files(tmp_path):
    make_folder(tmp_path, "png")
    for path in tmp_path.glob("test/bee/*.png"):
        path.write_bytes(b"garbage")
    message = complaint(lambda: load_image_folder(tmp_path))
    assert all(words in message for words in ("class bee", str(tmp_path / "test"), "bee/2.png: not an image"))


def test_many_unreadable_files_are_counted_and_the_first_named(tmp_path):
    for index in range(9):
        write_image(tmp_path / "train" / "ant" / f"{index}.png", random_images(1)[0])
    write_image(tmp_path / "test" / "ant" / "0.png", random_images(1)[0])
    for path in tmp_path.glob("train/*/*.png"):
        path.write_bytes(b"garbage")
    message = complaint(lambda: load_image_folder(tmp_path))
    assert all(words in message for words in ("9 unreadable images", "ant/0.png", "4 more"))


def test_a_file_that_the_system_cannot_read_is_an_error_and_not_left_out(tmp_path, monkeypatch):
    make_folder(tmp_path, "png")

    def fail(path):
        raise OSError(errno.EIO, "Input/output error", path)

    monkeypatch.setattr(Image, "open", fail)
    message = complaint(lambda: load_image_folder(tmp_path))
    assert all(words in message for words in (str(tmp_path / "train" / "ant" / "0.png"), "Input/output error"))


def test_a_file_that_was_mended_is_read(tmp_path):
    expected = make_folder(tmp_path, "png")
    path = tmp_path / "train" / "ant" / "0.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:20])
    assert len(load_image_folder(tmp_path).train) == 5
    path.write_bytes(whole)
    assert same_dataset(load_image_folder(tmp_path), expected)


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_missing_split_is_named(split, tmp_path):
    make_folder(tmp_path)
    (tmp_path / split).rename(tmp_path / "aside")
    assert str(tmp_path / split) in complaint(lambda: load_image_folder(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_split_without_images_is_named(split, tmp_path):
    make_folder(tmp_path)
    for path in tmp_path.glob(f"{split}/*/*"):
        path.unlink()
    assert str(tmp_path / split) in complaint(lambda: load_image_folder(tmp_path))


@pytest.mark.parametrize("split", ["train", "test"])
def test_a_class_of_one_split_alone_is_named(split, tmp_path):
    make_folder(tmp_path)
    write_image(tmp_path / split / "wasp" / "0.bmp", random_images(1)[0])
    assert "wasp" in complaint(lambda: load_image_folder(tmp_path))

"""Folders as people have them: rotated photos, subfolders, other files, other spellings, unequal classes."""

import sys
import types
import unicodedata

import numpy as np
import pytest
import torch
from datasets_helpers import load, make_folder, random_images, same, same_dataset, write_image
from helpers import complaint
from PIL import ExifTags, Image

from normstudy.datasets import image_decoding
from normstudy.datasets.image_folder import load_image_folder

STORED = {  # {EXIF orientation: how a camera stores an upright image (H, W, 3), as the EXIF standard defines it}
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.transpose(1, 0, 2),
    6: lambda x: x.transpose(1, 0, 2)[::-1],
    7: lambda x: x.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda x: x.transpose(1, 0, 2)[:, ::-1],
}

FORMS = {
    "NFC": lambda text: unicodedata.normalize("NFC", text),
    "NFD": lambda text: unicodedata.normalize("NFD", text),
}


def photo(height=24, width=32):
    """Return a smooth image (height, width, 3) without symmetries."""
    y, x = np.mgrid[0 : height - 1 : height * 1j, 0 : width - 1 : width * 1j]
    return np.stack([x / width, y / height, (x + 2 * y) / (width + 2 * height)], -1).__mul__(255).astype(np.uint8)


def save_rotated(path, orientation, pixels, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = orientation
    Image.fromarray(np.ascontiguousarray(STORED[orientation](pixels))).save(path, exif=exif, **options)


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize(
    ("extension", "options", "tolerance"),
    [("png", {}, 0), ("tiff", {}, 0), ("webp", {"lossless": True}, 0), ("jpg", {"quality": 100, "subsampling": 0}, 4)],
)
@pytest.mark.parametrize("image_size", [None, 12])
def test_every_orientation_is_turned_upright_whatever_the_size(
    orientation, extension, options, tolerance, image_size, tmp_path
):
    pixels = photo()
    save_rotated(tmp_path / f"photo.{extension}", orientation, pixels, **options)
    expected = pixels if image_size is None else image_decoding.resize(pixels, image_size)
    found = image_decoding.decode_image(str(tmp_path / f"photo.{extension}"), image_size).pixels
    assert found.shape == expected.shape
    assert np.abs(found.astype(int) - expected).max() <= tolerance


def test_photos_that_are_upright_in_one_size_need_no_image_size(tmp_path):
    for split in ("train", "test"):
        for orientation in STORED:
            save_rotated(tmp_path / split / "cat" / f"{orientation}.png", orientation, photo())
    assert load_image_folder(tmp_path).train.images.shape == (8, 3, 24, 32)


def test_damaged_metadata_leave_an_image_as_it_is(tmp_path):
    Image.fromarray(photo()).save(tmp_path / "photo.webp", lossless=True, exif=b"Exif\0\0garbage")
    assert np.array_equal(image_decoding.decode_image(str(tmp_path / "photo.webp")).pixels, photo())


# Sizes


@pytest.mark.parametrize("image_size", [8, 11, None])
def test_images_of_one_size_up_to_image_size_keep_every_bit(image_size, tmp_path):
    expected = make_folder(tmp_path, "png")
    assert same_dataset(load_image_folder(tmp_path, image_size), expected)


def test_jpegs_of_image_size_are_those_of_a_plain_decoder(tmp_path):
    for split in ("train", "test"):
        write_image(tmp_path / split / "cat" / "0.jpg", random_images(1, 32, 32)[0])
    plain = np.asarray(Image.open(tmp_path / "train" / "cat" / "0.jpg"))
    assert np.array_equal(load_image_folder(tmp_path, 32).train.images[0].permute(1, 2, 0), plain)


@pytest.mark.parametrize("extension", ["jpg", "png"])
def test_a_photo_has_the_same_pixels_whatever_the_sizes_of_the_others(extension, tmp_path):
    large = torch.from_numpy(photo(240, 320)).permute(2, 0, 1)
    for name, width in (("equal", 320), ("narrower", 319)):
        for split in ("train", "test"):
            write_image(tmp_path / name / split / "cat" / f"0.{extension}", large)
        write_image(tmp_path / name / "train" / "cat" / f"1.{extension}", large[:, :, :width])
    equal, narrower = (load_image_folder(tmp_path / name, 16).train.images[0] for name in ("equal", "narrower"))
    assert equal.shape == (3, 16, 16)
    assert torch.equal(equal, narrower)


def test_a_jpeg_that_is_decoded_at_a_reduced_size_is_close_to_the_whole_one(tmp_path):
    path = tmp_path / "photo.jpg"
    Image.fromarray(photo(480, 640)).save(path, quality=95)
    whole = image_decoding.resize(np.asarray(Image.open(path)), 16)
    assert np.abs(image_decoding.decode_image(str(path), 16).pixels.astype(int) - whole).max() <= 2


def test_the_memory_is_announced_before_the_images_are_decoded(tmp_path, capsys):
    make_folder(tmp_path, height=1000, width=2000)
    load_image_folder(tmp_path, 50)
    load_image_folder(tmp_path)
    first, second = capsys.readouterr().err.splitlines()
    assert first.startswith("decoding 10 images of 50×50 pixels: about 75 kB of memory, and as much on disk")
    assert second.startswith("decoding 10 images of 2000×1000 pixels: about 60.0 MB of memory, and as much on disk")


# Files that are no images of a class, and images below a class


def test_images_in_subfolders_of_a_class_belong_to_it(tmp_path):
    expected = make_folder(tmp_path)
    (tmp_path / "train" / "ant" / "9 trip" / "day 1").mkdir(parents=True)
    (tmp_path / "train" / "ant" / "2.bmp").rename(tmp_path / "train" / "ant" / "9 trip" / "day 1" / "a.bmp")
    assert same_dataset(load_image_folder(tmp_path), expected)


def test_a_link_in_a_circle_is_not_followed(tmp_path, capsys):
    expected = make_folder(tmp_path)
    (tmp_path / "train" / "ant" / "again").symlink_to(tmp_path / "train" / "ant")
    (tmp_path / "train" / "ant" / "lost.bmp").symlink_to(tmp_path / "nowhere")
    assert same_dataset(load_image_folder(tmp_path), expected)
    assert "2 links that lead nowhere or in a circle" in capsys.readouterr().err


def test_everything_that_is_left_out_is_counted_by_reason_in_one_line(tmp_path, capsys):
    expected = make_folder(tmp_path)
    train = tmp_path / "train"
    for name in ("ant/a.heic", "ant/b.HEIC", "ant/notes.txt", "bee/.DS_Store", "bee/._0.bmp", "Thumbs.db"):
        (train / name).write_bytes(b"\0")
    write_image(train / "stray.bmp", random_images(1)[0])
    (train / "wasp").mkdir()
    (train / "wasp" / ".DS_Store").write_bytes(b"\0")
    (train / "bee" / "damaged.bmp").write_bytes(b"BM")
    for _ in range(2):  # the second time from the cache
        assert same_dataset(load_image_folder(tmp_path), expected)
        *_, line = capsys.readouterr().err.splitlines()
        assert line == (
            f"left out of {train}: 4 files with unknown extensions (.heic 2, .db 1, .txt 1; to use HEIC images, "
            "convert them to JPEG or pip install pillow-heif), 1 unreadable image (bee/damaged.bmp: not an image), "
            "3 hidden files and folders, 1 image outside the class folders, 1 empty class folder (wasp)"
        )


def test_a_clean_folder_is_loaded_without_such_a_line(tmp_path, capsys):
    make_folder(tmp_path)
    load_image_folder(tmp_path)
    assert "left out" not in capsys.readouterr().err


def test_heic_images_are_read_where_pillow_heif_is_installed(tmp_path, monkeypatch):
    expected = make_folder(tmp_path, "png")
    monkeypatch.setattr(Image, "EXTENSION", dict(Image.registered_extensions()))
    plugin = types.ModuleType("pillow_heif")
    vars(plugin)["register_heif_opener"] = lambda: Image.register_extension("PNG", ".heic")
    monkeypatch.setitem(sys.modules, "pillow_heif", plugin)
    for path in [*tmp_path.glob("*/*/*.png")]:
        path.rename(path.with_suffix(".HEIC"))
    assert same_dataset(load_image_folder(tmp_path), expected)


def test_a_class_whose_files_are_all_of_other_kinds_is_named_with_the_hint(tmp_path, monkeypatch):
    make_folder(tmp_path)
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    for path in [*tmp_path.glob("train/bee/*")]:
        path.rename(path.with_suffix(".heic"))
    message = complaint(lambda: load_image_folder(tmp_path))
    assert all(words in message for words in ("class bee", str(tmp_path / "train"), ".heic 3", "pillow-heif"))


def test_an_empty_class_folder_counts_as_no_class(tmp_path):
    expected = make_folder(tmp_path)
    for split in ("train", "test"):
        (tmp_path / split / "wasp").mkdir()
    assert same_dataset(load_image_folder(tmp_path), expected)


def test_a_class_with_images_in_one_split_and_an_empty_folder_in_the_other_is_named(tmp_path):
    make_folder(tmp_path)
    for path in tmp_path.glob("test/bee/*"):
        path.unlink()
    message = complaint(lambda: load_image_folder(tmp_path))
    assert f"bee only in {tmp_path / 'train'}" in message


# Spellings


@pytest.mark.parametrize(
    "names", [("Train", "TEST"), ("training", "testing"), ("Training", "test")], ids=lambda names: " ".join(names)
)
def test_usual_spellings_of_train_and_test_are_accepted(names, tmp_path):
    expected = make_folder(tmp_path)
    for split, name in zip(("train", "test"), names, strict=True):
        (tmp_path / split).rename(tmp_path / name)
    assert same_dataset(load(dataset="ImageFolder", data_dir=tmp_path), expected)


def test_two_spellings_of_one_split_are_named(tmp_path):
    make_folder(tmp_path)
    (tmp_path / "train").rename(tmp_path / "Train")
    (tmp_path / "training").mkdir()
    assert "contains Train and training: rename" in complaint(lambda: load_image_folder(tmp_path))


@pytest.mark.parametrize("name", ["val", "Valid", "validation"])
def test_a_validation_folder_in_place_of_test_is_said_with_what_to_rename(name, tmp_path):
    make_folder(tmp_path)
    (tmp_path / "test").rename(tmp_path / name)
    assert f"to test on the images in {name}, rename that folder to test" in complaint(
        lambda: load_image_folder(tmp_path)
    )


def test_a_validation_folder_beside_train_and_test_is_said_to_be_unused(tmp_path, capsys):
    make_folder(tmp_path)
    write_image(tmp_path / "val" / "ant" / "0.bmp", random_images(1)[0])
    load_image_folder(tmp_path)
    assert f"left out of {tmp_path}: the folder val (--val_fraction" in capsys.readouterr().err


@pytest.mark.parametrize("inner", ["train", "Test"])
def test_a_data_dir_one_folder_too_deep_or_too_high_is_said(inner, tmp_path):
    make_folder(tmp_path / "photos")
    (tmp_path / "photos" / "test").rename(tmp_path / "photos" / "Test")
    for wrong in (tmp_path, tmp_path / "photos" / inner):
        assert f"try --data_dir={tmp_path / 'photos'}" in complaint(lambda wrong=wrong: load_image_folder(wrong))


@pytest.mark.parametrize("forms", [("NFC", "NFD"), ("NFD", "NFC"), ("NFD", "NFD")], ids=" ".join)
def test_class_names_are_compared_in_one_unicode_form(forms, tmp_path):
    images = random_images(2)
    for split, form in zip(("train", "test"), forms, strict=True):
        for name, pixels in zip(("Bär", "Bier"), images, strict=True):
            write_image(tmp_path / split / FORMS[form](name) / "0.png", pixels)
    found = load_image_folder(tmp_path)
    assert found.classes == ("Bier", "Bär")
    assert same(found.train, found.test)


def test_two_folders_with_one_name_in_two_unicode_forms_are_one_class(tmp_path):
    for form, name in (("NFC", "a"), ("NFD", "b")):
        for split in ("train", "test"):
            write_image(tmp_path / split / FORMS[form]("Bär") / f"{name}.png", random_images(1)[0])
    found = load_image_folder(tmp_path)
    assert (found.classes, len(found.train)) == (("Bär",), 2)


def test_names_of_bytes_that_are_not_text_are_read_from_the_cache(tmp_path, capsys):
    expected = make_folder(tmp_path, "png")
    (tmp_path / "train" / "ant" / "\udcff.png").write_bytes(b"damaged")
    for _ in range(2):
        assert same_dataset(load_image_folder(tmp_path), expected)
    assert "is damaged" not in capsys.readouterr().err

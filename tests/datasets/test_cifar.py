"""CIFAR is loaded exactly as it is on disk, and its cache is used only if its checksum is right."""

import errno
import hashlib
import pickle
import shutil
import sys
import tarfile
import types
from urllib.parse import urlparse
from urllib.request import url2pathname

import numpy as np
import pytest
import torch
from datasets_helpers import flip_byte, load, same_dataset
from helpers import Payload, complaint

from normstudy.datasets import Dataset, Split, cifar, image_cache


@pytest.fixture
def vision():
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as error:
        pytest.skip(f"torchvision does not import: {error}")
    return datasets


def cifar_batches(name):
    """Return (Dataset, {file name: content}) of a small archive with the layout of CIFAR-10 or CIFAR-100."""
    generator = np.random.default_rng(0)
    if name == "CIFAR-10":
        counts = {f"data_batch_{index}": 3 + index for index in range(1, 6)} | {"test_batch": 5}
        classes, label_key, meta = [f"thing {index}" for index in range(10)], "labels", "batches.meta"
        contents = {meta: {"label_names": classes, "num_cases_per_batch": 10000, "num_vis": 3072}}
    else:
        counts = {"train": 30, "test": 20}
        classes, label_key, meta = [f"thing {index}" for index in range(100)], "fine_labels", "meta"
        contents = {meta: {"fine_label_names": classes, "coarse_label_names": ["living", "not living"]}}
    splits: dict[str, list] = {"train": [], "test": []}
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
    """A namespace with the name, expected Dataset and folder of unpacked batches, whose md5 sums torchvision knows."""
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
    """The same batches, packed in an archive at a file:// address and not unpacked."""
    packed = tmp_path / "site" / archive.reader.filename
    packed.parent.mkdir()
    with tarfile.open(packed, "w:gz") as tar:
        tar.add(archive.folder, archive.reader.base_folder)
    shutil.rmtree(archive.folder)
    monkeypatch.setattr(archive.reader, "url", packed.as_uri())
    monkeypatch.setattr(archive.reader, "tgz_md5", md5(packed.read_bytes()))

    def retrieve(url, path, *_):
        shutil.copyfile(url2pathname(urlparse(url).path), path)

    monkeypatch.setattr(vision.utils, "_urlretrieve", retrieve)  # the original needs a length, which file:// lacks
    archive.packed = packed
    return archive


def test_cifar_pixels_labels_and_class_names_arrive_as_they_are_on_disk(archive):
    assert same_dataset(load(dataset=archive.name, data_dir=archive.folder.parent), archive.expected)


@pytest.mark.parametrize("ending", ["", "/", "/."])
def test_the_folder_of_the_archive_itself_is_accepted(archive, monkeypatch, ending):
    for _ in ("read", "cached"):
        assert same_dataset(load(dataset=archive.name, data_dir=f"{archive.folder}{ending}"), archive.expected)
    assert sorted(path.name for path in archive.folder.iterdir()) == sorted(archive.contents)
    monkeypatch.chdir(archive.folder)
    assert same_dataset(load(dataset=archive.name, data_dir="."), archive.expected)


def test_an_archive_that_is_not_unpacked_is_said_and_unpacked_on_request(packed_archive):
    folder = packed_archive.folder.parent
    shutil.move(packed_archive.packed, folder)
    archive = folder / packed_archive.packed.name
    message = complaint(lambda: load(dataset=packed_archive.name, data_dir=folder))
    assert f"{archive} is not unpacked: add --download=True, which unpacks it without a download" in message
    assert f"--data_dir={archive} is a file" in complaint(lambda: load(dataset=packed_archive.name, data_dir=archive))
    assert same_dataset(load(dataset=packed_archive.name, data_dir=folder, download=True), packed_archive.expected)


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


def test_a_cache_of_cifar_that_cannot_be_written_costs_one_line(archive, monkeypatch, capsys):
    def refuse(path, value):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(image_cache, "write_torch", refuse)
    found = load(dataset=archive.name, data_dir=archive.folder.parent)
    assert same_dataset(found, archive.expected)
    [line] = capsys.readouterr().err.splitlines()
    assert "Read-only file system" in line


def test_cache_dir_holds_the_cache_of_cifar(archive, tmp_path, monkeypatch):
    settings = {"dataset": archive.name, "data_dir": archive.folder.parent, "cache_dir": tmp_path / "caches"}
    load(**settings)
    assert [path.parent for path in tmp_path.rglob(f"*{image_cache.CACHE_NAME}")] == [tmp_path / "caches"]
    monkeypatch.setattr(cifar, "_read_cifar", None)
    assert same_dataset(load(**settings), archive.expected)


def test_code_in_a_cifar_batch_does_not_run(archive, tmp_path):
    made = tmp_path / "made by the payload"
    content = pickle.dumps({"data": Payload(made), "labels": []}, 2)
    for file_name in archive.contents:
        (archive.folder / file_name).write_bytes(content)
    complaint(lambda: load(dataset=archive.name, data_dir=archive.folder.parent))
    assert not made.exists()
    pickle.loads(content)
    assert made.exists(), "the payload does not run, so this test proves nothing"


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

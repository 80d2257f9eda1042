"""Files are complete or absent, and a file that cannot be read is reported in one line."""

import contextlib
import errno
import json
import os
import pickle

import pytest
import torch
from helpers import Payload
from helpers import complaint as complaint_of
from hypothesis import example, given
from hypothesis import strategies as st

from normstudy.storage import files

READERS = {"json": files.read_json, "pt": files.read_torch}


def complaint(read, path):
    """Return the one line, naming the file, with which `read` refuses `path`."""
    line = complaint_of(lambda: read(path))
    assert str(path) in line
    return line


def fail_with(error):
    def fail(*_):
        raise error

    return fail


# write_bytes


def test_a_write_makes_the_parents_and_leaves_only_the_file(tmp_path):
    path = tmp_path / "run" / "checkpoints" / "last.pt"
    files.write_bytes(path, b"content")
    assert [(entry.name, entry.read_bytes()) for entry in path.parent.iterdir()] == [("last.pt", b"content")]


def test_a_write_replaces_longer_content(tmp_path):
    path = tmp_path / "file"
    files.write_bytes(path, b"a long first version")
    files.write_bytes(path, b"short")
    assert path.read_bytes() == b"short"


@pytest.mark.parametrize("call", ["replace", "fsync"])
@pytest.mark.parametrize("old", [{}, {"file": b"old"}], ids=["new file", "old file"])
def test_a_failed_write_changes_nothing_and_leaves_no_temporary_file(call, old, tmp_path, monkeypatch):
    for name, content in old.items():
        (tmp_path / name).write_bytes(content)
    monkeypatch.setattr(os, call, fail_with(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="No space left on device"):
        files.write_bytes(tmp_path / "file", b"new")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == old


def test_an_interrupted_write_changes_nothing_and_leaves_no_temporary_file(tmp_path, monkeypatch):
    path = tmp_path / "file"
    path.write_bytes(b"old")
    monkeypatch.setattr(os, "fsync", fail_with(KeyboardInterrupt()))
    with pytest.raises(KeyboardInterrupt):
        files.write_bytes(path, b"new")
    assert {entry.name: entry.read_bytes() for entry in tmp_path.iterdir()} == {"file": b"old"}


def test_a_failed_write_names_the_file_that_was_asked_for(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", fail_with(OSError(errno.ENOSPC, "No space left on device")))
    with pytest.raises(OSError, match="cannot write") as caught:
        files.write_bytes(tmp_path / "file", b"new")
    assert (caught.value.errno, caught.value.filename) == (errno.ENOSPC, str(tmp_path / "file"))


def test_a_read_only_file_system_names_the_file_that_was_asked_for(tmp_path, monkeypatch):
    """There, even removing a file that does not exist fails, because Linux checks the file system first."""
    read_only = OSError(errno.EROFS, "Read-only file system")
    monkeypatch.setattr(files, "open", fail_with(read_only), raising=False)
    monkeypatch.setattr(os, "unlink", fail_with(read_only))
    with pytest.raises(OSError, match="Read-only file system") as caught:
        files.write_bytes(tmp_path / "file", b"new")
    assert caught.value.filename == str(tmp_path / "file")


# JSON


def test_non_finite_numbers_become_null_at_any_depth(tmp_path):
    path = tmp_path / "summary.json"
    files.write_json(path, {"loss": float("nan"), "layers": [{"trace": float("inf")}, (float("-inf"), 1.5)]})
    assert files.read_json(path) == {"loss": None, "layers": [{"trace": None}, [None, 1.5]], "schema_version": 1}


def test_json_is_standard_json(tmp_path):
    path = tmp_path / "summary.json"
    files.write_json(path, {"loss": float("nan"), "accuracy": 0.5})
    stored = json.loads(path.read_text(), parse_constant=fail_with(ValueError))
    assert stored == {"loss": None, "accuracy": 0.5, "schema_version": 1, "checksum": stored["checksum"]}


def test_json_keeps_every_script_readable(tmp_path):
    path = tmp_path / "config.json"
    files.write_json(path, {"classes": ["Äpfel", "蘋果", "🍎"]})
    text = path.read_text(encoding="utf-8")
    assert text.startswith(
        '{\n  "classes": [\n    "Äpfel",\n    "蘋果",\n    "🍎"\n  ],\n  "schema_version": 1,\n  "checksum": "'
    )


@given(st.dictionaries(st.text(), st.floats(allow_nan=False, allow_infinity=False) | st.integers() | st.text()))
@example({"checksum": 0.0, "loss": 1.0})
@example({"schema_version": 7, "loss": 1.0})
def test_json_gives_back_what_was_written(tmp_path_factory, content):
    """The keys "checksum" and "schema_version" are the file's own."""
    path = tmp_path_factory.getbasetemp() / "round-trip.json"
    files.write_json(path, content)
    kept = {key: value for key, value in content.items() if key != files.CHECKSUM}
    assert files.read_json(path) == kept | {"schema_version": files.SCHEMA_VERSION}


# CSV


@given(st.floats(allow_nan=False))
def test_csv_keeps_every_digit(tmp_path_factory, value):
    path = tmp_path_factory.getbasetemp() / "round-trip.csv"
    files.write_csv(path, ["loss"], [{"loss": value}])
    assert [float(row["loss"]) for row in files.read_csv(path)] == [value]


def test_what_a_csv_row_lacks_stays_empty(tmp_path):
    path = tmp_path / "metrics.csv"
    files.write_csv(path, ["epoch", "train loss", "test loss"], [{"epoch": 1, "test loss": 0.1}, {"train loss": None}])
    assert path.read_text() == "epoch,train loss,test loss\n1,,0.1\n,,\n"


def test_csv_text_survives_commas_quotes_line_breaks_and_unicode(tmp_path):
    path = tmp_path / "results.csv"
    rows = [{"run": 'a, "b"', "note": "two\nlines"}, {"run": "Äpfel 🍎", "note": ""}]
    files.write_csv(path, ["run", "note"], rows)
    assert files.read_csv(path) == rows


# Reading damaged files


def test_torch_files_give_back_tensors_and_plain_python(tmp_path):
    path = tmp_path / "last.pt"
    weight = torch.arange(6.0).reshape(2, 3)
    plain = {"epoch": 3, "sites": ["Äpfel", None], "rate": 0.1 + 0.2}
    files.write_torch(path, plain | {"weight": weight})
    stored = files.read_torch(path)
    assert torch.equal(stored.pop("weight"), weight)
    assert stored == plain


@pytest.mark.parametrize("kind", READERS)
def test_a_missing_file_is_said_to_be_missing(kind, tmp_path):
    assert "is missing" in complaint(READERS[kind], tmp_path / f"file.{kind}")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\n",
        b"garbage",
        bytes(range(256)),
        b"PK\x03\x04",
        b"\x80\x02",
        b"[1, 2]",
        b"1.5",
        b"[" * 100_000,
        b'{"a": ' * 100_000,
    ],
    ids=["empty", "newline", "text", "bytes", "zip", "pickle", "list", "number", "deep list", "deep dict"],
)
@pytest.mark.parametrize("kind", READERS)
def test_garbage_is_refused_in_one_line(kind, content, tmp_path):
    path = tmp_path / f"file.{kind}"
    path.write_bytes(content)
    complaint(READERS[kind], path)


@pytest.mark.parametrize("kind", READERS)
def test_a_file_cut_at_any_length_is_refused_in_one_line(kind, tmp_path):
    path = tmp_path / f"file.{kind}"
    if kind == "json":
        files.write_json(path, {"seed": 0, "classes": ["Äpfel", "Birnen"], "nested": {"loss": 0.25}})
    else:
        files.write_torch(path, {"weight": torch.arange(100.0), "epoch": 3})
    whole = path.read_bytes()
    end = len(whole.rstrip())
    for length in [*range(0, end, end // 40), end - 1]:
        path.write_bytes(whole[:length])
        complaint(READERS[kind], path)


@pytest.mark.parametrize("kind", READERS)
def test_a_folder_in_the_place_of_a_file_is_refused_in_one_line(kind, tmp_path):
    complaint(READERS[kind], tmp_path)


def save_pickle(content, path):
    path.write_bytes(pickle.dumps(content, 2))


@pytest.mark.parametrize("save", [torch.save, save_pickle])
def test_code_in_a_file_is_refused_and_does_not_run(save, tmp_path):
    folder = tmp_path / "made by the payload"
    path = tmp_path / "last.pt"
    save({"epoch": Payload(folder)}, path)
    complaint(files.read_torch, path)
    assert not folder.exists()
    with contextlib.suppress(RuntimeError):  # torch.load runs a plain pickle before it rejects it
        torch.load(path, weights_only=False)
    assert folder.exists(), "the payload does not run, so this test proves nothing"

"""Files that are complete or absent: every write goes to a temporary file, which then replaces the old file.

Reading detects later damage. A JSON file contains a checksum of its content. Tensors are stored in a zip archive,
which contains a checksum of each member. Only functions that handle tensors import torch, so that commands that only
plan or collect start quickly.
"""

import contextlib
import csv
import hashlib
import io
import json
import math
import os
import time
import zipfile
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from normstudy.cli import RunError, first_line

CHECKSUM = "checksum"
SCHEMA_VERSION = 1  # of every JSON file; files of earlier versions of this program have none


def write_bytes(path: Path, content: bytes | memoryview, previous: Path | None = None) -> str:
    """Replace `path` with `content` atomically, and return the SHA-256 of the content in hex.

    Creates the parent folders. If `previous` is given, the old file is moved there. After a failure or Ctrl-C, the old
    file still exists. Raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        if previous is not None:
            with contextlib.suppress(FileNotFoundError):
                os.replace(path, previous)
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from None
        raise
    return hashlib.sha256(content).hexdigest()


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, in hex. Raises OSError."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def remove_leftovers(folder: Path, pattern: str = "**/.*.tmp", seconds: float = 0.0) -> None:
    """Remove files, by default temporary ones of killed processes, not written to for `seconds` seconds."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= seconds:
                path.unlink()


def write_torch(path: Path, content: object, previous: Path | None = None) -> str:
    """Write tensors and plain Python objects; see write_bytes.

    Tensors are stored as CPU copies, so that torch.load(path, weights_only=True) reads them on any machine.
    """
    import torch

    buffer = io.BytesIO()
    torch.save(_on_cpu(content), buffer)
    return write_bytes(path, buffer.getbuffer(), previous)


def _on_cpu(content: Any) -> Any:
    """Return the content with its tensors on the CPU. Those that are there already are not copied."""
    import torch

    if isinstance(content, torch.Tensor):
        return content.cpu()
    if isinstance(content, Mapping):
        return {key: _on_cpu(value) for key, value in content.items()}
    if isinstance(content, list | tuple):
        return type(content)(map(_on_cpu, content))
    return content


def read_torch(path: Path, sha256: str | None = None) -> Any:
    """Return the content of a file that write_torch wrote, on the CPU.

    Raises RunError if the file is missing or damaged, or if its SHA-256 is not `sha256`.
    """
    import torch

    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
        raise RunError(
            f"{path} is not what this run wrote: it was changed, damaged, or taken from elsewhere; "
            "copy it again from its source"
        )
    try:
        damaged = zipfile.ZipFile(io.BytesIO(content)).testzip()
        if damaged is None:
            return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        reason = f"{damaged} does not match its checksum"
    except Exception as error:  # torch.load and zipfile raise unrelated types for a damaged file
        reason = first_line(error) or type(error).__name__
        if reason.startswith("Weights only"):
            reason = "it is not a file of plain tensors"
    raise RunError(f"{path} is damaged ({reason})")


def write_json(path: Path, content: Mapping[str, object]) -> str:
    """Write indented JSON with non-finite numbers as null; see write_bytes.

    The keys "schema_version" and "checksum" are added, whose old values are dropped.
    """
    finite = _finite({key: value for key, value in content.items() if key != CHECKSUM})
    finite["schema_version"] = SCHEMA_VERSION
    checksum = _checksum(json.loads(json.dumps(finite)))
    text = json.dumps(finite | {CHECKSUM: checksum}, indent=2, ensure_ascii=False, allow_nan=False)
    return write_bytes(path, f"{text}\n".encode(errors="backslashreplace"))


def _checksum(content: object) -> str:
    """The first 16 hex digits of the SHA-256 of parsed JSON, independent of file layout and key order."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _finite(value: Any) -> Any:
    """Return JSON content with None in place of each non-finite number."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """Return the dict in a JSON file. Raises RunError if the file is missing, damaged, or was changed after writing."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} does not contain a JSON object")
    checksum = content.pop(CHECKSUM, None)  # hand-written files have none
    if checksum is not None and checksum != _checksum(content):
        raise RunError(f"{path} is damaged or was changed by hand: it does not match its checksum")
    return content


def is_whole_json(path: Path) -> bool:
    """Return whether read_json can read a file."""
    try:
        read_json(path)
    except RunError:
        return False
    return True


def write_csv(path: Path, columns: Collection[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Write a header and one line per row, floats in full precision and missing cells empty; see write_bytes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return write_bytes(path, text.getvalue().encode(errors="backslashreplace"))


def read_csv(path: Path) -> list[dict[str, str]]:
    """Return the rows of a CSV file as dicts of text. Raises OSError."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))

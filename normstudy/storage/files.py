"""Files that are complete or absent: every write goes to a temporary file first and replaces the old one at once.

Later damage is noticed on reading: JSON holds a checksum of its content, tensors lie in zip archives, which hold one
of each member. torch is imported only where tensors are, so that commands that only plan or collect start at once.
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


def write_bytes(path: Path, content: bytes | memoryview, previous: Path | None = None) -> str:
    """Replace `path` by `content` atomically, and return the SHA-256 of the content in hex.

    Makes the parent folders. With `previous`, the old file takes that path. On failure, a Ctrl-C included, the old
    file stays; raises OSError.
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
    """Remove the temporary files of killed processes that have not been written to for so many seconds."""
    for path in folder.glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= seconds:
                path.unlink()


def write_torch(path: Path, content: object, previous: Path | None = None) -> str:
    """Write tensors and plain Python, which torch.load reads with weights_only=True; see write_bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return write_bytes(path, buffer.getbuffer(), previous)


def read_torch(path: Path, sha256: str | None = None) -> Any:
    """The content of a file that write_torch wrote, on the CPU.

    Raises RunError for a file that is missing, damaged, or whose SHA-256 differs from the given one.
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
            "copy it again from where it came"
        )
    try:
        damaged = zipfile.ZipFile(io.BytesIO(content)).testzip()
        if damaged is None:
            return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
        reason = f"{damaged} does not fit its checksum"
    except Exception as error:  # torch.load and zipfile have no common base for what a damaged file raises
        reason = first_line(error) or type(error).__name__
        if reason.startswith("Weights only"):
            reason = "it is not a file of plain tensors"
    raise RunError(f"{path} is damaged ({reason})")


def write_json(path: Path, content: Mapping[str, object]) -> str:
    """Write indented JSON with a checksum, which replaces any key of that name; see write_bytes.

    Non-finite numbers become null.
    """
    finite = _finite({key: value for key, value in content.items() if key != CHECKSUM})
    checksum = _checksum(json.loads(json.dumps(finite)))
    text = json.dumps(finite | {CHECKSUM: checksum}, indent=2, ensure_ascii=False, allow_nan=False)
    return write_bytes(path, f"{text}\n".encode(errors="backslashreplace"))


def _checksum(content: object) -> str:
    """16 hex digits of the SHA-256 of parsed JSON, whatever the layout of the file and the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _finite(value: Any) -> Any:
    """JSON content with None in the place of each number that is not finite."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read_json(path: Path) -> dict[str, Any]:
    """The dict in a JSON file. Raises RunError for a file that is missing, damaged, or changed since it was written."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no settings")
    checksum = content.pop(CHECKSUM, None)  # hand-written files have none
    if checksum is not None and checksum != _checksum(content):
        raise RunError(f"{path} is damaged, or was changed by hand: it does not fit its checksum")
    return content


def is_whole_json(path: Path) -> bool:
    """Whether read_json can read a file."""
    try:
        read_json(path)
    except RunError:
        return False
    return True


def write_csv(path: Path, columns: Collection[str], rows: Iterable[Mapping[str, object]]) -> str:
    """Write a header and one line for each row, floats in full; missing cells stay empty. See write_bytes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return write_bytes(path, text.getvalue().encode(errors="backslashreplace"))


def read_csv(path: Path) -> list[dict[str, str]]:
    """The rows of a CSV file as dicts of text. Raises OSError."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))

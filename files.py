"""Files that are whole or not there: every write goes to a temporary file first and replaces the old one at once."""

import contextlib
import csv
import io
import json
import os
from pathlib import Path

import torch

from errors import RunError


def write_bytes(path, content):
    """Replaces `path` by `content` atomically, parents made; on failure the old file stays. Raises OSError."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError):
            raise OSError(error.errno, f"cannot write: {error.strerror}", str(path)) from None
        raise


def write_torch(path, content):
    """Tensors and plain Python, so that torch.load reads it with weights_only=True. Atomic; raises OSError."""
    buffer = io.BytesIO()
    torch.save(content, buffer)
    write_bytes(path, buffer.getbuffer())


def read_torch(path):
    """What write_torch wrote, on the CPU. Raises RunError for a missing or damaged file."""
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except PermissionError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # torch.load has no common base for what a damaged file raises
        reason = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
        if reason.startswith("Weights only"):
            reason = "it is not a file of plain tensors"
        raise RunError(f"{path} is damaged ({reason})") from None


def write_json(path, content):
    """Indented JSON; non-finite numbers become null. Atomic; raises OSError."""
    text = json.dumps(_finite(content), indent=2, ensure_ascii=False, allow_nan=False)
    write_bytes(path, f"{text}\n".encode(errors="backslashreplace"))


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def read_json(path):
    """The dict in a JSON file. Raises RunError for a missing or damaged file."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise RunError(f"{path} holds no settings")
    return content


def write_csv(path, columns, rows):
    """A header and one line a row (dicts; what a row lacks stays empty), floats in full. Atomic; raises OSError."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    write_bytes(path, text.getvalue().encode())


def read_csv(path):
    """The rows of a CSV file as dicts of text. Raises OSError."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))

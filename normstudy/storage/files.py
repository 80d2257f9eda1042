"""Files that are whole or not there: every write goes to a temporary file first and replaces the old one at once.

What was damaged later is noticed when it is read: JSON holds a checksum of its content, tensors lie in zip archives,
which hold one of each member. torch is imported where tensors are, so that what only plans or collects starts at once.
"""

import contextlib
import csv
import errno
import hashlib
import io
import json
import os
import time
import zipfile
from pathlib import Path

import filelock

from normstudy.cli import RunError

CHECKSUM = "checksum"
NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # how a file system without locks answers


def write_bytes(path, content, previous=None):
    """Replaces `path` by `content` atomically, parents made; on failure the old file stays. Raises OSError.

    With `previous`, the old file takes that path. Returns the SHA-256 of the content.
    """
    path = Path(path)
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


@contextlib.contextmanager
def locked(path, timeout=-1):
    """A context that one process at a time is in; the system frees the lock of one that dies. Gives whether there are
    locks on this file system. Waits for `timeout` seconds (-1: as long as it takes), then raises filelock.Timeout."""
    lock = filelock.FileLock(path)
    try:
        lock.acquire(timeout=timeout)
    except (NotImplementedError, OSError) as error:
        if isinstance(error, filelock.Timeout) or getattr(error, "errno", errno.ENOSYS) not in NO_LOCKS:
            raise
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def sha256_of(path):
    """The SHA-256 of a file, in hex. Raises OSError."""
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def remove_leftovers(folder, pattern="**/.*.tmp", seconds=0.0):
    """Removes the temporary files of killed processes, which have not been written to for so many seconds."""
    for path in Path(folder).glob(pattern):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime >= seconds:
                path.unlink()


def write_torch(path, content, previous=None):
    """Tensors and plain Python, so that torch.load reads it with weights_only=True: see write_bytes."""
    import torch

    buffer = io.BytesIO()
    torch.save(content, buffer)
    return write_bytes(path, buffer.getbuffer(), previous)


def read_torch(path, sha256=None):
    """What write_torch wrote, on the CPU. Raises RunError for a missing or damaged file, and for one whose SHA-256
    is not this."""
    import torch

    try:
        content = Path(path).read_bytes()
        if sha256 is not None and hashlib.sha256(content).hexdigest() != sha256:
            raise RunError(
                f"{path} is not what this run wrote: it was changed, damaged, or taken from elsewhere; "
                "copy it again from where it came"
            )
        damaged = zipfile.ZipFile(io.BytesIO(content)).testzip()
        if damaged is not None:
            raise RunError(f"{path} is damaged ({damaged} does not fit its checksum)")
        return torch.load(io.BytesIO(content), weights_only=True, map_location="cpu")
    except RunError:
        raise
    except FileNotFoundError:
        raise RunError(f"{path} is missing") from None
    except (PermissionError, IsADirectoryError) as error:
        raise RunError(f"{path} cannot be read: {error.strerror}") from None
    except Exception as error:  # torch.load and zipfile have no common base for what a damaged file raises
        reason = (str(error).splitlines() or [""])[0][:120] or type(error).__name__
        if reason.startswith("Weights only"):
            reason = "it is not a file of plain tensors"
        raise RunError(f"{path} is damaged ({reason})") from None


def write_json(path, content):
    """Indented JSON with a checksum, in the place of any key of that name; non-finite numbers become null: see
    write_bytes."""
    content = _finite({key: value for key, value in content.items() if key != CHECKSUM})
    checksum = _checksum(json.loads(json.dumps(content)))
    text = json.dumps(content | {CHECKSUM: checksum}, indent=2, ensure_ascii=False, allow_nan=False)
    return write_bytes(path, f"{text}\n".encode(errors="backslashreplace"))


def _checksum(content):
    """16 hex digits over what json.loads gave, whatever the layout of the file and the order of its keys."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def _finite(value):
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value


def read_json(path):
    """The dict in a JSON file. Raises RunError for a file that is missing, damaged, or changed since it was written."""
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
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


def is_json(path):
    """Whether read_json would give what was written there."""
    try:
        read_json(path)
    except RunError:
        return False
    return True


def write_csv(path, columns, rows):
    """A header and one line a row (dicts; what a row lacks stays empty), floats in full: see write_bytes."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n", restval="")
    writer.writeheader()
    writer.writerows(rows)
    return write_bytes(path, text.getvalue().encode(errors="backslashreplace"))


def read_csv(path):
    """The rows of a CSV file as dicts of text. Raises OSError."""
    with open(path, encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))

"""Locks that one process at a time holds."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # how a file system without locks answers


@contextlib.contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[bool]:
    """A block that one process at a time is in; gives whether this file system has locks at all.

    Waits for `timeout` seconds (-1: as long as it takes), then raises filelock.Timeout. The system frees the lock of a
    process that dies.
    """
    import filelock

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

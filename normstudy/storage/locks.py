"""File locks, which only one process at a time can hold."""

import contextlib
import errno
from collections.abc import Iterator
from pathlib import Path

NO_LOCKS = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # errors of a file system without locks


@contextlib.contextmanager
def locked(path: Path, timeout: float = -1) -> Iterator[bool]:
    """Hold a lock during a `with` block; yield whether the file system supports locks.

    Waits for at most `timeout` seconds (-1: without limit), then raises filelock.Timeout. The operating system frees
    the lock of a process that dies.
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

"""Errors that a user can cause: one line with the reason and how to go on, an exit code, and no traceback."""

import errno


class UsageError(Exception):
    """Flags that are wrong or cannot be honoured together (exit code 2)."""

    kind = "usage"  # of the Outcome of a command that ends with this error


class RunError(Exception):
    """A failure that a user can cause and repair, described in one line (exit code 1)."""

    kind = "failed"


class Busy(RunError):
    """Another process works on the run."""

    kind = "busy"


def describe_os_error(error: OSError) -> str:
    """One line with the reason of an OSError, its file, and how to go on."""
    where = f" ({error.filename})" if error.filename else ""
    hint = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "; nothing written before is lost: free some space, and the same command goes on"
    return f"{error.strerror or error}{where}{hint}"


def first_line(error: BaseException) -> str:
    """Up to 120 characters of the first line of an error's message."""
    return (str(error).splitlines() or [""])[0][:120]

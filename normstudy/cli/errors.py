"""Errors that a user can cause: one line with the reason and what to do, an exit code, and no traceback."""

import errno


class UsageError(Exception):
    """Flags that are wrong or do not fit together (exit code 2)."""

    kind = "usage"  # the Outcome.kind of a command that ends with this error


class RunError(Exception):
    """A failure that a user can cause and repair, described in one line (exit code 1)."""

    kind = "failed"


class Busy(RunError):
    """Another process is working on the run."""

    kind = "busy"


def describe_os_error(error: OSError) -> str:
    """Return one line with the reason of an OSError, its file, and what to do."""
    where = f" ({error.filename})" if error.filename else ""
    hint = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "; no earlier result is lost: free some space and run the same command again to continue"
    return f"{error.strerror or error}{where}{hint}"


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, cut to 120 characters."""
    return (str(error).splitlines() or [""])[0][:120]

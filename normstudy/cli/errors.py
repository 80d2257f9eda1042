"""Errors that a user can cause: one line that says what is wrong and what to do, with an exit code and no traceback."""

import errno


class UsageError(Exception):
    """Flags that are wrong or cannot be honoured together (exit code 2)."""


class RunError(Exception):
    """What a user can cause and mend, said in one line (exit code 1)."""


def describe_os_error(error):
    """What an OSError says, of which file, and how to go on, in one line."""
    where = f" ({error.filename})" if error.filename else ""
    hint = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "; nothing written before is lost: free some space, and the same command goes on"
    return f"{error.strerror or error}{where}{hint}"

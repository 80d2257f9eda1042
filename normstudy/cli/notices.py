"""Lines for the user that are neither results nor errors."""

import sys

from normstudy.cli.launcher import is_first_process


def format_count(count: int, noun: str) -> str:
    """Format a count with its noun in the singular or plural."""
    return f"{count} {noun}" + "s" * (count != 1)


def notify(line: str) -> None:
    """Print a line on stderr, in the first process of a run only."""
    if is_first_process():
        text = line.encode(errors="backslashreplace").decode()  # for paths that are not valid text
        print(text, file=sys.stderr, flush=True)

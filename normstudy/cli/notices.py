"""Lines for the user that are neither results nor errors."""

import sys

from normstudy.cli.launcher import is_first_process


def format_count(count: int, noun: str) -> str:
    """Format a count with its noun in the singular or plural."""
    return f"{count} {noun}" + "s" * (count != 1)


def format_duration(seconds: float) -> str:
    """Format a duration with two or three digits: 4.5 s, 45 s, 12 min, 3.4 h or 2.5 days."""
    if 0 < seconds < 9.95:
        return f"{seconds:.1f} s"
    for unit, size, most in (("s", 1, 90), ("min", 60, 90), ("h", 3600, 48)):
        if seconds < most * size:
            value = max(0.0, seconds) / size
            return f"{value:.0f} {unit}" if unit != "h" else f"{value:.1f} {unit}"
    return f"{seconds / 86400:.1f} days"


def notify(line: str) -> None:
    """Print a line on stderr, in the first process of a run only."""
    if is_first_process():
        text = line.encode(errors="backslashreplace").decode()  # for paths that are not valid text
        print(text, file=sys.stderr, flush=True)

"""Lines for the user that are neither results nor errors."""

import os
import sys


def notify(line: str) -> None:
    """Print a line on stderr, in the first of torchrun's processes only."""
    if os.environ.get("RANK", "0") == "0":
        text = line.encode(errors="backslashreplace").decode()  # for paths that are not valid text
        print(text, file=sys.stderr, flush=True)

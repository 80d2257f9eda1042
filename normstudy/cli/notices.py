"""Lines for the user that are neither results nor errors."""

import os
import sys


def notify(line: str) -> None:
    """Print a line on stderr, in the first of torchrun's processes only."""
    if os.environ.get("RANK", "0") == "0":
        print(line, file=sys.stderr, flush=True)

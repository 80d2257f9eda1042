"""Progress bars with rate and ETA."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(total: int, description: str, initial: int = 0, unit: str = "img") -> tqdm:
    """Return a tqdm bar with rate and ETA on stderr.

    It is hidden if stderr is not a terminal, and in all of torchrun's processes but the first.
    """
    from tqdm import tqdm

    is_shown = sys.stderr.isatty() and os.environ.get("RANK", "0") == "0"
    has_size = (
        is_shown and os.get_terminal_size(sys.stderr.fileno()).columns > 0
    )  # not on the terminals of script(1) and others
    return tqdm(
        total=total,
        desc=description,
        initial=initial,
        unit=unit,
        unit_scale=unit == "img",
        leave=False,
        dynamic_ncols=has_size,
        ncols=None if has_size else 80,
        nrows=None if has_size else 24,
        disable=not is_shown,
    )

"""Progress bars with rate and ETA."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from normstudy.cli.launcher import is_first_process

if TYPE_CHECKING:
    from tqdm import tqdm


def progress_bar(total: int, description: str, initial: int = 0, unit: str = "img") -> tqdm:
    """Return a tqdm bar with rate and ETA on stderr.

    It is hidden if stderr is not a terminal, and in all of torchrun's processes but the first.
    """
    from tqdm import tqdm

    is_shown = sys.stderr is not None and sys.stderr.isatty() and is_first_process()
    has_size = is_shown and _has_terminal_size()
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


def _has_terminal_size() -> bool:
    """Return whether stderr knows its width, unlike the terminals of script(1) and the consoles of some editors."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns > 0
    except OSError:  # also io.UnsupportedOperation, of a console that is no file
        return False

"""The place of this process among those of its run, from the variables of torchrun and launchers like it."""

import os

from normstudy.cli.errors import UsageError

ONE_PROCESS = "for one process, unset RANK and WORLD_SIZE"  # the advice in every message about these variables
HOW = f"start several processes with torchrun; {ONE_PROCESS}"


def place_among_processes() -> tuple[int, int]:
    """Return (number of this process, number of processes) from RANK and WORLD_SIZE: (0, 1) if RANK is not set.

    An empty variable counts as not set. Raises UsageError if the variables do not say which process this is.
    """
    rank, size = (os.environ.get(name, "").strip() for name in ("RANK", "WORLD_SIZE"))
    if not rank:
        return 0, 1
    if not size:
        raise UsageError(f"RANK={rank} is set without WORLD_SIZE: {HOW}")
    if not (rank.isdecimal() and size.isdecimal() and int(rank) < int(size)):
        raise UsageError(f"RANK={rank} and WORLD_SIZE={size} name no process: {HOW}")
    return int(rank), int(size)


def launcher_number(name: str, default: int) -> int:
    """Return the number in a launcher's variable, or the default if it is empty or not set. Raises UsageError."""
    text = os.environ.get(name, "").strip()
    if text and not text.isdecimal():
        raise UsageError(f"{name}={text} is not a number: {HOW}")
    return int(text or default)


def is_first_process() -> bool:
    """Return whether this process reports for its run: it is the first one, or the variables do not say which it is."""
    try:
        return place_among_processes()[0] == 0
    except UsageError:
        return True


def is_one_of_several() -> bool:
    """Return whether the variables say that this run has several processes."""
    try:
        return place_among_processes()[1] > 1
    except UsageError:
        return False

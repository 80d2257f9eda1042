"""How the processes of a run meet, before they communicate."""

import os
import socket
import sys
import time
from datetime import timedelta

from torch.distributed import PrefixStore, Store, TCPStore  # type: ignore[attr-defined]  # public, not in __all__

from normstudy.cli import ONE_PROCESS, RunError, UsageError, first_line, launcher_number, place_among_processes

SILENT_SECONDS, SECONDS_BETWEEN_LINES = 5.0, 60.0
LONGEST_MEETING = 600.0  # seconds until a process gives up waiting for the others
ANSWER = timedelta(seconds=20)  # for the store to open or to answer
POLLING = 0.1


def meet() -> Store:
    """Wait until all processes of this run are here; return the store that they share.

    A line on stderr says for whom this process waits. Unlike PyTorch's own rendezvous, this one waits in Python, where
    a signal ends it. Raises UsageError if the variables of the launcher are incomplete, and RunError if the
    processes have not met after LONGEST_MEETING seconds.
    """
    rank, size = place_among_processes()
    host, port = _address()
    start, next_line, store, here, reason = time.monotonic(), SILENT_SECONDS, None, 1, ""
    while True:
        try:
            store = store or _connect(host, port, rank, size)
            here = _count(store, rank, size)
            if here == size:
                return store
        except (OSError, RuntimeError, ValueError) as error:
            if _holds_store(rank):
                raise RunError(f"the processes of this run cannot meet at {host}:{port}: {first_line(error)}") from None
            store, reason = None, f" ({first_line(error)})"
        waited = time.monotonic() - start
        state = f"{here} of {size} here" if store else "the first process is not here yet"
        if waited > LONGEST_MEETING:
            raise RunError(
                f"after {LONGEST_MEETING / 60:.0f} minutes, the processes of this run have not met at {host}:{port} "
                f"({state}): check that all {size} are running, with the same MASTER_ADDR and MASTER_PORT, and that no "
                f"firewall is between them{reason}; {ONE_PROCESS}"
            )
        if waited > next_line:
            print(f"waiting for the other processes at {host}:{port} ({state})...", file=sys.stderr, flush=True)
            next_line = waited + SECONDS_BETWEEN_LINES
        time.sleep(POLLING)


def _address() -> tuple[str, int]:
    """Return the host and the port of the first process. Raises UsageError if the launcher did not set them."""
    host, port = (os.environ.get(name, "").strip() for name in ("MASTER_ADDR", "MASTER_PORT"))
    if not host or not (port.isdecimal() and 0 < int(port) < 2**16):
        raise UsageError(
            f"MASTER_ADDR={host} and MASTER_PORT={port} name no place to meet: start the processes with torchrun; "
            f"{ONE_PROCESS}"
        )
    return host, int(port)


def _connect(host: str, port: int, rank: int, size: int) -> Store:
    """Return the store of the run, which torchrun holds, or else the first process.

    Raises OSError if it cannot be reached: a socket is tried first, because PyTorch reports each failure at length.
    The store of torchrun survives a restart and still holds the addresses of dead processes. If one machine has all
    processes, the restart count tells the attempts apart.
    """
    is_holder = _holds_store(rank)
    socket.getaddrinfo(host, port)
    if not is_holder:
        socket.create_connection((host, port), timeout=2).close()
    store: Store = TCPStore(
        host,
        port,
        size,
        is_master=is_holder,
        timeout=ANSWER,
        wait_for_workers=False,
        multi_tenant=True,
    )
    if launcher_number("LOCAL_WORLD_SIZE", 0) == size:
        attempt = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
        store = PrefixStore(attempt, store)
    return store


def _holds_store(rank: int) -> bool:
    """Return whether this process holds the store; with torchrun, an agent does."""
    return rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"


def _count(store: Store, rank: int, size: int) -> int:
    """Say that this process is here; return how many are."""
    store.set(f"here/{rank}", "")
    return sum(store.check([f"here/{number}"]) for number in range(size))

"""The machine that a command runs on: its device, its free memory, and how memory is handed out."""

import contextlib
import ctypes
import math
import re
from pathlib import Path

import torch

from normstudy.cli import UsageError

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)


def pick_device(name):
    """The torch.device that a --device flag names; auto: cuda, mps or cpu. Raises UsageError where it is not there."""
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device={name} is none of auto, cpu, cuda, cuda:N, mps") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= there:
        raise UsageError(f"--device={name} is not on this machine (--device=cpu always is)")
    return device


def is_bf16_emulated(device):
    """Whether a torch.device is a CPU without instructions for bf16, where oneDNN leaves it to slow loops: a step of a
    VGG then takes 15 times as long as in float32 (two cores of an EPYC with AVX2, PyTorch 2.14)."""
    try:
        return device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):  # a PyTorch without oneDNN
        return False


def is_out_of_memory(error):
    """Whether an exception says that a device, or the machine, has too little memory."""
    is_allocation = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return is_allocation or isinstance(error, torch.OutOfMemoryError | MemoryError)


def keep_freed_memory():
    """Has the C library keep what is freed, for the next tensor; where it is not glibc, nothing changes.

    glibc gives the memory of every large tensor back to the system and asks for it again, and each page of it is
    then cleared anew: three quarters of the time of an elementwise operation on the CPU.
    """
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, 0)
        library.mallopt(M_TRIM_THRESHOLD, -1)


def _release_freed_memory():
    """Gives the system what is kept and not in use."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def free_memory(device):
    """Bytes that are free on a torch.device; infinity where that cannot be known."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    _release_freed_memory()
    free = [math.inf]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cache = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        free.append(limit - used + (int(cache[1]) if cache else 0))
    return min(free)

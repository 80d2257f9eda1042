"""Global settings of PyTorch and of memory allocation while a command works, which are restored afterwards."""

import contextlib
import ctypes
from collections.abc import Iterator

import torch

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # of mallopt(3)
USUAL_TRIM_THRESHOLD, USUAL_MMAP_MAX = 128 * 1024, 65536  # of glibc


@contextlib.contextmanager
def own_settings() -> Iterator[None]:
    """A context for all that a command computes: neither depends on the program around it nor changes that program.

    A notebook may have set another default dtype or device, or switched gradients off. Inside the context, all this is
    as in a new process. Afterwards these settings, PyTorch's random numbers and the allocation of memory are as before.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    gpus = range(torch.cuda.device_count()) if torch.cuda.is_initialized() else ()
    with torch.random.fork_rng(gpus), torch.inference_mode(False), torch.enable_grad():
        torch.set_default_dtype(torch.float32)
        if device.type != "cpu":
            torch.set_default_device(None)
        keep_freed_memory()
        try:
            yield
        finally:
            torch.set_default_dtype(dtype)
            if device.type != "cpu":
                torch.set_default_device(device)
            _return_freed_memory()


def keep_freed_memory() -> None:
    """Make the C library keep freed memory for the next tensor. Without glibc, nothing changes.

    By default, glibc returns the memory of every large tensor to the system and requests it again. The system then
    clears each page again, which takes three quarters of the time of an elementwise operation on the CPU.
    """
    _set_allocation(mmap_max=0, trim_threshold=-1)


def release_freed_memory() -> None:
    """Give the unused memory that glibc keeps back to the system."""
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL(None).malloc_trim(0)


def _return_freed_memory() -> None:
    """Undo keep_freed_memory."""
    _set_allocation(USUAL_MMAP_MAX, USUAL_TRIM_THRESHOLD)
    release_freed_memory()


def _set_allocation(mmap_max: int, trim_threshold: int) -> None:
    with contextlib.suppress(AttributeError, OSError):
        library = ctypes.CDLL(None)
        library.mallopt(M_MMAP_MAX, mmap_max)
        library.mallopt(M_TRIM_THRESHOLD, trim_threshold)

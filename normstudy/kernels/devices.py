"""The devices of this machine, their free memory, and the arithmetic of training."""

import contextlib
import math
import os
import re
from collections.abc import Iterator
from pathlib import Path

import torch

from normstudy.cli import UsageError, processes_sharing
from normstudy.kernels.settings import release_freed_memory

CUBLAS_WORKSPACE = "CUBLAS_WORKSPACE_CONFIG"  # the environment variable that deterministic cuBLAS needs


def pick_device(name: str) -> torch.device:
    """Return the device that a --device flag names; auto means cuda, else mps, else cpu.

    Raises UsageError if the name is unknown or this machine does not have the device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "mps" if torch.backends.mps.is_available() else "cpu"
    try:
        device = torch.device(name)
    except RuntimeError:
        raise UsageError(f"--device={name} is not one of auto, cpu, cuda, cuda:N, mps") from None
    there = {"cpu": 1, "cuda": torch.cuda.device_count(), "mps": int(torch.backends.mps.is_available())}[device.type]
    if (device.index or 0) >= there:
        raise UsageError(f"--device={name} is not available on this machine; use --device=cpu")
    return device


def as_current(device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which a CUDA device is the current one, where events and streams go unless told otherwise."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


@contextlib.contextmanager
def training_arithmetic(device: torch.device, precision: str, is_deterministic: bool) -> Iterator[None]:
    """Set PyTorch's arithmetic for training inside a `with` block, and restore it afterwards.

    float32 is computed without TF32 on every device, unless `precision` is "tf32". Raises UsageError for TF32 on a
    device without it.
    """
    if precision == "tf32" and device.type != "cuda":
        raise UsageError(f"--precision=tf32 needs CUDA, not {device.type}; use fp32")
    cudnn = torch.backends.cudnn
    before = cudnn.allow_tf32, torch.get_float32_matmul_precision(), cudnn.benchmark, cudnn.deterministic
    was_deterministic = torch.are_deterministic_algorithms_enabled()
    warned_only = torch.is_deterministic_algorithms_warn_only_enabled()
    workspace = os.environ.get(CUBLAS_WORKSPACE)
    cudnn.allow_tf32 = precision == "tf32"
    torch.set_float32_matmul_precision("high" if precision == "tf32" else "highest")
    cudnn.benchmark = not is_deterministic  # cuDNN times its kernels and takes the fastest: shapes hardly change
    cudnn.deterministic = is_deterministic
    if is_deterministic:
        os.environ.setdefault(CUBLAS_WORKSPACE, ":4096:8")
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        cudnn.allow_tf32, matmul, cudnn.benchmark, cudnn.deterministic = before
        torch.set_float32_matmul_precision(matmul)
        torch.use_deterministic_algorithms(was_deterministic, warn_only=warned_only)
        if workspace is None:
            os.environ.pop(CUBLAS_WORKSPACE, None)


def is_bf16_emulated(device: torch.device) -> bool:
    """Return whether a device is a CPU without bf16 instructions, on which oneDNN falls back to slow loops.

    A VGG step then takes 15 times as long as in float32 (two cores of an EPYC with AVX2, PyTorch 2.14).
    """
    try:
        return device.type == "cpu" and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    except (AttributeError, RuntimeError):  # a PyTorch without oneDNN
        return False


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception says that a device or the machine is out of memory."""
    is_allocation = isinstance(error, RuntimeError) and "allocate memory" in str(error)
    return is_allocation or isinstance(error, torch.OutOfMemoryError | MemoryError)


def free_memory(device: torch.device) -> float:
    """Return the free bytes that this process may take on a device, or infinity if they are unknown.

    If other processes of a sweep share the device, it is this process's part of the free bytes.
    """
    share = 1 / processes_sharing(device.type)
    if device.type == "cuda":
        # PyTorch keeps freed memory for the next tensor, which the driver counts as taken.
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return share * (torch.cuda.mem_get_info(device)[0] + kept)
    release_freed_memory()
    free: list[float] = [math.inf]
    with contextlib.suppress(OSError, StopIteration, ValueError):
        lines = Path("/proc/meminfo").read_text().splitlines()
        free.append(1024 * int(next(line.split()[1] for line in lines if line.startswith("MemAvailable:"))))
    with contextlib.suppress(OSError, ValueError):
        group = Path("/sys/fs/cgroup")
        limit, used = (int((group / name).read_text()) for name in ("memory.max", "memory.current"))
        cache = re.search(r"^inactive_file (\d+)", (group / "memory.stat").read_text(), re.MULTILINE)
        free.append(limit - used + (int(cache[1]) if cache else 0))
    return share * min(free)

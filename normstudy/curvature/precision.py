"""Full float32 arithmetic, whatever surrounds it."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch

AUTOCAST_DEVICES = ("cpu", "cuda", "mps", "xpu")


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 without TF32, bf16 or autocast in a `with` block; restore PyTorch's settings afterwards."""
    with contextlib.ExitStack() as stack:
        for device_type in AUTOCAST_DEVICES:
            if torch.is_autocast_enabled(device_type):
                stack.enter_context(torch.autocast(device_type, enabled=False))
        stack.enter_context(_settings() if hasattr(torch.backends, "fp32_precision") else _settings_before_2_9())
        yield


@contextlib.contextmanager
def timed_convolutions() -> Iterator[None]:
    """Let cuDNN time its kernels and take the fastest in a `with` block; restore PyTorch's setting afterwards.

    The kernels that it takes unasked for a second derivative can take several times as long.
    """
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = True
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


@contextlib.contextmanager
def _settings() -> Iterator[None]:
    """Set the precision of each library to IEEE float32. The older functions fail after a mix with these settings."""
    backends: Any = torch.backends
    libraries = [backends, backends.cuda.matmul, backends.cudnn, backends.cudnn.conv, backends.cudnn.rnn]
    libraries += [backends.mkldnn, backends.mkldnn.matmul, backends.mkldnn.conv, backends.mkldnn.rnn]
    before = [library.fp32_precision for library in libraries]
    for library in libraries:
        library.fp32_precision = "ieee"
    try:
        yield
    finally:
        for library, precision in zip(libraries, before, strict=True):
            library.fp32_precision = precision


@contextlib.contextmanager
def _settings_before_2_9() -> Iterator[None]:
    cudnn, matmul = torch.backends.cudnn.allow_tf32, torch.get_float32_matmul_precision()
    torch.backends.cudnn.allow_tf32 = False
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = cudnn
        torch.set_float32_matmul_precision(matmul)

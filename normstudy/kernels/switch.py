"""The switch between the forms of a kernel: the plain formula, the CPU's form, and the form for other devices.

The plain form is the textbook formula. A faster form is tested against it. It is kept only while benchmarks/forms.py
shows a gain of a tenth of a training step, or if the plain form would wait for the device (largest_eigenvalues) or
start a kernel for each weight there (frobenius_norm).
`use_form` lets tests run each form on any machine and lets the benchmark compare them.
"""

import contextlib
from collections.abc import Iterator
from typing import Literal, get_args

import torch

Form = Literal["plain", "cpu", "device"]
FORMS: tuple[Form, ...] = get_args(Form)
KERNELS = (
    "convolution",
    "batch_norm",
    "group_norm",
    "map_moments",
    "attention",
    "channel_variance",
    "frobenius_norm",
    "largest_eigenvalues",
)
_chosen: dict[str, Form] = {}


def form_of(x: torch.Tensor, kernel: str) -> Form:
    """Return the form of a kernel of KERNELS for x: the form for x's device, unless use_form selects another."""
    return _chosen.get(kernel) or ("cpu" if x.device.type == "cpu" else "device")


@contextlib.contextmanager
def use_form(form: Form, *kernels: str) -> Iterator[None]:
    """Make these kernels (default: all of KERNELS) compute in one form inside a `with` block.

    Raises ValueError for an unknown form or kernel.
    """
    unknown = [name for name in kernels if name not in KERNELS]
    if form not in FORMS or unknown:
        raise ValueError(
            f"{unknown[0] if unknown else form!r} is not one of {', '.join(KERNELS if unknown else FORMS)}"
        )
    before = dict(_chosen)
    _chosen.update(dict.fromkeys(kernels or KERNELS, form))
    try:
        yield
    finally:
        _chosen.clear()
        _chosen.update(before)

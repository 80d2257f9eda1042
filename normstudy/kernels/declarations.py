"""Declarations of a layer class for code that differentiates it (see normstudy/curvature/model_copy.py)."""

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=type[nn.Module])


def with_differentiable_jvp(layer: Layer) -> Layer:
    """Declare that the forward-mode derivative (JVP) of this class's own code can be differentiated again.

    This class decorator adds the method has_differentiable_jvp. A subclass has to be decorated as well.
    """
    layer.has_differentiable_jvp = _yes  # type: ignore[attr-defined]
    return layer


class ElementaryForm:
    """Mixin for a layer whose kernel has no JVP that can be differentiated again.

    While `elementary` is True, the layer computes by its formula instead of the kernel.
    """

    elementary = False

    def set_derivative_form(self, forward_mode: bool) -> None:
        """Use the formula for a forward-mode derivative."""
        self.elementary = forward_mode


def _yes(self: nn.Module) -> bool:
    return True

"""What the class of a layer declares for those that differentiate it (see normstudy/curvature/model_copy.py)."""

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=type[nn.Module])


def with_differentiable_jvp(layer: Layer) -> Layer:
    """Class decorator: the forward-mode derivative (JVP) of this class's own code can be differentiated again.

    It adds the method has_differentiable_jvp to the class. A subclass has to declare it again.
    """
    layer.has_differentiable_jvp = _yes  # type: ignore[attr-defined]
    return layer


class ElementaryForm:
    """Mixin of a layer whose kernel has no JVP that can be differentiated again: it then computes by its formula.

    `elementary` says whether to do so now.
    """

    elementary = False

    def set_derivative_form(self, forward_mode: bool) -> None:
        """Compute by the formula for a forward-mode derivative."""
        self.elementary = forward_mode


def _yes(self: nn.Module) -> bool:
    return True

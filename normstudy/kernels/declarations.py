"""What the class of a layer declares for those that differentiate it (see normstudy/curvature/model_copy.py)."""

from typing import TypeVar

from torch import nn

Layer = TypeVar("Layer", bound=type[nn.Module])


def with_differentiable_jvp(layer: Layer) -> Layer:
    """Class decorator: the forward-mode derivative (JVP) of this class's own code can be differentiated again.

    It adds the method has_differentiable_jvp to the class. A subclass with other code has to declare it again.
    """
    layer.has_differentiable_jvp = _yes  # type: ignore[attr-defined]
    return layer


def _yes(self: nn.Module) -> bool:
    return True

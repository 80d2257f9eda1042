"""A copy of a model in the form that its derivatives need. The model itself is never changed.

The classes of a model declare through optional methods what the copy may assume about them:

- Network: `conv_norm_pairs() -> [(convolution, norm)]` names the pairs in which only the norm reads the output of the
  convolution.
- Norm: `fold_into(convolution) -> nn.Module | None` returns one module that computes the convolution followed by the
  norm in eval mode, or None if that is impossible.
- Layer with more than one form: `set_derivative_form(forward_mode: bool)` selects the form whose derivatives are
  correct: for a forward-mode derivative (JVP) that is differentiated again if forward_mode=True, and for two backward
  passes if forward_mode=False.
- Any class: `has_differentiable_jvp() -> bool` returns whether the JVP can be differentiated again in that form. The
  declaration covers only the code of the class itself. A subclass that does not repeat it counts as not
  differentiable.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

from .model_state import keeps_running_statistics

# PyTorch modules whose JVP is known to be correct when it is differentiated again. Others are not: layer norm, and
# batch norm in training mode, silently give wrong results, and softmax raises an error. See the tests.
DIFFERENTIABLE_JVP = (nn.Conv2d, nn.Linear, nn.ReLU, nn.Tanh, nn.GELU, nn.Identity, nn.Flatten, nn.Sequential)

Model = TypeVar("Model", bound=nn.Module)


def derivative_copy(model: Model, bn_mode: str = "eval", *, forward_mode: bool = True) -> Model:
    """Return the same function of the same parameters as `model`, in the form that its derivatives need.

    The copy shares every parameter tensor with `model` but has modules of its own. They are in eval mode, and norms
    are folded into the convolutions before them where possible.

    Args:
        model: The model. It is not changed.
        bn_mode: "eval" uses running statistics. With "train", layers that keep running statistics use those of the
            batch instead, and update copies of their buffers.
        forward_mode: True if forward-mode derivatives of the copy will be differentiated again, False if the copy
            will be differentiated by two backward passes.

    """
    copies: dict[int, nn.Module] = {}

    def copy(module: nn.Module) -> nn.Module:
        if id(module) in copies:
            return copies[id(module)]
        own = copies[id(module)] = module.__class__.__new__(module.__class__)
        own.__dict__ |= {
            name: value.copy() if name.startswith("_") and hasattr(value, "copy") else value
            for name, value in module.__dict__.items()
        }
        if (set_form := _optional_method(own, "set_derivative_form")) is not None:
            set_form(forward_mode)
        own.training = bn_mode == "train" and keeps_running_statistics(module)
        if own.training:
            own._buffers = {name: None if buffer is None else buffer.clone() for name, buffer in own._buffers.items()}
        for name, child in own._modules.items():
            own._modules[name] = None if child is None else copy(child)
        return own

    result = copy(model)
    pairs = _optional_method(model, "conv_norm_pairs")
    for conv, norm in () if pairs is None else pairs():
        _fold(result, conv, norm)
    return result  # type: ignore[return-value]  # copy keeps the class


def jvp_is_differentiable(model: nn.Module) -> bool:
    """Return whether the JVP of every module can be differentiated again, as far as the classes say.

    A module whose forward was replaced or compiled on the instance is not what its class says.
    """
    return all(
        (type(module) in DIFFERENTIABLE_JVP or _declares_jvp(module))
        and not vars(module).get("forward")
        and not vars(module).get("_compiled_call_impl")
        for module in model.modules()
    )


def _declares_jvp(module: nn.Module) -> bool:
    declared = vars(type(module)).get("has_differentiable_jvp")
    return declared is not None and bool(declared(module))


def _optional_method(module: nn.Module, name: str) -> Callable[..., Any] | None:
    return getattr(module, name, None)


def _fold(model: nn.Module, conv_name: str, norm_name: str) -> None:
    """Replace a convolution and its norm with one module if the norm allows it."""
    norm = model.get_submodule(norm_name)
    fold_into = _optional_method(norm, "fold_into")
    folded = None if norm.training or fold_into is None else fold_into(model.get_submodule(conv_name))
    if folded is not None:
        for name, module in ((conv_name, folded), (norm_name, nn.Identity())):
            parent, _, child = name.rpartition(".")
            model.get_submodule(parent)._modules[child] = module

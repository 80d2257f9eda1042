"""A copy of a model in the form that its derivatives need. The model itself is never changed.

What the copy may assume about a model is declared by optional methods of its classes:

- a network: `conv_norm_pairs() -> [(convolution, norm)]`, names of pairs in which the norm alone reads the output of
  the convolution;
- a norm: `fold_into(convolution) -> nn.Module | None`, one module that computes the norm, in eval mode, of the
  convolution; None if that is impossible;
- a layer with more than one form: `set_derivative_form(forward_mode: bool)`, which has it compute in the form whose
  derivatives are right: forward_mode=True for a forward-mode derivative (JVP) that is differentiated again,
  forward_mode=False for two backward passes;
- a class whose JVP can be differentiated again, in that form: `has_differentiable_jvp() -> bool`. A class says this of
  its own code: a subclass that says nothing is taken for one that cannot.
"""

from collections.abc import Callable
from typing import Any, TypeVar

from torch import nn

# Modules of PyTorch whose JVP is known to be right when it is differentiated again. Some are not: that of layer norm
# and of batch norm in training is wrong without a warning, and softmax refuses. See the tests.
DIFFERENTIABLE_JVP = (nn.Conv2d, nn.Linear, nn.ReLU, nn.Tanh, nn.GELU, nn.Identity, nn.Flatten, nn.Sequential)

Model = TypeVar("Model", bound=nn.Module)


def derivative_copy(model: Model, bn_mode: str = "eval", *, forward_mode: bool = True) -> Model:
    """The same function of the same parameters as `model`, in the form that its derivatives need.

    The copy shares every parameter tensor and has modules of its own. They are in eval mode, where running statistics
    stand for the batch's, and norms fold into the convolutions before them. With bn_mode="train", layers that keep
    running statistics use those of the batch, and update copies. forward_mode: see above.
    Raises ValueError for another bn_mode.
    """
    if bn_mode not in ("eval", "train"):
        raise ValueError(f"bn_mode {bn_mode!r} is neither eval nor train")
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


def keeps_running_statistics(module: nn.Module) -> bool:
    """Whether a layer itself holds buffers named running_…: its statistics are those of a batch in training."""
    return any(name.startswith("running_") for name, _ in module.named_buffers(recurse=False))


def jvp_is_differentiable(model: nn.Module) -> bool:
    """Whether the JVP of every module of a derivative copy can be differentiated again."""
    return all(type(module) in DIFFERENTIABLE_JVP or _declares_jvp(module) for module in model.modules())


def _declares_jvp(module: nn.Module) -> bool:
    declared = vars(type(module)).get("has_differentiable_jvp")
    return declared is not None and bool(declared(module))


def _optional_method(module: nn.Module, name: str) -> Callable[..., Any] | None:
    return getattr(module, name, None)


def _fold(model: nn.Module, conv_name: str, norm_name: str) -> None:
    """Replace a convolution and its norm by one module, if the norm allows it."""
    norm = model.get_submodule(norm_name)
    fold_into = _optional_method(norm, "fold_into")
    folded = None if norm.training or fold_into is None else fold_into(model.get_submodule(conv_name))
    if folded is not None:
        for name, module in ((conv_name, folded), (norm_name, nn.Identity())):
            parent, _, child = name.rpartition(".")
            model.get_submodule(parent)._modules[child] = module

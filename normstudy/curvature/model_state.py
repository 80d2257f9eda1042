"""A model as it is measured: without wrappers, in a chosen mode, and restored afterwards."""

import contextlib
import sys
from collections.abc import Iterator

import torch
from torch import nn

BN_MODES = ("eval", "train")


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside the wrappers of torch.compile, DataParallel and DistributedDataParallel."""
    while True:
        if "_orig_mod" in model._modules:
            model = model._modules["_orig_mod"]  # type: ignore[assignment]
        elif isinstance(model, nn.DataParallel | nn.parallel.DistributedDataParallel):
            model = model.module
        else:
            return model


def trainable_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return {name: parameter} of the trainable parameters, each once.

    Raises:
        ValueError: If the model cannot be measured as it is; the message says why and what to do.
    """
    for name, module in model.named_modules():
        if isinstance(module, torch.jit.ScriptModule):
            where = f"its module {name}" if name else "it"
            raise ValueError(
                f"{where} is compiled by torch.jit, which hides its mode and buffers; pass the Python module that it "
                "was made from"
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            raise ValueError(f"the embedding {name} has max_norm, so it changes its weight whenever it is used")
    parameters = {name: each for name, each in model.named_parameters() if each.requires_grad}
    if not parameters:
        raise ValueError("the model has no trainable parameters; set requires_grad for those to differentiate by")
    first_name, first = next(iter(parameters.items()))
    for name, each in parameters.items():
        if isinstance(each, nn.parameter.UninitializedParameter):
            raise ValueError(f"the parameter {name} has no shape yet; run the model once on a batch")
        if hasattr(each, "placements") or each.layout != torch.strided:
            raise ValueError(f"the parameter {name} is sharded or sparse; gather it into a plain tensor")
        if each.dtype not in (torch.float32, torch.float64) or each.device.type == "meta":
            raise ValueError(
                f"the parameter {name} is {each.dtype} on {each.device}; curvature needs float32 or float64 values, "
                "such as those of model.float()"
            )
        if (each.dtype, each.device) != (first.dtype, first.device):
            raise ValueError(
                f"the parameters {first_name} ({first.dtype} on {first.device}) and {name} ({each.dtype} on "
                f"{each.device}) differ in dtype or device; move the model to one"
            )
        if each._backward_hooks:
            raise ValueError(
                f"the parameter {name} has a gradient hook, so its gradient is not that of the loss; remove the hook"
            )
        if each.is_inference():
            raise ValueError(f"the parameter {name} was created in torch.inference_mode, so it has no derivatives")
    return parameters


def has_running_statistics(model: nn.Module) -> bool:
    """Return whether any module of a model keeps running statistics."""
    return any(map(keeps_running_statistics, model.modules()))


def keeps_running_statistics(module: nn.Module) -> bool:
    """Return whether a layer itself has buffers named running_…; in training mode it then uses batch statistics."""
    return any(name.startswith("running_") for name, _ in module.named_buffers(recurse=False))


@contextlib.contextmanager
def in_mode(model: nn.Module, bn_mode: str) -> Iterator[None]:
    """Put the model into eval mode inside a `with` block; with bn_mode="train", leave batch statistics in training.

    Buffers and tensors in attributes are replaced with copies inside the block, and all attributes are restored after
    it, so that whatever the model writes to them is discarded. Modes are set directly, because a model's own eval()
    may do more, and code compiled by torch.compile runs uncompiled.
    """
    modules = list(model.modules())
    before = [dict(vars(module)) for module in modules]
    copies: dict[int, torch.Tensor] = {}  # a buffer may be shared by several modules

    def copy(buffer: torch.Tensor | None) -> torch.Tensor | None:
        if buffer is None:
            return None
        if id(buffer) not in copies:
            copies[id(buffer)] = buffer.clone()
        return copies[id(buffer)]

    try:
        for module in modules:
            module.training = bn_mode == "train" and keeps_running_statistics(module)
            module._buffers = {name: copy(buffer) for name, buffer in module._buffers.items()}
            tensors = {name: value for name, value in vars(module).items() if isinstance(value, torch.Tensor)}
            vars(module).update({n: t if isinstance(t, nn.Parameter) else copy(t) for n, t in tensors.items()})
        with torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext():
            yield
    finally:
        for module, attributes in zip(modules, before, strict=True):
            vars(module).clear()
            vars(module).update(attributes)

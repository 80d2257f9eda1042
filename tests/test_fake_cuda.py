"""Tests of the CUDA code without a GPU, on tensors that have a device, a shape and a dtype but no values.

Fake tensors show devices that are mixed and what autocast on CUDA does to dtypes, in the forward pass. Backward passes
and probes run on meta tensors, which fail where the flow of the program depends on values.

Without a driver, these cannot run: kernels and their accuracy, backward passes on fake CUDA tensors (the autograd
engine asks the driver for its context), streams, events, pinned memory and CUDA graphs, cuDNN and TF32, fused
optimizers, and anything in `cuda` tests (pytest -m cuda), which benchmarks/gpu.sh runs on a machine with a GPU.
"""

import contextlib
from typing import Any

import pytest
import torch
from networks_helpers import shrink
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F

import config
from layer_defs import build_norm, build_token_norm
from models import build_model
from normstudy.datasets import to_network_input
from normstudy.training.probe_recorder import ProbeRecorder

NETWORKS: dict[str, dict[str, Any]] = {
    "vgg": {"arch": "vgg"},
    "resnet-56": {"arch": "resnet-56"},
    "vit": {"arch": "vit", "image_size": 16, "patch_size": 8},
}
every_norm = pytest.mark.parametrize("norm_type", config.NORM_TYPES)
every_network = pytest.mark.parametrize("arch", NETWORKS)


@contextlib.contextmanager
def fake_cuda(precision):
    """Create fake tensors on CUDA, in the autocast mode of `precision` (torch.autocast refuses without a driver)."""
    torch.set_autocast_enabled("cuda", precision == "bf16")
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    try:
        with FakeTensorMode(), torch.device("cuda"):
            yield
    finally:
        torch.set_autocast_enabled("cuda", False)


def has_fake_cuda():
    """Return whether this PyTorch computes on fake CUDA tensors without a driver, which 2.6 does not."""
    try:
        with fake_cuda("bf16"):
            F.batch_norm(F.conv2d(torch.ones(2, 3, 4, 4), torch.ones(5, 3, 3, 3)), None, None, training=True)
    except RuntimeError:
        return False
    return True


needs_fake_cuda = pytest.mark.skipif(not has_fake_cuda(), reason="fake CUDA tensors need a driver in this PyTorch")


@needs_fake_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_norm
def test_a_norm_on_cuda_keeps_dtype_device_and_memory_format(norm_type, dtype):
    with fake_cuda("bf16"):
        norm = torch.nn.Sequential(*build_norm(norm_type, 32, 8))
        x = torch.randn(4, 32, 6, 6, dtype=dtype).to(memory_format=torch.channels_last)
        for each in (norm.train(), norm.eval()):
            out = each(x)
            assert (out.dtype, out.device) == (dtype, x.device)
            assert out.is_contiguous(memory_format=torch.channels_last)


@needs_fake_cuda
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_norm
def test_a_norm_of_tokens_on_cuda_keeps_dtype_and_device(norm_type, dtype):
    with fake_cuda("bf16"):
        norm = build_token_norm(norm_type, 32, 8)
        x = torch.randn(4, 7, 32, dtype=dtype)
        out = norm(x)
        assert (out.dtype, out.device) == (dtype, x.device)


@needs_fake_cuda
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@every_norm
@every_network
def test_every_layer_of_a_network_on_cuda_computes_in_one_precision(monkeypatch, arch, norm_type, precision):
    """In bf16, no map of VGG and ResNet-56 is float32; a ViT's residual stream is, as its positions are."""
    shrink(monkeypatch)
    monkeypatch.setattr(torch.nn.init, "trunc_normal_", lambda tensor, **kwargs: tensor)  # it reads a value
    dtypes = {}
    with fake_cuda(precision):
        model = build_model(**NETWORKS[arch], norm_type=norm_type, num_classes=10).train()
        for name, module in model.named_modules():
            module.register_forward_hook(lambda module, inputs, out, name=name: dtypes.update({name: out.dtype}))
        images = to_network_input(torch.zeros(4, 3, 16, 16, dtype=torch.uint8))
        loss = F.cross_entropy(model(images).float(), torch.zeros(4, dtype=torch.int64))
    assert loss.device.type == "cuda"
    expected = torch.bfloat16 if precision == "bf16" else torch.float32
    is_residual = lambda name: arch == "vit" and "attention" not in name and "mlp" not in name  # noqa: E731
    assert {dtype for name, dtype in dtypes.items() if not is_residual(name)} == {expected}


@pytest.fixture(scope="module")
def meta_statistics():
    """Give the statistics of batch normalization a kernel for meta tensors, which PyTorch lacks."""
    library = torch.library.Library("aten", "IMPL", "Meta")
    shapes = lambda x, *running: (x.new_empty(x.shape[1]), x.new_empty(x.shape[1]))  # noqa: E731
    library.impl("batch_norm_update_stats", shapes)
    yield
    library._destroy()


@pytest.mark.usefixtures("meta_statistics")
@every_norm
@every_network
def test_a_step_with_probes_needs_no_values(monkeypatch, arch, norm_type):
    """A step that reads a value would wait for the device, and could not be captured in a CUDA graph."""
    shrink(monkeypatch)
    monkeypatch.setattr(torch, "autocast", lambda *args, **kwargs: contextlib.nullcontext())  # meta has none
    model = build_model(**NETWORKS[arch], norm_type=norm_type, num_classes=10).to("meta")
    model = model.to(memory_format=torch.channels_last).train()
    recorder = ProbeRecorder(model)
    with recorder.observe() as observation:
        images = to_network_input(torch.zeros(4, 3, 16, 16, dtype=torch.uint8, device="meta"))
        F.cross_entropy(model(images), torch.zeros(4, dtype=torch.int64, device="meta")).backward()
        torch.optim.SGD(model.parameters(), lr=0.1, foreach=False).step()
    assert observation.row is not None
    assert observation.row.device.type == "meta"
    assert observation.row.dtype == torch.float32

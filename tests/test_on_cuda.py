"""Tests that need a CUDA GPU. benchmarks/gpu.sh runs them."""

import copy

import pytest
import torch
from networks_helpers import shrink
from probes_helpers import recorded
from test_fake_cuda import NETWORKS
from torch.nn import functional as F

import config
import run_class_similarity
import run_hessian
from layer_defs import build_norm, build_token_norm
from models import build_model
from normstudy.cli import UsageError
from normstudy.curvature import hessian_matvec
from normstudy.kernels import as_current, channel_variance, free_memory, map_moments, training_arithmetic
from normstudy.storage import read_json
from normstudy.training import loop
from normstudy.training.cuda_graphs import CALLS_BEFORE_CAPTURE, Graphed, Graphs
from normstudy.training.epoch_losses import EpochLosses
from normstudy.training.probe_recorder import ProbeRecorder
from normstudy.training.training_step import forward_in_precision

pytestmark = pytest.mark.cuda
CUDA = torch.device("cuda:0")
TOLERANCE = {"fp32": 1e-4, "tf32": 2e-2, "bf16": 6e-2}
every_norm = pytest.mark.parametrize("norm_type", config.NORM_TYPES)
every_precision = pytest.mark.parametrize("precision", config.PRECISIONS)


def difference(found, expected):
    """Return the relative difference of two tensors, in the L2 norm."""
    return float((found.double().cpu() - expected.double().cpu()).norm() / expected.double().norm().clamp_min(1e-30))


@every_precision
@every_norm
@pytest.mark.parametrize("is_tokens", [False, True])
def test_a_norm_keeps_dtypes_and_has_the_values_of_the_cpu(norm_type, precision, is_tokens):
    torch.manual_seed(0)
    dtype = torch.bfloat16 if precision == "bf16" else torch.float32
    if is_tokens:
        norm, x = build_token_norm(norm_type, 32, 8), torch.randn(8, 9, 32)
    else:
        norm = torch.nn.Sequential(*build_norm(norm_type, 32, 8))
        x = torch.randn(8, 32, 6, 6).to(memory_format=torch.channels_last)
    x = (2 * x + 0.5).to(dtype)
    weights = torch.randn(x.shape).to(dtype)
    results = []
    for device, kind, layer in (("cpu", torch.float64, copy.deepcopy(norm).double()), (CUDA, dtype, norm.to(CUDA))):
        inputs = x.to(device, kind).requires_grad_()
        with training_arithmetic(CUDA, precision, False), torch.autocast("cuda", torch.bfloat16, precision == "bf16"):
            out = layer.train()(inputs)
        assert out.dtype == kind
        (out * weights.to(device, kind)).sum().backward()
        results.append([out.detach(), inputs.grad, *(parameter.grad for parameter in layer.parameters())])
    for expected, found in zip(*results, strict=True):
        assert found.device == CUDA
        scalar = 3 if found.dim() == 0 else 1  # terms of both signs are summed, and cancel
        assert difference(found, expected) < scalar * TOLERANCE[precision]


@every_precision
@pytest.mark.parametrize("norm_type", ["BatchNorm", "GroupNorm", "EvoNormBO"])
@pytest.mark.parametrize("arch", NETWORKS)
def test_losses_and_gradients_of_networks_are_those_of_the_cpu(monkeypatch, arch, norm_type, precision):
    shrink(monkeypatch)
    torch.manual_seed(0)
    settings = config.parse_args(["--dataset=Synthetic", f"--precision={precision}"])
    model = build_model(**NETWORKS[arch], norm_type=norm_type, num_classes=10).train()
    images, labels = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    results = []
    for device, dtype in (("cpu", torch.float64), (CUDA, torch.float32)):
        on_device = copy.deepcopy(model).to(device, dtype).to(memory_format=torch.channels_last)
        inputs = images.to(device, dtype)
        with training_arithmetic(CUDA, precision, False):
            logits = on_device(inputs) if device == "cpu" else forward_in_precision(settings, on_device, inputs)
            loss = F.cross_entropy(logits, labels.to(device))
            gradients = torch.autograd.grad(loss, list(on_device.parameters()))
        results.append((loss.detach(), torch.cat([gradient.flatten().cpu().double() for gradient in gradients])))
    assert difference(results[1][0], results[0][0]) < {"fp32": 1e-5, "tf32": 1e-2, "bf16": 3e-2}[precision]
    assert difference(results[1][1], results[0][1]) < {"fp32": 1e-3, "tf32": 0.2, "bf16": 0.5}[precision]


def test_fp32_is_strict_and_tf32_is_not():
    torch.manual_seed(0)
    x, weight = torch.randn(32, 64, 8, 8, device=CUDA), torch.randn(64, 64, 3, 3, device=CUDA)
    exact = F.conv2d(x.double(), weight.double(), padding=1), x.flatten(1).double() @ x.flatten(1).double().T
    errors = {}
    for precision in ("fp32", "tf32"):
        with training_arithmetic(CUDA, precision, is_deterministic=False):
            found = F.conv2d(x, weight, padding=1), x.flatten(1) @ x.flatten(1).T
        errors[precision] = [difference(*pair) for pair in zip(found, exact, strict=True)]
    assert max(errors["fp32"]) < 1e-5
    if torch.cuda.get_device_capability() >= (8, 0):
        assert min(errors["tf32"]) > 1e-5


@every_precision
@pytest.mark.parametrize("arch", NETWORKS)
def test_probes_are_those_of_the_cpu(monkeypatch, arch, precision):
    shrink(monkeypatch)
    torch.manual_seed(0)
    settings = config.parse_args(["--dataset=Synthetic", f"--precision={precision}"])
    model = build_model(**NETWORKS[arch], norm_type="BatchNorm", num_classes=10).train()
    images, labels = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    dumps = []
    for device in ("cpu", CUDA):
        on_device = copy.deepcopy(model).to(device)
        recorder, optimizer = ProbeRecorder(on_device), torch.optim.SGD(on_device.parameters(), lr=0.1)
        with training_arithmetic(torch.device(device), "fp32" if device == "cpu" else precision, False):  # noqa: SIM117
            with recorded(recorder, 0):
                logits = forward_in_precision(settings, on_device, images.to(device))
                F.cross_entropy(logits, labels.to(device)).backward()
                optimizer.step()
        dumps.append(recorder.dump())
    for key in ("std", "activation_norm", "activation_variance", "stable_rank", "weight_norm"):
        torch.testing.assert_close(dumps[1][key], dumps[0][key], rtol=5 * TOLERANCE[precision], atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_of_a_large_map_are_accurate(dtype):
    torch.manual_seed(0)
    x = (torch.randn(256, 64, 32, 32, device=CUDA) * 3 + 5).to(dtype).to(memory_format=torch.channels_last)
    assert difference(channel_variance(x), x.double().var((0, 2, 3), correction=0)) < 1e-3
    _, variance, mean = map_moments(x)
    assert difference(variance, x.double().var((2, 3), correction=0)) < 1e-5
    assert difference(mean, x.double().mean((2, 3))) < 1e-5


def test_a_capture_that_fails_leaves_the_stream_and_goes_on(capsys):
    graphs, x = Graphs(CUDA), torch.ones(3, device=CUDA)
    before = torch.cuda.current_stream(CUDA)
    function = Graphed(lambda: x * x.sum().item(), graphs)  # .item() waits, which no capture allows
    for _ in range(CALLS_BEFORE_CAPTURE + 3):
        assert function().tolist() == [3, 3, 3]
    assert graphs.has_failed
    assert torch.cuda.current_stream(CUDA) == before
    assert "could not be captured" in capsys.readouterr().err


def test_an_error_in_a_capture_that_is_not_about_it_is_raised():
    calls = []

    def fails_in_capture():
        calls.append(0)
        if len(calls) > CALLS_BEFORE_CAPTURE:
            raise RuntimeError("shapes do not match")
        return torch.ones(2, device=CUDA)

    function, before = Graphed(fails_in_capture, Graphs(CUDA)), torch.cuda.current_stream(CUDA)
    for _ in range(CALLS_BEFORE_CAPTURE):
        function()
    with pytest.raises(RuntimeError, match="shapes do not match"):
        function()
    assert torch.cuda.current_stream(CUDA) == before


def test_memory_that_pytorch_keeps_counts_as_free():
    torch.cuda.empty_cache()
    before = free_memory(CUDA)
    block = torch.empty(2**29, dtype=torch.uint8, device=CUDA)
    assert free_memory(CUDA) < before - 2**28
    del block
    assert free_memory(CUDA) > before - 2**25


def test_losses_are_read_from_the_device_that_computes_them():
    device = torch.device("cuda", torch.cuda.device_count() - 1)  # on a machine with several, not the current one
    losses = EpochLosses(100, device)
    losses.looked_at -= 10
    for _ in range(100):
        losses.record(torch.full((), 3.0, device=device), torch.tensor(5, device=device), 10)
    seen = None
    while seen is None:
        seen = losses.look()
    assert (seen.loss, seen.accuracy, seen.bad_step) == (3.0, 0.5, None)
    with as_current(device):
        assert torch.cuda.current_device() == device.index


@pytest.mark.usefixtures("narrow")
@pytest.mark.parametrize("flags", [[], ["--optimizer=adamw"], ["--augment=crop"], ["--clip_grad=1", "--nesterov"]])
def test_a_run_is_trained_resumed_and_measured_on_a_named_gpu(train, tmp_path, monkeypatch, flags):
    flags = ["--device=cuda:0", "--deterministic", *flags]
    whole = train(tmp_path / "whole", *flags)
    rows = loop.Training.write_metrics
    with monkeypatch.context() as patched:

        def interrupted(training):
            if training.progress["epoch"] == 3:
                raise KeyboardInterrupt
            return rows(training)

        patched.setattr(loop.Training, "write_metrics", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "parts", *flags)
    parts = train(tmp_path / "parts", *flags)
    states = [torch.load(run.checkpoint(6), weights_only=True) for run in (whole, parts)]
    assert all(tensor.device.type == "cpu" for tensor in states[0].values())
    for name, tensor in states[0].items():
        torch.testing.assert_close(states[1][name], tensor, rtol=1e-5, atol=1e-6)
    assert run_class_similarity.main([str(whole.path), "--device=cuda:0"]) == 0
    small = [str(whole.path), "--samples=20", "--lanczos_steps=5", "--trace_probes=2", "--image_blocks=1"]
    assert run_hessian.main([*small, "--device=cuda:0"]) == 0
    on_gpu = read_json(whole.measurement("hessian"))
    assert run_hessian.main([*small, "--device=cpu", "--overwrite=True"]) == 0
    on_cpu = read_json(whole.measurement("hessian"))
    for key in ("trace", "max_eigen"):
        assert on_gpu[key] == pytest.approx(on_cpu[key], rel=1e-3)
    again = train(tmp_path / "again", *flags)  # the measurements left PyTorch's settings as they were
    assert read_json(again.summary)["test_loss"] == read_json(whole.summary)["test_loss"]


@pytest.mark.parametrize("curvature", ["hessian", "ggn"])
@pytest.mark.parametrize("arch", NETWORKS)
def test_a_product_is_that_of_the_cpu_in_float64(monkeypatch, arch, curvature):
    shrink(monkeypatch)
    torch.manual_seed(0)
    model = build_model(**NETWORKS[arch], norm_type="BatchNorm", num_classes=10).eval()
    images, labels = torch.randn(16, 3, 16, 16), torch.randint(10, (16,))
    products = []
    vector = torch.randn(sum(parameter.numel() for parameter in model.parameters()))
    for device, dtype in (("cpu", torch.float64), (CUDA, torch.float32)):
        on_device = copy.deepcopy(model).to(device, dtype)
        batches = [(images.to(device, dtype), labels.to(device))]
        matvec, _ = hessian_matvec(on_device, batches, curvature=curvature, keep_graphs=curvature == "hessian")
        products.append(matvec(vector.to(device, dtype)))
    assert difference(products[1], products[0]) < 1e-3


def test_a_second_gpu_that_does_not_exist_is_an_error(train, tmp_path):
    with pytest.raises(UsageError, match="is not available on this machine"):
        train(tmp_path, f"--device=cuda:{torch.cuda.device_count()}")

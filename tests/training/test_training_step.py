"""The training step against a plain loop and, on CUDA, the graph against the step."""

import math

import pytest
import torch
from datasets_helpers import training_batches
from torch.nn import functional as F

import config
from models import build_from_config
from normstudy.datasets import training_order
from normstudy.datasets.splits import Split
from normstudy.kernels import training_arithmetic
from normstudy.training import training_step
from normstudy.training.cuda_graphs import Graphs
from normstudy.training.epoch_losses import EpochLosses
from normstudy.training.optimizer import Optimizer
from normstudy.training.probe_recorder import ProbeRecorder

FLAGS = ["--dataset=Synthetic", "--batch_size=16", "--seed=3"]
NETWORKS = {
    "vgg": ["--arch=vgg", "--norm_type=BatchNorm"],
    "resnet-56": ["--arch=resnet-56", "--norm_type=GroupNorm"],
    "vit": ["--arch=vit", "--norm_type=LayerNorm", "--image_size=16", "--patch_size=8"],
}
CUDA = torch.device("cuda")


def parts(flags, device="cpu", has_probes=False):
    """Return (settings, model, optimizer, split, recorder) of a small run."""
    settings = config.parse_args([*FLAGS, *flags])
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (70, 3, 16, 16), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.randint(0, 10, (70,), generator=generator)).to(device)
    torch.manual_seed(settings.seed)
    model = build_from_config(settings, 10).to(torch.device(device)).to(memory_format=torch.channels_last).train()
    optimizer = Optimizer(settings, model)
    return settings, model, optimizer, split, ProbeRecorder(model) if has_probes else None


def run_steps(step, epochs=2, rate=0.02):
    """Return (loss, correct) of every step; the last batch of an epoch is smaller."""
    results, size = [], step.config.batch_size
    count = math.ceil(len(step.split) / size)
    for epoch in range(epochs):
        order, flips = training_order(step.split, step.config.seed, epoch)
        for index in range(count):
            batch = slice(index * size, (index + 1) * size)
            loss, correct = step(order[batch], flips[batch], rate / (1 + index), epoch * count + index)
            results.append(torch.stack([loss, correct.float()]).clone())
    return torch.stack(results)


@pytest.mark.parametrize("arch", NETWORKS)
def test_a_step_is_that_of_the_plain_loop(arch):
    settings, model, optimizer, split, recorder = parts(NETWORKS[arch], has_probes=True)
    found = run_steps(training_step.build_step(settings, model, optimizer, split, recorder), epochs=1)
    settings, model, _, split, _ = parts(NETWORKS[arch])
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0, momentum=0.9, weight_decay=1e-4)
    for index, (x, y) in enumerate(training_batches(split, 16, settings.seed, 0, settings.image_size)):
        optimizer.param_groups[0]["lr"] = 0.02 / (1 + index)
        logits = model(x)
        loss = F.cross_entropy(logits, y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        expected = torch.stack([loss.detach(), (logits.argmax(1) == y).sum().float()])
        torch.testing.assert_close(found[index], expected, rtol=1e-4, atol=1e-5)
    assert index == len(found) - 1


def test_a_learning_rate_in_a_tensor_is_the_number_in_it():
    """A graph depends on this: the rate changes between replays without a new capture."""
    results = []
    for kind in (float, torch.tensor):
        settings, model, optimizer, split, _ = parts(NETWORKS["vgg"])
        step = training_step.Step(settings, model, optimizer, split)
        order, flips = training_order(split, 0, 0)
        for index in range(3):
            step(order[:16], flips[:16], kind(0.02 * (index + 1)), index)
        results.append(torch.cat([parameter.detach().flatten() for parameter in model.parameters()]))
    torch.testing.assert_close(*results, rtol=1e-6, atol=1e-7)


def test_probes_are_kept_at_every_kth_iteration():
    settings, model, optimizer, split, recorder = parts([*NETWORKS["vgg"], "--probe_every=2"], has_probes=True)
    run_steps(training_step.build_step(settings, model, optimizer, split, recorder), epochs=1)
    assert recorder.dump()["iteration"].tolist() == [0, 2, 4]


@pytest.mark.cuda
@pytest.mark.parametrize("arch", NETWORKS)
@pytest.mark.parametrize("precision", config.PRECISIONS)
def test_a_graph_gives_the_losses_and_probes_of_the_step(arch, precision):
    results, dumps = [], []
    for graphs in (None, Graphs(CUDA)):
        flags = [*NETWORKS[arch], f"--precision={precision}", "--probe_every=2"]
        settings, model, optimizer, split, recorder = parts(flags, "cuda", has_probes=True)
        with training_arithmetic(CUDA, precision, is_deterministic=False):  # cudnn.benchmark is on
            step = training_step.build_step(settings, model, optimizer, split, recorder, graphs=graphs)
            results.append(run_steps(step, epochs=4, rate=1e-4))
        dumps.append(recorder.dump())
    assert isinstance(step, training_step.GraphedStep)
    assert all(each.captured is not None for each in step.steps.values())
    torch.testing.assert_close(results[0][:, 0], results[1][:, 0], rtol=1e-2, atol=0)
    assert (
        results[0][:, 1] - results[1][:, 1]
    ).abs().max() <= 2  # cuDNN may choose other kernels, which round otherwise
    assert torch.equal(dumps[0]["iteration"], dumps[1]["iteration"])
    torch.testing.assert_close(dumps[0]["activation_norm"], dumps[1]["activation_norm"], rtol=1e-2, atol=1e-3)


@pytest.mark.cuda
def test_a_deterministic_graph_gives_the_losses_of_the_step_to_the_bit():
    results = []
    for graphs in (None, Graphs(CUDA)):
        settings, model, optimizer, split, recorder = parts(NETWORKS["vgg"], "cuda", has_probes=True)
        with training_arithmetic(CUDA, "fp32", is_deterministic=True):
            step = training_step.build_step(settings, model, optimizer, split, recorder, graphs=graphs)
            results.append(run_steps(step, epochs=4))
    assert torch.equal(*results)


@pytest.mark.cuda
@pytest.mark.parametrize("is_graphed", [False, True])
def test_no_step_waits_for_the_device(is_graphed):
    settings, model, optimizer, split, recorder = parts(NETWORKS["vgg"], "cuda", has_probes=True)
    graphs = Graphs(CUDA) if is_graphed else None
    step = training_step.build_step(settings, model, optimizer, split, recorder, graphs=graphs)
    run_steps(step, epochs=2)
    losses = EpochLosses(10, CUDA)
    order, flips = training_order(split, 0, 0)
    torch.cuda.set_sync_debug_mode("error")
    try:
        for index in range(10):
            loss, correct = step(order[:16], flips[:16], 0.01, index)
            losses.record(loss, correct, 16)
            losses.look()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert losses.result(16)[2] is None


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("size", [1e20, -1e20, 3e38])
def test_a_finite_gradient_of_any_size_is_no_divergence(size, device):
    loss = torch.tensor(0.1, device=device)
    gradients = [torch.full((30, 40), size, device=device), torch.full((5,), size, device=device)]
    assert torch.equal(training_step.loss_or_nan(loss, gradients), loss)


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
@pytest.mark.parametrize("bad", [[math.nan], [math.inf], [-math.inf], [math.inf, -math.inf]])
def test_a_loss_is_kept_to_the_bit_unless_a_gradient_is_not_finite(bad, device):
    loss = torch.tensor(0.1, device=device)
    gradients = [torch.full((3, 4), 1e6, device=device), torch.zeros(5, device=device), torch.randn(7, device=device)]
    assert torch.equal(training_step.loss_or_nan(loss, gradients), loss)
    gradients[0].view(-1)[: len(bad)] = torch.tensor(bad)
    assert training_step.loss_or_nan(loss, gradients).isnan()

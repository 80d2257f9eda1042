"""Compare steps on shared batches with steps of one process. test_processes.py starts this file as two processes."""

import sys
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parents[2]))

import config
import layer_defs
from config import BATCH_NORMS, NORM_TYPES, parse_args
from models import build_model
from normstudy.cli.commands import end_process
from normstudy.datasets.splits import Split
from normstudy.training import optimizer, processes, training_step
from normstudy.training.probe_recorder import ProbeRecorder

BATCHES = (8, 7, 1)  # the last two cannot be halved; a batch of one leaves one process without a sample


def train(world, arch, norm_type, is_synchronized=True):
    """Take a step on each of BATCHES in float64; return ([(loss, correct)], state_dict, probe rows)."""
    torch.manual_seed(0)
    sizes: dict[str, Any] = {"image_size": 8, "patch_size": 4} if arch == "vit" else {}
    model = build_model(arch, norm_type=norm_type, num_classes=3, **sizes).double()
    generator = torch.Generator().manual_seed(1)
    images = torch.randint(0, 256, (16, 3, 8, 8), dtype=torch.uint8, generator=generator)
    split = Split(images, torch.arange(16) % 3)
    if world.size > 1 and is_synchronized:
        layer_defs.synchronize(model, world.mean)
    recorder = ProbeRecorder(model, world)
    settings = parse_args([])
    step = DoubleStep(settings, model, optimizer.Optimizer(settings, model), split, recorder, world)
    model.train()
    found = []
    for index, size in enumerate(BATCHES):
        loss, correct = step(torch.arange(16)[-size:], torch.arange(size) % 2 == 0, 0.01, index)
        found.append((loss.item(), int(correct)))
    recorder.close()
    return found, model.state_dict(), torch.stack(recorder.rows)


class DoubleStep(training_step.Step):
    def __init__(self, config, model, optimizer, split, recorder, world):
        super().__init__(config, model, optimizer, split, recorder, world)
        self.network.register_forward_pre_hook(lambda module, inputs: (inputs[0].double(),))


def is_close(ours, theirs):
    return torch.allclose(ours, theirs, rtol=1e-4, atol=1e-6, equal_nan=True)


def check(world, arch, norm_type):
    """Return a list of the results that differ from those of one process."""
    losses, state, rows = train(world, arch, norm_type)
    expected_losses, expected_state, expected_rows = train(processes.World(), arch, norm_type)
    wrong = [name for name in state if not is_close(state[name], expected_state[name])]
    wrong += [
        f"probes of step {index}" for index in range(len(rows)) if not is_close(rows[index], expected_rows[index])
    ]
    for (loss, correct), (expected_loss, expected_correct) in zip(losses, expected_losses, strict=True):
        if abs(loss - expected_loss) > 1e-5 * expected_loss or correct != expected_correct:
            wrong.append(f"loss {loss}, {correct} correct; one process: {expected_loss}, {expected_correct}")
    return wrong


def main():
    torch.set_num_threads(1)
    world, _ = processes.join_processes("cpu")
    failures = {}
    for arch, norm_type in [
        *(("vgg", name) for name in NORM_TYPES),
        ("resnet-56", "VarianceNorm"),
        ("vit", "BatchNorm"),
    ]:
        failures[arch, norm_type] = check(world, arch, norm_type)
    for norm_type in BATCH_NORMS:  # statistics of each share give other losses
        losses, *_ = train(world, "vgg", norm_type, is_synchronized=False)
        alone, *_ = train(processes.World(), "vgg", norm_type)
        failures["unsynchronized", norm_type] = [] if losses[1] != alone[1] else ["the same losses as one process"]
    world.leave()
    failures = {name: wrong for name, wrong in failures.items() if wrong}
    if failures:
        print(f"process {world.rank}: {failures}", file=sys.stderr)
    end_process(1 if failures else 0)


if __name__ == "__main__":
    config.VGG_LAYERS["cfg_10"] = (32, (32, 2), 64)
    main()

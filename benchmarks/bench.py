"""Measure the speed of training, probes, input and measurements on this machine.

    python benchmarks/bench.py                  all parts (about 40 minutes on two cores)
    python benchmarks/bench.py norms probes     some parts

Prints one table and writes benchmarks/results/<machine>.json. The contenders take turns in one process, and the result
is the median of their ratios. README.md in this folder explains each part.
"""

import argparse
import itertools
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

import config
from benchmarks.common import (
    DEVICE,
    ROOT,
    Functions,
    Table,
    alternated,
    compared,
    machine,
    machine_name,
    status,
    stolen_and_all,
)
from benchmarks.start_up import start_up
from models import build_from_config
from normstudy.datasets import Split, evaluation_batches, training_batch, training_order
from normstudy.kernels import is_bf16_emulated, keep_freed_memory
from normstudy.storage import read_json, write_json
from normstudy.training.cuda_graphs import CALLS_BEFORE_CAPTURE, Graphs
from normstudy.training.optimizer import Optimizer
from normstudy.training.probe_recorder import ProbeRecorder
from normstudy.training.training_step import build_step
from transformer_model import Attention

WARM_UP = 1 + CALLS_BEFORE_CAPTURE  # by then the heap has also grown, so no page is touched for the first time
PRECISIONS = ("fp32",) if is_bf16_emulated(DEVICE) else ("fp32", "bf16")  # not if emulated
TARGETS = {  # maximum ratio of a step to Plain's
    **dict.fromkeys(config.NORM_TYPES, 1.35),
    **dict.fromkeys(("FilterResponseNorm", "RMSNorm", "DynamicTanh"), 1.6),
    **dict.fromkeys(("EvoNormSO", "EvoNormBO"), 2.2),
}
ARCHS = {"vgg": ["--arch=vgg"], "resnet-56": ["--arch=resnet-56"], "vit": ["--arch=vit", "--norm_type=LayerNorm"]}
SMALL_VIT = ["--arch=vit", "--norm_type=LayerNorm", "--image_size=32", "--patch_size=4"]

Report = dict[str, Table]  # {case: its table}


def random_split(samples: int = 512) -> Split:
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (samples, 3, 32, 32), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (samples,), generator=generator)).to(DEVICE)


class TrainingStep:
    """A training step as main.py takes it, including the data, on 512 random images. Each call takes the next step."""

    def __init__(self, flags: Sequence[str], has_probes: bool = False) -> None:
        self.config = config.parse_args(["--dataset=Synthetic", "--init_lr=0.1", *flags])
        torch.manual_seed(0)
        self.model = build_from_config(self.config, 10).to(DEVICE).to(memory_format=torch.channels_last).train()
        self.split = random_split()
        self.order, self.flips = training_order(self.split, 0, 1)
        optimizer = Optimizer(self.config, self.model)
        recorder = ProbeRecorder(self.model) if has_probes else None
        graphs = Graphs(DEVICE) if DEVICE.type == "cuda" and self.config.cuda_graph else None
        self.step = build_step(self.config, self.model, optimizer, self.split, recorder, graphs=graphs)
        self.iterations = itertools.count()

    def __call__(self) -> None:
        iteration, batch_size = next(self.iterations), self.config.batch_size
        start = iteration * batch_size % (len(self.split) - batch_size + 1)
        batch = slice(start, start + batch_size)
        self.step(self.order[batch], self.flips[batch], 1e-3, iteration)


def norms(repeats: int) -> Report:
    """Compare a VGG cfg_10 step of every norm with Plain's, at batch 256 and with probes off."""
    report: Report = {}
    for precision in PRECISIONS:
        functions = {
            name: TrainingStep([f"--norm_type={name}", f"--precision={precision}"]) for name in config.NORM_TYPES
        }
        report[precision] = compared(alternated(functions, repeats, warm_up=WARM_UP), "Plain")
    for name, row in report["fp32"].items():
        row["target"] = None if name == "Plain" else TARGETS[name]
    return report


def precision(repeats: int) -> Report:
    """Compare float32 with bf16 steps of each network; bf16 should be at least 1.6 times as fast for VGG."""
    report: Report = {}
    if "bf16" not in PRECISIONS:
        return report
    for arch, flags in (ARCHS | {"vit": SMALL_VIT}).items():
        functions = {name: TrainingStep([*flags, f"--precision={name}"]) for name in ("bf16", "fp32")}
        report[arch] = compared(alternated(functions, repeats, warm_up=WARM_UP), "bf16")
    return report


def probes(repeats: int) -> Report:
    """Compare steps with probes at every iteration and steps without, at batch 256."""
    report: Report = {}
    for arch, target in (("vgg", 1.25), ("resnet-56", 1.35)):
        for name in PRECISIONS:
            flags = [*ARCHS[arch], f"--precision={name}"]
            functions = {"off": TrainingStep(flags), "on": TrainingStep(flags, has_probes=True)}
            table = compared(alternated(functions, repeats, warm_up=WARM_UP), "off")
            report[f"{arch} {name}"] = table
            table["on"]["target"] = target
    return report


def input_pipeline(repeats: int) -> Report:
    """Compare the time to make a batch with the step that uses it."""
    report: Report = {}
    for arch, batch_size in (("vgg", 256), ("vit", 32)):
        flags = [*ARCHS[arch], f"--batch_size={batch_size}", f"--precision={PRECISIONS[-1]}"]
        step = TrainingStep(flags)
        batch = step.order[:batch_size], step.flips[:batch_size], step.config.image_size
        functions: Functions = {"step": step, "input": partial(training_batch, step.split, *batch)}
        table = compared(alternated(functions, repeats, warm_up=WARM_UP), "step")
        table["input"]["target"] = 0.03
        report[f"{arch} at batch {batch_size}, {PRECISIONS[-1]}"] = table
    return report


def products_of(model: nn.Module, images: torch.Tensor) -> Callable[[], None]:
    """Return a function that runs each convolution, linear layer and attention product forward and backward."""
    products: list[Callable[[], None]] = []

    def keep(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        shape = inputs[0].shape
        if isinstance(module, Attention):
            products.append(attention_product(module, *shape))
        elif isinstance(module, nn.Conv2d | nn.Linear):
            products.append(layer_product(module, shape))

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear | Attention)]
    handles = [module.register_forward_hook(keep) for module in layers]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()

    def every_product() -> None:
        for product in products:
            product()

    return every_product


def attention_product(attention: Attention, samples: int, tokens: int, width: int) -> Callable[[], None]:
    heads = torch.randn(samples * attention.num_heads, tokens, width // attention.num_heads, device=DEVICE)
    left, right = heads.clone().requires_grad_(), heads.clone().requires_grad_()

    def product() -> None:
        logits = left @ right.transpose(1, 2)
        torch.autograd.grad(logits, (left, right), logits.detach())
        mixed = logits.detach().requires_grad_()
        out = mixed @ right
        torch.autograd.grad(out, (mixed, right), out.detach())

    return product


def layer_product(layer: nn.Conv2d | nn.Linear, shape: torch.Size) -> Callable[[], None]:
    x = torch.randn(shape, device=DEVICE)
    x = x.to(memory_format=torch.channels_last) if len(shape) == 4 else x
    reads_images = shape[1] == 3
    x.requires_grad_(not reads_images)

    def product() -> None:
        out = layer(x)
        torch.autograd.grad(out, [layer.weight] if reads_images else [x, layer.weight], out.detach())

    return product


def utilization(repeats: int) -> Report:
    """Compare a step's convolutions and matrix products alone with the whole step (target: at least 0.8)."""
    report: Report = {}
    for arch, flags, batch_size in (("resnet-56", ARCHS["resnet-56"], 256), ("vit", ARCHS["vit"], 32)):
        step = TrainingStep([*flags, f"--batch_size={batch_size}"])
        images, _ = next(evaluation_batches(step.split, step.config.image_size, batch_size))
        functions: Functions = {"products": products_of(step.model, images), "step": step}
        table = compared(alternated(functions, repeats, warm_up=WARM_UP), "step")
        table["products"]["target"] = 0.8
        report[f"{arch} at batch {batch_size}"] = table
    return report


def floor(repeats: int) -> Report:
    """Compare a step with BatchNorm with its convolutions alone (PyTorch's, forward and backward); at most 1.2."""
    report: Report = {}
    for arch, name in itertools.product(("vgg", "resnet-56"), PRECISIONS):
        step = TrainingStep([*ARCHS[arch], f"--precision={name}"])
        images, _ = next(evaluation_batches(step.split))
        dtype = torch.bfloat16 if name == "bf16" else torch.float32
        functions: Functions = {"convolutions": convolutions_of(step.model, images, dtype), "step": step}
        table = compared(alternated(functions, repeats, warm_up=WARM_UP), "convolutions")
        table["step"]["target"] = 1.2
        report[f"{arch} {name}"] = table
    return report


def convolutions_of(model: nn.Module, images: torch.Tensor, dtype: torch.dtype) -> Callable[[], None]:
    """Return a function that computes F.conv2d and its gradients for every convolution of a network."""
    inputs: list[tuple[torch.Tensor, torch.Tensor, tuple[int, ...]]] = []

    def keep(module: nn.Module, given: tuple[torch.Tensor, ...], output: torch.Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        x = torch.randn_like(given[0], dtype=dtype).requires_grad_(given[0].shape[1] != 3)
        inputs.append((x, module.weight.detach().to(dtype).requires_grad_(), module.stride))

    handles = [each.register_forward_hook(keep) for each in model.modules() if isinstance(each, nn.Conv2d)]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()

    def every_convolution() -> None:
        for x, weight, stride in inputs:
            out = F.conv2d(x, weight, None, stride, (1, 1))
            torch.autograd.grad(out, [x, weight] if x.requires_grad else [weight], out.detach())

    return every_convolution


def hessian(repeats: int) -> Report:
    """Compare our Hessian product with PyHessian's and curvlinops', on 128 images of a fresh network.

    PyHessian's should take at least 1.3 times as long as ours, and that of curvlinops 1.5 times.
    """
    from benchmarks.products import CONTENDERS, product_of

    report: Report = {}
    for arch, flags in (ARCHS | {"vit": SMALL_VIT}).items():
        settings = config.parse_args(flags)
        model = build_from_config(settings, 10).eval().to(DEVICE).to(memory_format=torch.channels_last)
        batches = list(evaluation_batches(random_split(128), settings.image_size, 128))
        vector = torch.randn(sum(p.numel() for p in model.parameters()), device=DEVICE)
        with sdpa_kernel(SDPBackend.MATH):  # the fused kernels have no second derivative, which the peers need
            functions = {name: partial(product_of(name, model, batches), vector) for name in CONTENDERS}
            report[arch] = compared(alternated(functions, repeats), "ours, graphs kept")
        report[arch]["pyhessian"]["target"], report[arch]["curvlinops"]["target"] = 1.3, 1.5
    return report


def memory(repeats: int) -> Report:
    """Compare the peak memory of training with probes and without, each in its own process."""
    report: Report = {}
    for arch in ("vgg", "resnet-56"):
        peaks = {}
        for probes in ("off", "on"):
            command = [sys.executable, __file__, "--alone", arch, probes]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[probes] = int(done.stdout.split()[-1])
        report[arch] = {
            "off": {"bytes": peaks["off"]},
            "on": {"bytes": peaks["on"], "median_ratio": peaks["on"] / peaks["off"], "target": 1.15},
        }
    return report


def memory_alone(arch: str, probes: str) -> int:
    """Return the peak bytes of a process over three steps of the network, with probes "on" or "off"."""
    step = TrainingStep(ARCHS[arch], has_probes=probes == "on")
    for _ in range(3):
        step()
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else status("VmHWM")


PARTS: dict[str, Callable[[int], Report]] = {
    "norms": norms,
    "precision": precision,
    "probes": probes,
    "input": input_pipeline,
    "floor": floor,
    "utilization": utilization,
    "memory": memory,
    "start_up": start_up,
    "hessian": hessian,
}


def print_part(name: str, part: Report) -> None:
    """Print a part of the report as lines of one table."""
    for case, rows in part.items():
        for contender, row in rows.items():
            seconds, ratio = row.get("median_seconds"), row.get("median_ratio")
            target = row.get("target", row.get("target_seconds"))
            cells = (
                f"{name:12}{case:26}{contender:30}",
                f"{row['bytes'] / 1e9:8.2f} GB" if "bytes" in row else f"{seconds:9.4f} s",
                f"{ratio:8.3f}" if ratio is not None else " " * 8,
                f"{target:8g}" if target is not None else "",
            )
            print(*cells, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("parts", nargs="*", choices=[*PARTS, []], metavar="PART", help=", ".join(PARTS))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--alone", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory()
    if args.alone:
        print(memory_alone(*args.alone))
        return
    path = ROOT / "benchmarks" / "results" / f"{machine_name()}.json"
    report = read_json(path) if path.exists() else {}
    print(f"{'part':12}{'case':26}{'contender':30}    median       ratio  target")
    for name in args.parts or PARTS:
        stolen, ticks = stolen_and_all()
        measured = PARTS[name](args.repeats)
        stolen, ticks = (after - before for after, before in zip(stolen_and_all(), (stolen, ticks), strict=True))
        share = round(stolen / max(ticks, 1), 3)
        report[name] = {"machine": machine(), "repeats": args.repeats, "stolen": share, "measured": measured}
        print_part(name, measured)
        if share > 0.02:
            print(f"{name}: other guests of this host took {share:.0%} of the processor; measure again")
        write_json(path, report)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()

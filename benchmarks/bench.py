"""Speed of training, probes, input and measurements, on this machine: one table, and benchmarks/results/<machine>.json.

    python benchmarks/bench.py                  everything (about 40 minutes on two cores)
    python benchmarks/bench.py norms probes     some parts

Contenders take turns in one process; medians of their ratios count. README.md beside this file explains each part.
"""

import argparse
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from common import DEVICE, ROOT, alternated, compared, machine, machine_name, status, stolen_and_all
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

import config
from models import build_from_config
from normstudy.datasets import evaluation_batches, training_batch, training_order
from normstudy.datasets.batches import to_network_input
from normstudy.datasets.splits import Split
from normstudy.kernels import is_bf16_emulated, keep_freed_memory
from normstudy.storage import read_json, write_json
from normstudy.training.optimizer import SGD
from normstudy.training.probe_recorder import ProbeRecorder
from normstudy.training.training_step import STEPS_BEFORE_CAPTURE, build_step
from transformer_model import Attention

WARM_UP = 1 + STEPS_BEFORE_CAPTURE  # by then the heap has grown too, and no page is touched for the first time
PRECISIONS = config.PRECISIONS[:1] if is_bf16_emulated(DEVICE) else config.PRECISIONS  # those worth measuring
TARGETS = {  # of a step against Plain's
    **dict.fromkeys(config.NORM_TYPES, 1.35),
    **dict.fromkeys(("FilterResponseNorm", "RMSNorm", "DynamicTanh"), 1.6),
    **dict.fromkeys(("EvoNormSO", "EvoNormBO"), 2.2),
}
ARCHS = {"vgg": ["--arch=vgg"], "resnet-56": ["--arch=resnet-56"], "vit": ["--arch=vit", "--norm_type=LayerNorm"]}
SMALL_VIT = ["--arch=vit", "--norm_type=LayerNorm", "--image_size=32", "--patch_size=4"]


def random_split(samples=512, size=32):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (samples, 3, size, size), dtype=torch.uint8, generator=generator)
    return Split(images, torch.randint(0, 10, (samples,), generator=generator)).to(DEVICE)


def training_step(flags, has_probes=False, split=None):
    """A function that trains one step as main.py does, data included, on 512 random images, and its network."""
    settings = config.parse_args(["--dataset=Synthetic", "--init_lr=0.1", *flags])
    torch.manual_seed(0)
    model = build_from_config(settings, 10).to(DEVICE, memory_format=torch.channels_last).train()
    optimizer = SGD(model.parameters(), momentum=0.9, weight_decay=1e-4)
    split = split or random_split()
    step = build_step(settings, model, optimizer, split, ProbeRecorder(model) if has_probes else None)
    order, flips = training_order(split, 0, 1)
    counter = iter(range(10**9))

    def run():
        index = next(counter)
        start = index * settings.batch_size % (len(split) - settings.batch_size + 1)
        batch = slice(start, start + settings.batch_size)
        return step(order[batch], flips[batch], 1e-3, index)

    run.step = step
    return run


def norms(repeats):
    """One VGG cfg_10 step at batch 256, probes off, of every norm against Plain's."""
    report = {}
    for precision in PRECISIONS:
        functions = {
            name: training_step([f"--norm_type={name}", f"--precision={precision}"]) for name in config.NORM_TYPES
        }
        report[precision] = compared(alternated(functions, repeats, warm_up=WARM_UP), "Plain")
    for name, row in report["fp32"].items():
        row["target"] = None if name == "Plain" else TARGETS[name]
    return report


def precision(repeats):
    """float32 against bf16 steps of each network; bf16 has to be at least 1.6 times as fast for VGG."""
    report = {}
    if "bf16" not in PRECISIONS:
        return report
    for arch, flags in (ARCHS | {"vit": SMALL_VIT}).items():
        functions = {name: training_step([*flags, f"--precision={name}"]) for name in ("bf16", "fp32")}
        report[arch] = compared(alternated(functions, repeats, warm_up=WARM_UP), "bf16")
    return report


def probes(repeats):
    """Steps with probes at every iteration against steps without, at batch 256."""
    report = {}
    for arch, target in (("vgg", 1.2), ("resnet-56", 1.25)):
        for name in PRECISIONS:
            flags = [*ARCHS[arch], f"--precision={name}"]
            functions = {"off": training_step(flags), "on": training_step(flags, has_probes=True)}
            table = compared(alternated(functions, repeats, warm_up=WARM_UP), "off")
            report[f"{arch} {name}"] = table
            table["on"]["target"] = target
    return report


def input_pipeline(repeats):
    """Making a batch against the step that takes it."""
    report = {}
    for arch, batch_size in (("vgg", 256), ("vit", 32)):
        flags = [*ARCHS[arch], f"--batch_size={batch_size}", f"--precision={PRECISIONS[-1]}"]
        run, split = training_step(flags), random_split()
        order, flips = training_order(split, 0, 1)
        size = run.step.config.image_size
        batch = order[:batch_size], flips[:batch_size], size
        functions = {"step": run, "input": lambda split=split, batch=batch: training_batch(split, *batch)}
        table = compared(alternated(functions, repeats, warm_up=WARM_UP), "step")
        table["input"]["target"] = 0.03
        report[f"{arch} at batch {batch_size}, {PRECISIONS[-1]}"] = table
    return report


def products_of(model, images):
    """Functions that compute each convolution, linear layer and attention product of a network alone, both ways."""
    calls = []

    def keep(module, inputs, output):
        calls.append((module, tuple(inputs[0].shape)))

    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    attentions = [module for module in model.modules() if isinstance(module, Attention)]
    handles = [module.register_forward_hook(keep) for module in layers + attentions]
    with torch.no_grad():
        model(images)
    for handle in handles:
        handle.remove()

    def one(module, shape):
        if module in attentions:
            samples, tokens, width = shape
            heads = torch.randn(samples * module.num_heads, tokens, width // module.num_heads, device=DEVICE)
            left, right = heads.clone().requires_grad_(), heads.clone().requires_grad_()

            def attend():
                logits = left @ right.transpose(1, 2)
                torch.autograd.grad(logits, (left, right), logits.detach())
                mixed = logits.detach().requires_grad_()
                out = mixed @ right
                torch.autograd.grad(out, (mixed, right), out.detach())

            return attend
        x = torch.randn(shape, device=DEVICE)
        x = x.to(memory_format=torch.channels_last) if len(shape) == 4 else x
        first = shape[1] == 3
        x.requires_grad_(not first)

        def both():
            out = module(x)
            torch.autograd.grad(out, [module.weight] if first else [x, module.weight], out.detach())

        return both

    functions = [one(*call) for call in calls]

    def every():
        for function in functions:
            function()

    return every


def utilization(repeats):
    """The share of a step in its convolutions and matrix products, against those alone (at least 0.8)."""
    report = {}
    for arch, flags, batch_size in (("resnet-56", ARCHS["resnet-56"], 256), ("vit", ARCHS["vit"], 32)):
        run = training_step([*flags, f"--batch_size={batch_size}"])
        images = to_network_input(random_split(batch_size).images, image_size=run.step.config.image_size)
        functions = {"products": products_of(run.step.model, images), "step": run}
        table = compared(alternated(functions, repeats, warm_up=WARM_UP), "step")
        table["products"]["target"] = 0.8
        report[f"{arch} at batch {batch_size}"] = table
    return report


def hessian(repeats):
    """Hessian products on 128 images of a fresh network, ours against its peers' (at least 1.3 and 1.5 of ours)."""
    from hessian import CONTENDERS, product_of

    report = {}
    for arch, flags in (ARCHS | {"vit": SMALL_VIT}).items():
        settings = config.parse_args(flags)
        model = build_from_config(settings, 10).eval().to(DEVICE, memory_format=torch.channels_last)
        batches = list(evaluation_batches(random_split(128), settings.image_size, 128))
        vector = torch.randn(sum(p.numel() for p in model.parameters()), device=DEVICE)
        with sdpa_kernel(SDPBackend.MATH):  # the fused ones have no second derivative, which the peers need
            functions = {}
            for name in CONTENDERS:
                product = product_of(name, model, batches)
                functions[name] = partial(product, vector)
            report[arch] = compared(alternated(functions, repeats), "ours, graphs kept")
        report[arch]["pyhessian"]["target"], report[arch]["curvlinops"]["target"] = 1.3, 1.5
    return report


def memory(repeats):
    """Peak memory of training with probes against without, each in processes of their own."""
    report = {}
    for arch in ("vgg", "resnet-56"):
        peaks = {}
        for has_probes in ("off", "on"):
            command = [sys.executable, __file__, "--alone", arch, has_probes]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            peaks[has_probes] = int(done.stdout.split()[-1])
        report[arch] = {
            "off": {"bytes": peaks["off"]},
            "on": {"bytes": peaks["on"], "median_ratio": peaks["on"] / peaks["off"], "target": 1.15},
        }
    return report


def memory_alone(arch, has_probes):
    """Peak bytes of a process in three steps of the network."""
    run = training_step(ARCHS[arch], has_probes=has_probes == "on")
    for _ in range(3):
        run()
    return torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else status("VmHWM")


START_UP = """
import hashlib, os, sys, time
folder, began = sys.argv[1], float(sys.argv[2])
import main, steps

def with_checksum(name):
    content = open(os.path.join(folder, "cifar-10-batches-py", name), "rb").read()
    return [name, hashlib.md5(content).hexdigest()]

if not os.path.exists(os.path.join(folder, "CIFAR-10-decoded-images.pt")):
    from torchvision.datasets import CIFAR10
    CIFAR10.train_list = [with_checksum(name) for name, _ in CIFAR10.train_list]
    CIFAR10.test_list = [with_checksum(name) for name, _ in CIFAR10.test_list]
    CIFAR10.meta = CIFAR10.meta | {"md5": with_checksum("batches.meta")[1]}

def first_step(self, *arguments):
    print(time.time() - began, flush=True)
    os._exit(0)

steps.Step.__call__ = first_step
main.main(["--dataset=CIFAR-10", f"--data_dir={folder}", f"--results_dir={folder}/results"])
"""


def start_up(repeats):
    """Seconds from the command to the first step: imports, CIFAR-10 from its cache, network, optimizer."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        write_random_cifar(Path(folder))
        for _ in range(repeats + 1):
            shutil.rmtree(Path(folder) / "results", ignore_errors=True)
            command = [sys.executable, "-c", START_UP, folder, str(time.time())]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            seconds.append(float(done.stdout.split()[-1]))
    return {"main.py": {"first step": {"median_seconds": statistics.median(seconds[1:]), "target_seconds": 6}}}


def write_random_cifar(folder):
    """CIFAR-10's files with random pixels; the process that reads them is told their checksums."""
    generator = np.random.default_rng(0)
    target = folder / "cifar-10-batches-py"
    target.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        pixels = generator.integers(0, 256, (10000, 3072), dtype=np.uint8)
        content = {"data": pixels, "labels": generator.integers(0, 10, 10000).tolist()}
        (target / name).write_bytes(pickle.dumps(content))
    names = {"label_names": [f"class {index}" for index in range(10)]}
    (target / "batches.meta").write_bytes(pickle.dumps(names))


PARTS = {
    "norms": norms,
    "precision": precision,
    "probes": probes,
    "input": input_pipeline,
    "utilization": utilization,
    "memory": memory,
    "start_up": start_up,
    "hessian": hessian,
}


def print_part(name, part):
    """A part of the report as lines of one table."""
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


def main():
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
            print(f"{name}: other guests of this host took {share:.0%} of the processor meanwhile: measure again")
        write_json(path, report)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()

"""Time training steps on random images: networks, norms, precisions, probes and graphs, the most important ones first.

    python benchmarks/gpu_speed.py --seconds=100

Prints one line of JSON per setting: images per second (the median of three), and peak memory.
"""

import argparse
import gc
import itertools
import json
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch

from benchmarks.bench import WARM_UP, TrainingStep
from benchmarks.common import DEVICE, synchronize
from normstudy.kernels import keep_freed_memory, training_arithmetic

ARCHS = ("vgg", "resnet-56", "vit")
NORMS = ("BatchNorm", "Plain", "GroupNorm", "EvoNormBO")
PRECISIONS = ("bf16", "fp32", "tf32")
BATCH = 256
LEAST_SECONDS = 0.15  # of one timing


def settings() -> list[tuple[str, str, str, bool, bool]]:
    """Return every (arch, norm, precision, has_probes, has_graph), ordered by the number of unusual values."""
    every = list(itertools.product(ARCHS, NORMS, PRECISIONS, (False, True), (True, False)))
    return sorted(every, key=lambda each: (each[2] != "bf16") + (not each[4]) + (each[1] not in ("BatchNorm", "Plain")))


def measure(
    arch: str, norm: str, precision: str, has_probes: bool, has_graph: bool, is_tiny: bool
) -> dict[str, object]:
    """Return the figures of one setting."""
    batch = 4 if is_tiny else BATCH
    flags = [f"--arch={arch}", f"--norm_type={norm}", f"--precision={precision}", f"--cuda_graph={has_graph}"]
    flags += [f"--batch_size={batch}", *(["--image_size=32"] if is_tiny and arch == "vit" else [])]
    is_cuda = DEVICE.type == "cuda"
    if is_cuda:
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()
    with training_arithmetic(DEVICE, precision, is_deterministic=False):
        step = TrainingStep(flags, has_probes)
        for _ in range(1 if is_tiny else WARM_UP + 2):
            step()
        synchronize()
        speeds = []
        for _ in range(1 if is_tiny else 3):
            steps, begun = 0, time.perf_counter()
            while steps == 0 or (not is_tiny and time.perf_counter() - begun < LEAST_SECONDS):
                for _ in range(1 if is_tiny else 5):
                    step()
                    steps += 1
                synchronize()
            speeds.append(steps * batch / (time.perf_counter() - begun))
    row: dict[str, object] = {"arch": arch, "norm": norm, "precision": precision}
    row |= {"probes": has_probes, "graph": has_graph, "images_per_second": round(statistics.median(speeds))}
    if is_cuda:
        row["gigabytes"] = round(torch.cuda.max_memory_reserved() / 1e9, 2)
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=100.0, help="time limit (default: 100)")
    parser.add_argument("--smoke", action="store_true", help="one tiny step of a few settings")
    args = parser.parse_args()
    keep_freed_memory()
    end = time.monotonic() + args.seconds
    chosen = settings()
    if args.smoke:
        chosen = [("vgg", "BatchNorm", "fp32", has_probes, False) for has_probes in (False, True)]
    for number, each in enumerate(chosen):
        if time.monotonic() > end:
            print(f"time is up: {len(chosen) - number} of {len(chosen)} settings were not measured", flush=True)
            return
        gc.collect()
        try:
            print(json.dumps(measure(*each, is_tiny=args.smoke)), flush=True)
        except RuntimeError as error:
            names = ("arch", "norm", "precision", "probes", "graph")
            print(json.dumps(dict(zip(names, each, strict=True)) | {"error": str(error)[:300]}), flush=True)


if __name__ == "__main__":
    main()

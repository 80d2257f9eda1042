"""Time Hessian products against PyHessian and curvlinops, where they are installed, and measure their errors.

    python benchmarks/gpu_hessian.py

All compute in float32 without TF32, which the peers would otherwise use, for errors of 2e-3 to 5e-2 on an H200.
Prints one line of JSON per network and contender.
"""

import argparse
import copy
import importlib.util
import json
import sys
from functools import partial
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

import config
from benchmarks.bench import ARCHS, SMALL_VIT, random_split
from benchmarks.common import DEVICE, alternated, compared
from benchmarks.products import CONTENDERS, double_backward, product_of
from models import build_from_config
from normstudy.datasets import evaluation_batches
from normstudy.kernels import training_arithmetic

PACKAGES = {"pyhessian": "pyhessian", "curvlinops": "curvlinops"}
OURS = "ours, graphs kept"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--smoke", action="store_true", help="four images, VGG, our own products")
    args = parser.parse_args()
    names = [name for name in CONTENDERS if name not in PACKAGES or importlib.util.find_spec(PACKAGES[name])]
    archs = ARCHS | {"vit": SMALL_VIT}
    images, repeats = 256, 3
    if args.smoke:
        names, archs, images, repeats = [OURS], {"vgg": ARCHS["vgg"]}, 4, 1
    for arch, flags in archs.items():
        torch.manual_seed(0)
        settings = config.parse_args(flags)
        model = build_from_config(settings, 10).eval().to(DEVICE).to(memory_format=torch.channels_last)
        split = random_split(images)
        vector = torch.randn(sum(parameter.numel() for parameter in model.parameters()), device=DEVICE)
        # The fused kernels of attention have no second derivative, which the peers need.
        with sdpa_kernel(SDPBackend.MATH), training_arithmetic(DEVICE, "fp32", is_deterministic=False):
            batches = list(evaluation_batches(split, settings.image_size, images))
            products = {name: partial(product_of(name, model, batches), vector) for name in names}
            found = {name: product() for name, product in products.items()}
            table = compared(alternated(products, repeats), OURS)
            doubles = [(x.double(), y) for x, y in batches]
            exact = double_backward(copy.deepcopy(model).double(), doubles, vector.double())
        for name in names:
            row: dict[str, object] = {"arch": arch, "images": images, "contender": name}
            row |= {"seconds": round(table[name]["median_seconds"], 5), "ratio": round(table[name]["median_ratio"], 3)}
            row["error"] = float((found[name].double() - exact).norm() / exact.norm())
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()

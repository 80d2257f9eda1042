"""Compare our measurements with PyHessian's and curvlinops', on the same network, batches and machine.

    python benchmarks/hessian.py RUN          RUN: a VGG/BatchNorm run directory whose images are available

Needs the peers: pip install -r requirements-dev.txt pyhessian. Prints one table and writes it, with the machine and
the versions, to benchmarks/results/hessian.json.
"""

import argparse
import contextlib
import json
import statistics
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
warnings.simplefilter("ignore")

import numpy as np
import pyhessian
import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.common import ROOT, alternated, machine, status
from benchmarks.products import CONTENDERS, Batches, double_backward, product_of
from config import Config, parse_args
from models import Network, build_from_config
from normstudy.curvature import hessian_matvec, loss_and_gradient, spectrum
from normstudy.datasets import Dataset, balanced_subset, evaluation_batches, load, seeded_generator
from normstudy.kernels import keep_freed_memory
from normstudy.storage import RunDirectory, read_torch, stored_config, write_json
from utils import ClassMoments

PRODUCTS = 200  # over which the memory must not grow


def network_and_batches(
    args: argparse.Namespace, dtype: torch.dtype = torch.float32
) -> tuple[Network, Batches, Dataset, Config]:
    run = RunDirectory(args.run)
    config = stored_config(run)
    dataset = load(config)
    subset = dataset.train.take(balanced_subset(dataset.train.labels, args.samples, len(dataset.classes)))
    batches = [(x.to(dtype), y) for x, y in evaluation_batches(subset, config.image_size, args.batch_size)]
    model = build_from_config(config, len(dataset.classes)).eval()
    model.load_state_dict(read_torch(run.checkpoints()[-1]))
    return model.to(dtype).to(memory_format=torch.channels_last), batches, dataset, config


def time_products(args: argparse.Namespace) -> dict[str, Any]:
    """Return the median seconds of a product, their ratio to ours, relative errors against float64, and peak bytes."""
    model, batches, *_ = network_and_batches(args)
    vector = torch.randn(sum(p.numel() for p in model.parameters()), generator=seeded_generator("benchmark"))
    products = {name: product_of(name, model, batches) for name in CONTENDERS}
    functions: dict[str, Callable[[], object]] = {name: partial(products[name], vector) for name in CONTENDERS}
    functions["gradient"] = partial(loss_and_gradient, model, batches)
    seconds = alternated(functions, args.repeats)
    double, double_batches, *_ = network_and_batches(args, torch.float64)
    vectors = [torch.randn(len(vector), generator=seeded_generator("error", index)) for index in range(2)]
    exact = [double_backward(double, double_batches, v.double()) for v in vectors]
    table: dict[str, dict[str, Any]] = {}
    for name, values in seconds.items():
        table[name] = {"median_seconds": statistics.median(values), "seconds": values}
        ratios = [theirs / ours for theirs, ours in zip(values, seconds["ours"], strict=True)]
        table[name]["median_ratio_to_ours"] = statistics.median(ratios)
        if name in products:
            errors = [((products[name](v) - e).norm() / e.norm()).item() for v, e in zip(vectors, exact, strict=True)]
            table[name]["relative_errors"] = errors
            table[name]["peak_bytes"] = peak_bytes(args, name)
    return table


def peak_bytes(args: argparse.Namespace, name: str) -> int:
    """Return the peak memory of a separate process that computes three products, above what it held before."""
    command = [sys.executable, __file__, args.run, f"--samples={args.samples}", f"--batch_size={args.batch_size}"]
    done = subprocess.run([*command, f"--memory_of={name}"], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def print_peak_memory(args: argparse.Namespace) -> None:
    model, batches, dataset, _ = network_and_batches(args)
    del dataset
    vector = torch.randn(sum(p.numel() for p in model.parameters()))
    product = product_of(args.memory_of, model, batches)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    for _ in range(3):
        product(vector)
    print(status("VmHWM") - before)


def memory_over_products(args: argparse.Namespace) -> dict[str, float]:
    """Return the resident bytes after the first ten and after all products, on 16 images of the same network."""
    model, batches, *_ = network_and_batches(args)
    matvec, dimension = hessian_matvec(model, [(batches[0][0][:16], batches[0][1][:16])])
    vector, sizes = torch.randn(dimension), []
    for index in range(PRODUCTS):
        vector = matvec(vector)
        vector /= vector.norm()
        if index in (9, PRODUCTS - 1):
            sizes.append(status("VmRSS"))
    return {"products": PRODUCTS, "after_10_bytes": sizes[0], "after_all_bytes": sizes[1], "ratio": sizes[1] / sizes[0]}


def small_trained_network() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor]]:
    """Return (network, batch) of about a thousand parameters, trained until its Hessian has outliers and a bulk."""
    torch.manual_seed(0)
    dataset = load(parse_args(["--dataset=Synthetic", "--seed=0"]))
    images = dataset.train.images[:300].double().div(127.5).sub(1)
    images, labels = F.avg_pool2d(images, 8), dataset.train.labels[:300]
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model, (images, labels)


def wasserstein(nodes: np.ndarray, weights: np.ndarray, eigenvalues: np.ndarray) -> float:
    """Return the 1-Wasserstein distance between Σ w δ(θ) and the distribution of the eigenvalues."""
    places = np.concatenate([nodes, eigenvalues])
    masses = np.concatenate([weights / weights.sum(), -np.full(len(eigenvalues), 1 / len(eigenvalues))])
    order = np.argsort(places)
    return float(np.sum(np.abs(np.cumsum(masses[order])[:-1]) * np.diff(places[order])))


def whole_measurements(seeds: int) -> dict[str, Any]:
    """Compare products and errors of trace, λ_max and density, ours and PyHessian's, with a known dense answer."""
    model, batch = small_trained_network()
    matvec, dimension = hessian_matvec(model, [batch])
    eigenvalues = np.linalg.eigvalsh(torch.stack([matvec(row) for row in torch.eye(dimension).double()]).numpy())
    top, trace = eigenvalues[-1], eigenvalues.sum()
    errors: dict[str, list[list[float]]] = {"ours": [], "pyhessian": []}
    products: dict[str, list[int]] = {"ours": [], "pyhessian": []}
    for seed in range(seeds):
        ours = spectrum(matvec, dimension, 2, 20, seeded_generator("benchmark", seed), trace_probes=20)
        products["ours"].append(ours.products)
        nodes, weights = ours.nodes.flatten().numpy(), ours.weights.flatten().numpy()
        distance = wasserstein(nodes, weights, eigenvalues)
        errors["ours"].append([ours.trace / trace - 1, ours.max_eigen / top - 1, distance / top])
        with counted_peer_products() as product:
            torch.manual_seed(seed)
            peer = pyhessian.hessian(model, nn.CrossEntropyLoss(), data=batch, cuda=False)
            their_trace = float(np.mean(peer.trace(maxIter=100, tol=1e-3)))
            their_top = peer.eigenvalues(maxIter=100, tol=1e-3, top_n=1)[0][0]
            their_nodes, their_weights = peer.density(iter=100, n_v=1)
        products["pyhessian"].append(product.call_count)
        distance = wasserstein(np.array(their_nodes[0]), np.array(their_weights[0]), eigenvalues)
        errors["pyhessian"].append([their_trace / trace - 1, their_top / top - 1, distance / top])
    table = {"dimension": dimension, "seeds": seeds, "trace": trace, "max_eigen": top}
    for name in errors:
        root_mean_square = np.sqrt(np.mean(np.square(errors[name]), axis=0))
        table[name] = {"mean_products": float(np.mean(products[name]))}
        keys = ("trace_error", "max_eigen_error", "density_error")
        table[name] |= dict(zip(keys, root_mean_square.tolist(), strict=True))
    return table


@contextlib.contextmanager
def counted_peer_products() -> Iterator[mock.Mock]:
    """Give PyHessian the function that PyTorch removed, in a `with` block; yield a count of its products."""
    module = sys.modules[pyhessian.hessian.__module__]
    product = mock.Mock(wraps=module.hessian_vector_product)
    with mock.patch.object(module, "hessian_vector_product", product), mock.patch.object(torch, "eig", old_eig):
        yield product


def old_eig(matrix: torch.Tensor, eigenvectors: bool = False) -> tuple[torch.Tensor, torch.Tensor]:
    values, vectors = torch.linalg.eig(matrix)
    return torch.stack([values.real, values.imag], 1), vectors.real


def class_similarity_cost(args: argparse.Namespace) -> dict[str, Any]:
    """Return the time of the class moments of 10,000 images with the network, over that of the network alone."""
    model, _, dataset, config = network_and_batches(args)
    subset = dataset.train.take(balanced_subset(dataset.train.labels, 10000, len(dataset.classes)))

    @torch.no_grad()
    def forward(with_moments: bool) -> None:
        moments = [ClassMoments(len(dataset.classes)) for _ in range(2)]
        for images, labels in evaluation_batches(subset, config.image_size, 256):
            features = model.features(images)
            pooled = model.pool(features)
            if with_moments:
                moments[0].update(features, labels)
                moments[1].update(pooled, labels)

    seconds = alternated({"forward": lambda: forward(False), "measured": lambda: forward(True)}, 3)
    ratios = [measured / plain for plain, measured in zip(seconds["forward"], seconds["measured"], strict=True)]
    return {"median_ratio": statistics.median(ratios), "seconds": seconds}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run")
    parser.add_argument("--samples", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--repeats", type=int, default=4)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--memory_of", choices=CONTENDERS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    keep_freed_memory()
    if args.memory_of:
        print_peak_memory(args)
        return
    report = {"machine": machine(), "samples": args.samples, "batch_size": args.batch_size}
    for name, measure in (
        ("whole_measurements", lambda: whole_measurements(args.seeds)),
        ("products", lambda: time_products(args)),
        ("memory", lambda: memory_over_products(args)),
        ("class_similarity", lambda: class_similarity_cost(args)),
    ):
        report[name] = measure()
        print(name, json.dumps(report[name], indent=2), flush=True)
        write_json(ROOT / "benchmarks" / "results" / "hessian.json", report)


if __name__ == "__main__":
    main()

"""Measurements against their peers: PyHessian and curvlinops, on the same network, batches and machine.

    python benchmarks/hessian.py RUN          a VGG/BatchNorm run directory, whose images are at hand

Needs the peers: pip install -r requirements-dev.txt pyhessian. Prints one table, and writes it with the machine and
the versions to benchmarks/results/hessian.json.
"""

import argparse
import json
import statistics
import subprocess
import sys
import warnings
from pathlib import Path

from common import DEVICE, ROOT, alternated, machine, status

from models import build_from_config
from normstudy.curvature import hessian_matvec, loss_and_gradient, spectrum
from normstudy.datasets import balanced_subset, evaluation_batches, load, seeded_generator
from normstudy.datasets.synthetic import make_synthetic
from normstudy.kernels import keep_freed_memory
from normstudy.storage import read_torch, run_directory, run_settings, write_json
from utils import ClassMoments

warnings.simplefilter("ignore")

import curvlinops
import numpy as np
import pyhessian
import torch
from torch import nn
from torch.nn import functional as F

CONTENDERS = ("ours", "ours, graphs kept", "pyhessian", "curvlinops")


def split_like(vector, parameters):
    parts = vector.split([p.numel() for p in parameters])
    return [part.view_as(p) for part, p in zip(parts, parameters, strict=True)]


def flat(tensors):
    return torch.cat([tensor.reshape(-1) for tensor in tensors])


def product_of(name, model, batches):
    """v ↦ Hv as one of the contenders computes it; the network is in eval mode and channels_last for all."""
    if name == "ours":
        return hessian_matvec(model, batches)[0]
    if name == "ours, graphs kept":
        return hessian_matvec(model, batches, keep_graphs=True)[0]
    if name == "pyhessian":
        peer = pyhessian.hessian(model, nn.CrossEntropyLoss(), dataloader=batches, cuda=DEVICE.type == "cuda")
        return lambda v: flat(peer.dataloader_hv_product(split_like(v, list(model.parameters())))[1])
    options = {"check_deterministic": False}
    return curvlinops.HessianLinearOperator(
        model, nn.CrossEntropyLoss(), list(model.parameters()), batches, **options
    ).__matmul__


def network_and_batches(args, dtype=torch.float32):
    run = run_directory.RunDirectory(args.run)
    config = run_settings.stored_config(run)
    dataset = load(config)
    subset = dataset.train.take(balanced_subset(dataset.train.labels, args.samples, len(dataset.classes)))
    batches = [(x.to(dtype), y) for x, y in evaluation_batches(subset, config.image_size, args.batch_size)]
    model = build_from_config(config, len(dataset.classes)).eval()
    model.load_state_dict(read_torch(run.checkpoints()[-1]))
    return model.to(dtype=dtype, memory_format=torch.channels_last), batches, dataset, config


def time_products(args):
    """Median seconds of a product, their ratio to ours, and relative errors against float64."""
    model, batches, *_ = network_and_batches(args)
    vector = torch.randn(sum(p.numel() for p in model.parameters()), generator=seeded_generator("benchmark"))
    products = {name: product_of(name, model, batches) for name in CONTENDERS}
    functions = {name: lambda product=product: product(vector) for name, product in products.items()}
    functions["gradient"] = lambda: loss_and_gradient(model, batches)
    seconds = alternated(functions, args.repeats)
    double, double_batches, *_ = network_and_batches(args, torch.float64)
    vectors = [torch.randn(len(vector), generator=seeded_generator("error", index)) for index in range(2)]
    exact = [double_backward(double, double_batches, v.double()) for v in vectors]
    table = {}
    for name, values in seconds.items():
        table[name] = {"median_seconds": statistics.median(values), "seconds": values}
        ratios = [theirs / ours for theirs, ours in zip(values, seconds["ours"], strict=True)]
        table[name]["median_ratio_to_ours"] = statistics.median(ratios)
        if name in products:
            errors = [((products[name](v) - e).norm() / e.norm()).item() for v, e in zip(vectors, exact, strict=True)]
            table[name]["relative_errors"] = errors
            table[name]["peak_bytes"] = peak_bytes(args, name)
    return table


def double_backward(model, batches, vector):
    """Hv in the plainest way, for an exact answer in float64."""
    parameters, total = list(model.parameters()), 0
    for images, labels in batches:
        loss = F.cross_entropy(model(images), labels, reduction="sum")
        gradients = torch.autograd.grad(loss, parameters, create_graph=True)
        total = total + flat(torch.autograd.grad(gradients, parameters, split_like(vector, parameters)))
    return total / sum(len(labels) for _, labels in batches)


def peak_bytes(args, name):
    """The peak memory of a process of its own that takes three products, above what it held before."""
    command = [sys.executable, __file__, args.run, f"--samples={args.samples}", f"--batch_size={args.batch_size}"]
    done = subprocess.run([*command, f"--memory_of={name}"], capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def print_peak_memory(args):
    model, batches, dataset, _ = network_and_batches(args)
    del dataset
    vector = torch.randn(sum(p.numel() for p in model.parameters()))
    product = product_of(args.memory_of, model, batches)
    Path("/proc/self/clear_refs").write_text("5")
    before = status("VmRSS")
    for _ in range(3):
        product(vector)
    print(status("VmHWM") - before)


def memory_over_products(args, products=200):
    """Resident bytes after the first ten and after all products, on 16 images of the same network."""
    model, batches, *_ = network_and_batches(args)
    matvec, dimension = hessian_matvec(model, [(batches[0][0][:16], batches[0][1][:16])])
    vector, sizes = torch.randn(dimension), []
    for index in range(products):
        vector = matvec(vector)
        vector /= vector.norm()
        if index in (9, products - 1):
            sizes.append(status("VmRSS"))
    return {"products": products, "after_10_bytes": sizes[0], "after_all_bytes": sizes[1], "ratio": sizes[1] / sizes[0]}


def small_trained_network():
    """(network, batch) of about a thousand parameters, trained so far that its Hessian has outliers and a bulk."""
    torch.manual_seed(0)
    dataset = make_synthetic(0)
    images = dataset.train.images[:300].double().div(127.5).sub(1)
    images, labels = F.avg_pool2d(images, 8), dataset.train.labels[:300]
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 16), nn.Tanh(), nn.Linear(16, 10)).double()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()
    return model, (images, labels)


def wasserstein(nodes, weights, eigenvalues):
    """The 1-Wasserstein distance between Σ w δ(θ) and the eigenvalues' distribution."""
    places = np.concatenate([nodes, eigenvalues])
    masses = np.concatenate([weights / weights.sum(), -np.full(len(eigenvalues), 1 / len(eigenvalues))])
    order = np.argsort(places)
    return float(np.sum(np.abs(np.cumsum(masses[order])[:-1]) * np.diff(places[order])))


def whole_measurements(seeds):
    """Products and errors of trace, λ_max and density, ours and PyHessian's, where the dense answer is known."""
    model, batch = small_trained_network()
    matvec, dimension = hessian_matvec(model, [batch])
    eigenvalues = np.linalg.eigvalsh(torch.stack([matvec(row) for row in torch.eye(dimension).double()]).numpy())
    top, trace = eigenvalues[-1], eigenvalues.sum()
    errors = {"ours": [], "pyhessian": []}
    products = {"ours": [], "pyhessian": []}
    torch.eig = old_eig  # what PyHessian's density calls was removed from PyTorch
    for seed in range(seeds):
        found = spectrum(matvec, dimension, 2, 20, seeded_generator("benchmark", seed), trace_probes=20)
        nodes, weights = found.nodes.flatten().numpy(), found.weights.flatten().numpy()
        products["ours"].append(found.products)
        errors["ours"].append(relative_errors(found.trace, found.max_eigen, nodes, weights, trace, top, eigenvalues))
        torch.manual_seed(seed)
        peer = CountingPeer(model, nn.CrossEntropyLoss(), data=batch, cuda=False)
        their_trace = float(np.mean(peer.trace(maxIter=100, tol=1e-3)))
        their_top = peer.eigenvalues(maxIter=100, tol=1e-3, top_n=1)[0][0]
        nodes, weights = peer.density(iter=100, n_v=1)
        products["pyhessian"].append(peer.products)
        found = (their_trace, their_top, np.array(nodes[0]), np.array(weights[0]))
        errors["pyhessian"].append(relative_errors(*found, trace, top, eigenvalues))
    table = {"dimension": dimension, "seeds": seeds, "trace": trace, "max_eigen": top}
    for name in errors:
        root_mean_square = np.sqrt(np.mean(np.square(errors[name]), axis=0))
        table[name] = {"mean_products": float(np.mean(products[name]))}
        keys = ("trace_error", "max_eigen_error", "density_error")
        table[name] |= dict(zip(keys, root_mean_square.tolist(), strict=True))
    return table


def relative_errors(trace, top, nodes, weights, exact_trace, exact_top, eigenvalues):
    """Errors of trace and λ_max relative to them, and the density's distance in units of λ_max."""
    distance = wasserstein(nodes, weights, eigenvalues) / exact_top
    return [trace / exact_trace - 1, top / exact_top - 1, distance]


def old_eig(matrix, eigenvectors=False):
    values, vectors = torch.linalg.eig(matrix)
    return torch.stack([values.real, values.imag], 1), vectors.real


class CountingPeer(pyhessian.hessian):
    """PyHessian, with its products counted: each goes through hessian_vector_product."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.products = 0
        module = sys.modules[pyhessian.hessian.__module__]
        plain = getattr(module, "_plain_product", module.hessian_vector_product)
        module._plain_product = plain

        def counted(*arguments):
            self.products += 1
            return plain(*arguments)

        module.hessian_vector_product = counted


def class_similarity_cost(args):
    """Seconds of the class moments of 10,000 images, network included, over those of the network alone."""
    model, _, dataset, config = network_and_batches(args)
    subset = dataset.train.take(balanced_subset(dataset.train.labels, 10000, len(dataset.classes)))

    @torch.no_grad()
    def forward(with_moments):
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


def main():
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

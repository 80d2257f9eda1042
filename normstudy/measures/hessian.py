"""The content of hessian.json for one checkpoint."""

import functools
import math
import sys
import time

import torch

from normstudy.cli import RunError, progress_bar
from normstudy.curvature import bytes_per_sample, hessian_matvec, loss_and_gradient, spectrum
from normstudy.datasets import seeded_generator
from normstudy.kernels import free_memory, pick_device
from normstudy.measures.measure_runs import Measurement
from normstudy.plots import draw_hessian, draw_hessian_over_training, format_with_residual

UNSETTLED = 0.1  # residual over size of an eigenvalue from which it is said


def hessian_measurement(max_probe_factor):
    """The Measurement of run_hessian.py. --trace_error may take max_probe_factor times --trace_probes."""
    measure = functools.partial(measure_hessian, max_probe_factor=max_probe_factor)
    return Measurement("hessian", measure, draw_hessian, draw_hessian_over_training)


class CountedBatches:
    """The batches of a subset, again and again; each walk through them moves a bar by one product."""

    def __init__(self, checkpoint, split, batch_size):
        self.checkpoint, self.split, self.batch_size = checkpoint, split, batch_size
        self.bar = None

    def __iter__(self):
        for images, labels in self.checkpoint.batches(self.split, self.batch_size):
            yield images, labels
            if self.bar is not None:
                self.bar.update(len(labels) / len(self.split))

    def expect(self, products):
        """So many products are to come in all."""
        self.bar.total = products
        self.bar.refresh()


def measure_hessian(checkpoint, args, max_probe_factor):
    """The content of hessian.json for one checkpoint."""
    model, start = checkpoint.model, time.perf_counter()
    subset, indices_hash = checkpoint.subset(checkpoint.dataset.train, args.samples, args.seed)
    options = {"curvature": args.curvature, "bn_mode": args.bn_mode}
    batch_size, held = fit_batch(checkpoint, subset, args, options)
    batches = CountedBatches(checkpoint, subset, batch_size)
    dimension = sum(layer_sizes(model).values())
    steps = min(args.lanczos_steps, dimension)
    basis_bytes = steps * dimension * next(model.parameters()).element_size()
    basis_device = place_basis(args, checkpoint.device, basis_bytes)
    spared = basis_bytes if basis_device == str(checkpoint.device) else 0
    graph_bytes = fit_graphs(checkpoint, subset, batch_size, dimension, options, spared)
    matvec, _ = hessian_matvec(model, batches, keep_graphs=graph_bytes > 0, **options)
    gradient_start = time.perf_counter()
    with progress_bar(1, "gradient", unit=" pass") as batches.bar:
        loss, gradient = loss_and_gradient(model, batches, bn_mode=args.bn_mode)
    batches.bar = None
    gradient_norm = torch.linalg.vector_norm(gradient).item()
    gradient_seconds = time.perf_counter() - gradient_start
    if not math.isfinite(loss):
        raise RunError(f"{checkpoint.run.path}: the loss is {loss} on these images")
    has_batch_statistics = any("running_" in name for name, _ in model.named_buffers())
    if args.bn_mode == "train" and not has_batch_statistics:
        print("this network takes no batch statistics: --bn_mode=train changes nothing", file=sys.stderr, flush=True)
    products = args.num_probes * steps + args.trace_probes
    gradients = 2 if graph_bytes else 3  # that take as long as a product
    least = "" if args.trace_error is None else "at least "
    duration = _duration(gradients * gradient_seconds * products)
    print(
        f"{checkpoint.run.path.name} epoch {checkpoint.epoch}: {least}{products} products of {dimension:,} parameters "
        f"on {len(subset)} images ({_of_each_class(subset, checkpoint)}), about {duration} on {checkpoint.device}; "
        f"a batch of {batch_size} holds {held / 1e9:.2g} GB, "
        + (f"the graphs of all, kept for speed, {graph_bytes / 1e9:.2g} GB, " if graph_bytes else "")
        + f"the Lanczos vectors {basis_bytes / 1e9:.2g} GB ({basis_device})",
        flush=True,
    )
    with progress_bar(products, "Hessian", unit=" HVP") as batches.bar:
        found = spectrum(
            matvec,
            dimension,
            args.num_probes,
            steps,
            seeded_generator("hessian", args.seed),
            trace_probes=args.trace_probes,
            trace_error=args.trace_error,
            most_probes=args.num_probes + max_probe_factor * max(1, args.trace_probes),
            expect=batches.expect,
            blocks=layer_sizes(model),
            dtype=getattr(torch, args.dtype),
            device=checkpoint.device,
            basis_device=basis_device,
        )
    names = ("trace", "eigen_mean", "eigen_variance")
    result = {name: getattr(found, name) for key in names for name in (key, f"{key}_standard_error")}
    for key in ("max_eigen", "min_eigen"):
        result |= {name: getattr(found, name) for name in (key, f"{key}_residual")}
    result |= {
        "loss": loss,
        "gradient_norm": gradient_norm,
        "dimension": dimension,
        "layer_traces": {
            name: {"trace": trace, "standard_error": error} for name, (trace, error) in found.block_traces.items()
        },
        "probes": [
            {"nodes": nodes[weights > 0].tolist(), "weights": weights[weights > 0].tolist()}
            for nodes, weights in zip(found.nodes, found.weights, strict=True)
        ],
        "products": found.products,
        "trace_samples": found.samples,
        "has_batch_statistics": has_batch_statistics,
        "seconds": time.perf_counter() - start,
        "num_samples": len(subset),
        "sample_indices_sha256": indices_hash,
    }
    spread = f"± {found.trace_standard_error:.2g} (s.e. of {found.samples} probes)"
    spread = spread if found.samples > 1 else "(one probe, which has no standard error)"
    print(
        f"trace {found.trace:.4g} {spread}, "
        f"largest eigenvalue {format_with_residual(found.max_eigen, found.max_eigen_residual)}, "
        f"smallest {format_with_residual(found.min_eigen, found.min_eigen_residual)}, "
        f"loss {loss:.4g}, {found.products} products in {_duration(result['seconds'])}",
        flush=True,
    )
    edges = {"largest": (found.max_eigen, found.max_eigen_residual)}
    if args.curvature == "hessian":  # the other's smallest is zero, where there are more parameters than outputs
        edges["smallest"] = found.min_eigen, found.min_eigen_residual
    unsettled = [name for name, (value, residual) in edges.items() if residual > UNSETTLED * abs(value)]
    if unsettled:
        print(f"not settled: the {' and the '.join(unsettled)}; more --lanczos_steps settle them", flush=True)
    if args.trace_error is not None and not found.trace_standard_error <= args.trace_error * abs(found.trace):
        part = found.trace_standard_error / abs(found.trace) if found.trace else math.inf
        print(f"the standard error is still {part:.0%} of the trace after {found.samples} probes", file=sys.stderr)
    return result


def fit_batch(checkpoint, subset, args, options):
    """(images at once, bytes that a product keeps): --batch_size, or as many as a quarter of the free memory takes,
    for gradients and temporary tensors come on top.

    Raises RunError where batch statistics forbid smaller batches.
    """
    batch_size = min(args.batch_size, len(subset))
    sample = next(iter(checkpoint.batches(subset.take(slice(0, 4)), 4)))
    each = bytes_per_sample(checkpoint.model, sample, **options) if len(subset) >= 4 else 0
    free = free_memory(checkpoint.device)
    fitting = max(1, int(min(batch_size, 0.25 * free / max(each, 1))))
    if fitting < batch_size and args.bn_mode == "train":
        raise RunError(
            f"a batch of {batch_size} takes {each * batch_size / 1e9:.1f} GB, and {checkpoint.device} has "
            f"{free / 1e9:.1f} GB free: lower --batch_size to {fitting} or less"
        )
    return fitting, each * fitting


def fit_graphs(checkpoint, subset, batch_size, dimension, options, spared):
    """Bytes that the graphs of all batches' gradients hold, where they fit into two fifths of the free memory beside
    `spared` bytes; 0 where they do not, or where none can be kept.
    """
    if options["curvature"] != "hessian" or len(subset) < 4:
        return 0
    sample = next(iter(checkpoint.batches(subset.take(slice(0, 4)), 4)))
    images = len(subset) * bytes_per_sample(checkpoint.model, sample, keep_graphs=True, **options)
    # Each graph has gradients of its own, and weights folded with what follows them.
    weights = 2 * dimension * next(checkpoint.model.parameters()).element_size() * math.ceil(len(subset) / batch_size)
    return images + weights if images + weights < 0.4 * (free_memory(checkpoint.device) - spared) else 0


def _of_each_class(subset, checkpoint):
    """13 of each class; 12 or 13 of each class."""
    counts = torch.bincount(subset.labels.cpu(), minlength=len(checkpoint.dataset.classes))
    few, many = counts.min().item(), counts.max().item()
    return f"{many if few == many else f'{few} or {many}' if many == few + 1 else f'{few} to {many}'} of each class"


def layer_sizes(model):
    """{layer: trainable parameters}, in the order of model.parameters(); parameters of the model itself by name."""
    sizes = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            layer = name.rpartition(".")[0] or name
            sizes[layer] = sizes.get(layer, 0) + parameter.numel()
    return sizes


def place_basis(args, device, size):
    """The device for `size` bytes of Lanczos vectors. Raises RunError where they do not fit, UsageError where it is
    not there."""
    wanted = [args.basis_device] if args.basis_device != "auto" else dict.fromkeys([str(device), "cpu"])
    for name in wanted:
        free = free_memory(pick_device(name))
        if size < 0.8 * free:
            return name
    raise RunError(
        f"{args.lanczos_steps} Lanczos vectors take {size / 1e9:.1f} GB, and {name} has {free / 1e9:.1f} GB free: "
        f"lower --lanczos_steps to {int(args.lanczos_steps * 0.8 * free / size)} or less"
    )


def _duration(seconds):
    """120 → 2.0 min."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"

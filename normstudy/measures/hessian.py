"""The Hessian of the training loss: the content of hessian.json for one checkpoint."""

import argparse
import contextlib
import functools
import math
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from normstudy.cli import RunError, progress_bar
from normstudy.curvature import Spectrum, hessian_matvec, layer_sizes, loss_and_gradient, spectrum
from normstudy.datasets import Split, seeded_generator
from normstudy.measures.checkpoints import Checkpoint
from normstudy.measures.hessian_memory import MemoryPlan, plan_memory
from normstudy.measures.measure_runs import Measurement
from normstudy.plots import draw_hessian, draw_hessian_over_training, format_with_residual

if TYPE_CHECKING:
    from tqdm import tqdm

ESTIMATES = (  # attributes of a Spectrum, and their keys in hessian.json
    "trace",
    "trace_standard_error",
    "eigen_mean",
    "eigen_mean_standard_error",
    "eigen_variance",
    "eigen_variance_standard_error",
    "max_eigen",
    "max_eigen_residual",
    "min_eigen",
    "min_eigen_residual",
)
UNSETTLED = 0.1  # an eigenvalue is reported as not converged if its residual exceeds this fraction of its size


def hessian_measurement(max_probe_factor: int) -> Measurement:
    """Return the Measurement of run_hessian.py.

    --trace_error may raise the number of trace probes to max_probe_factor times --trace_probes.
    """
    measure = functools.partial(measure_hessian, max_probe_factor=max_probe_factor)
    return Measurement("hessian", measure, draw_hessian, draw_hessian_over_training)


def measure_hessian(checkpoint: Checkpoint, args: argparse.Namespace, max_probe_factor: int) -> dict[str, Any]:
    """Compute the content of hessian.json for one checkpoint.

    Raises RunError if memory does not suffice or the loss is not finite.
    """
    start = time.perf_counter()
    subset, indices_hash = checkpoint.subset(checkpoint.dataset.train, args.samples, args.seed)
    sizes = layer_sizes(checkpoint.model)
    task = Task(checkpoint, subset, args, sizes, plan_memory(checkpoint, subset, args, sum(sizes.values())))
    batches = CountedBatches(task)
    matvec = checked_matvec(task, batches)
    gradient = measure_gradient(task, batches)
    has_batch_statistics = any("running_" in name for name, _ in checkpoint.model.named_buffers())
    announce(task, gradient.seconds)
    found = measure_spectrum(task, matvec, batches, max_probe_factor)
    content = describe(task, gradient, found) | {
        "has_batch_statistics": has_batch_statistics,
        "seconds": time.perf_counter() - start,
        "num_samples": len(subset),
        "sample_indices_sha256": indices_hash,
    }
    report(args, content)
    return content


@dataclass(frozen=True)
class Task:
    """One measurement: the network, the images, the flags, the size of each layer, and the plan for memory."""

    checkpoint: Checkpoint
    subset: Split
    args: argparse.Namespace
    layer_sizes: dict[str, int]
    plan: MemoryPlan

    @property
    def dimension(self) -> int:
        return sum(self.layer_sizes.values())

    @property
    def products(self) -> int:
        """The number of products of all probes, without those that --trace_error adds."""
        return self.args.num_probes * self.plan.lanczos_steps + self.args.trace_probes


class CountedBatches:
    """The batches of a task. Each pass over them advances the progress bar, if there is one, by one product."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.bar: tqdm | None = None

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        for images, labels in self.task.checkpoint.batches(self.task.subset, self.task.plan.batch_size):
            yield images, labels
            if self.bar is not None:
                self.bar.update(len(labels) / len(self.task.subset))

    @contextlib.contextmanager
    def counted(self, total: int, title: str, unit: str) -> Iterator[None]:
        """Show a progress bar inside a `with` block."""
        with progress_bar(total, title, unit=unit) as self.bar:
            yield
        self.bar = None

    def expect(self, products: int) -> None:
        """Set the total number of products that the bar shows."""
        if self.bar is not None:
            self.bar.total = products
            self.bar.refresh()


def checked_matvec(task: Task, batches: CountedBatches) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the product v ↦ Hv after its checks, and print their warnings. Raises RunError if one fails."""
    args, run = task.args, task.checkpoint.run
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            matvec, _ = hessian_matvec(
                task.checkpoint.model,
                batches,
                curvature=args.curvature,
                bn_mode=args.bn_mode,
                keep_graphs=task.plan.graph_bytes > 0,
            )
    except ValueError as error:
        raise RunError(f"{run.path}: {error}") from error
    for warning in caught:
        print(f"{run.path.name}: {warning.message}", file=sys.stderr, flush=True)
    return matvec


class Gradient(NamedTuple):
    """The loss, the L2 norm of its gradient, and the seconds that it took to compute them."""

    loss: float
    norm: float
    seconds: float


def measure_gradient(task: Task, batches: CountedBatches) -> Gradient:
    """Compute the Gradient over all images. Raises RunError if the loss is not finite."""
    start = time.perf_counter()
    with batches.counted(1, "gradient", unit=" pass"):
        loss, gradient = loss_and_gradient(task.checkpoint.model, batches, bn_mode=task.args.bn_mode)
    norm = torch.linalg.vector_norm(gradient).item()
    if not math.isfinite(loss):
        raise RunError(f"{task.checkpoint.run.path}: the loss is {loss} on these images")
    return Gradient(loss, norm, time.perf_counter() - start)


def announce(task: Task, gradient_seconds: float) -> None:
    """Print the number of products, about how long they will take, and the memory they need."""
    checkpoint, plan = task.checkpoint, task.plan
    gradients = 2 if plan.graph_bytes else 3  # a product takes as long as this many gradients
    least = "" if task.args.trace_error is None else "at least "
    print(
        f"{checkpoint.run.path.name} epoch {checkpoint.epoch}: {least}{task.products} matrix-vector products for "
        f"{task.dimension:,} parameters on {len(task.subset)} images ({_of_each_class(task)}), about "
        f"{_duration(gradients * gradient_seconds * task.products)} on {checkpoint.device}; "
        f"memory: {plan.batch_bytes / 1e9:.2g} GB for a batch of {plan.batch_size}, "
        + (f"{plan.graph_bytes / 1e9:.2g} GB for gradient graphs (kept for speed), " if plan.graph_bytes else "")
        + f"{plan.basis_bytes / 1e9:.2g} GB for the Lanczos vectors (on {plan.basis_device})",
        flush=True,
    )


def measure_spectrum(
    task: Task, matvec: Callable[[torch.Tensor], torch.Tensor], batches: CountedBatches, max_probe_factor: int
) -> Spectrum:
    """Estimate the Spectrum of the matrix, with the trace of each layer."""
    args = task.args
    with batches.counted(task.products, "Hessian", unit="product"):
        return spectrum(
            matvec,
            task.dimension,
            args.num_probes,
            task.plan.lanczos_steps,
            seeded_generator("hessian", args.seed),
            trace_probes=args.trace_probes,
            trace_error=args.trace_error,
            most_probes=args.num_probes + max_probe_factor * max(1, args.trace_probes),
            expect=batches.expect,
            blocks=task.layer_sizes,
            dtype=getattr(torch, args.dtype),
            device=task.checkpoint.device,
            basis_device=task.plan.basis_device,
        )


def describe(task: Task, gradient: Gradient, found: Spectrum) -> dict[str, Any]:
    """Return the part of hessian.json that holds the results."""
    return {name: getattr(found, name) for name in ESTIMATES} | {
        "loss": gradient.loss,
        "gradient_norm": gradient.norm,
        "dimension": task.dimension,
        "layer_traces": {
            name: {"trace": trace, "standard_error": error} for name, (trace, error) in found.block_traces.items()
        },
        "probes": [
            {"nodes": nodes[weights > 0].tolist(), "weights": weights[weights > 0].tolist()}
            for nodes, weights in zip(found.nodes, found.weights, strict=True)
        ],
        "products": found.products,
        "trace_samples": found.samples,
    }


def report(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """Print the results, and say which eigenvalues have not converged and whether the trace misses --trace_error."""
    trace, error, samples = content["trace"], content["trace_standard_error"], content["trace_samples"]
    edges = {
        name: (content[key], content[f"{key}_residual"])
        for name, key in (("largest", "max_eigen"), ("smallest", "min_eigen"))
    }
    spread = f"± {error:.3g} (s.e. over {samples} probes)" if samples > 1 else "(one probe, so no standard error)"
    print(
        f"trace {trace:.4g} {spread}, "
        f"largest eigenvalue {format_with_residual(*edges['largest'])}, "
        f"smallest {format_with_residual(*edges['smallest'])}, "
        f"loss {content['loss']:.4g}, {content['products']} matrix-vector products in {_duration(content['seconds'])}",
        flush=True,
    )
    if args.curvature != "hessian":
        del edges["smallest"]  # it is zero if there are more parameters than outputs
    unsettled = [name for name, (value, residual) in edges.items() if residual > UNSETTLED * abs(value)]
    if unsettled:
        print(f"not converged: the {' and the '.join(unsettled)} eigenvalue; raise --lanczos_steps", flush=True)
    if args.trace_error is not None and not error <= args.trace_error * abs(trace):
        part = error / abs(trace) if trace else math.inf
        print(f"the standard error is still {part:.0%} of the trace after {samples} probes", file=sys.stderr)


def _of_each_class(task: Task) -> str:
    """Return a text such as `13 of each class` or `12 or 13 of each class`."""
    counts = torch.bincount(task.subset.labels.cpu(), minlength=len(task.checkpoint.dataset.classes))
    few, many = int(counts.min()), int(counts.max())
    if few == many:
        return f"{many} of each class"
    return f"{few} {'or' if many == few + 1 else 'to'} {many} of each class"


def _duration(seconds: float) -> str:
    """Format a duration: 120 → 2.0 min."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} s"

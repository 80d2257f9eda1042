"""The Hessian of the training loss: the content of hessian.json for one checkpoint."""

import argparse
import functools
import math
import time
from typing import Any, NamedTuple

import torch
from scipy import stats

from normstudy.cli import RunError
from normstudy.curvature import (
    Spectrum,
    eigenpairs,
    has_running_statistics,
    layer_sizes,
    loss_and_gradient,
    parameter_scales,
    rademacher,
    ritz_values,
    spectrum,
)
from normstudy.datasets import seeded_generator
from normstudy.measures.checkpoints import Checkpoint
from normstudy.measures.hessian_memory import plan_memory
from normstudy.measures.hessian_operator import (
    Matvec,
    Progress,
    Task,
    block_order,
    checked_matvec,
    image_blocks,
    number_of_blocks,
    whole_batches,
)
from normstudy.measures.hessian_report import announce, report
from normstudy.measures.measure_runs import Measurement
from normstudy.measures.probe_store import ProbeStore
from normstudy.plots import draw_hessian, draw_hessian_over_training
from normstudy.storage import write_torch

ESTIMATES = (  # attributes of a Spectrum, and their keys in hessian.json
    "trace",
    "trace_standard_error",
    "eigen_mean",
    "eigen_mean_standard_error",
    "eigen_variance",
    "eigen_variance_standard_error",
    "trace_image_error",
    "trace_total_error",
    "eigen_mean_image_error",
    "eigen_mean_total_error",
    "max_eigen",
    "max_eigen_residual",
    "max_eigen_image_error",
    "max_eigen_cross_fitted",
    "max_eigen_cross_fitted_residual",
    "min_eigen",
    "min_eigen_residual",
)


def hessian_measurement(max_probe_factor: int) -> Measurement:
    """Return the Measurement of run_hessian.py.

    --trace_error may raise the number of trace probes to max_probe_factor times --trace_probes.
    """
    measure = functools.partial(measure_hessian, max_probe_factor=max_probe_factor)
    return Measurement("hessian", measure, draw_hessian, draw_hessian_over_training)


def measure_hessian(checkpoint: Checkpoint, args: argparse.Namespace, max_probe_factor: int) -> dict[str, Any]:
    """Compute the content of hessian.json for one checkpoint.

    Raises RunError if memory does not suffice, if a check fails, or if the loss is not finite.
    """
    start = time.perf_counter()
    subset = checkpoint.training_subset(args)
    images, block_sizes = block_order(subset.images, number_of_blocks(len(subset.images), args.image_blocks))
    sizes = layer_sizes(checkpoint.model)
    plan = plan_memory(checkpoint, images, args, sum(sizes.values()))
    task, progress = Task(checkpoint, images, block_sizes, subset.pool(), args, sizes, plan), Progress()
    matvec = checked_matvec(task, progress)
    gradient = measure_gradient(task, progress)
    announce(task, gradient.seconds)
    found = measure_spectrum(task, matvec, progress, max_probe_factor)
    content = describe(task, gradient, found)
    if args.eigenvectors:
        content["eigenvectors"] = measure_eigenvectors(task, matvec, gradient, progress)
    if args.layer_eigenvalues:
        content["layer_eigenvalues"] = measure_layer_eigenvalues(task, matvec, progress)
    content |= {
        "has_batch_statistics": has_running_statistics(checkpoint.model),
        "seconds": time.perf_counter() - start,
        **subset.describe(),
    }
    report(args, content)
    return content


class Gradient(NamedTuple):
    """The loss, its gradient (dimension,), and the seconds that it took to compute them."""

    loss: float
    vector: torch.Tensor
    seconds: float


def measure_gradient(task: Task, progress: Progress) -> Gradient:
    """Compute the Gradient over all images. Raises RunError if the loss is not finite."""
    start = time.perf_counter()
    batches = whole_batches(task, progress)
    with progress.shown(1, "gradient", unit=" pass"):
        loss, gradient = loss_and_gradient(task.checkpoint.model, batches, bn_mode=task.args.bn_mode)
    if not math.isfinite(loss):
        raise RunError(f"{task.checkpoint.run.path}: the loss is {loss} on these images")
    return Gradient(loss, gradient, time.perf_counter() - start)


def measure_spectrum(task: Task, matvec: Matvec, progress: Progress, max_probe_factor: int) -> Spectrum:
    """Estimate the Spectrum of the matrix, with the trace of each layer.

    After each probe, its values are saved next to the measurement, so that a stopped measurement continues.
    """
    args = task.args
    store = ProbeStore(task.checkpoint, args)
    with progress.shown(task.products, "Hessian", unit="product"):
        state = store.load()
        if state is not None and progress.bar is not None:
            progress.bar.update(state.products)
        found = spectrum(
            matvec,
            task.dimension,
            args.num_probes,
            task.plan.lanczos_steps,
            seeded_generator("hessian", args.seed),
            trace_probes=args.trace_probes,
            trace_error=args.trace_error,
            most_probes=args.num_probes + max_probe_factor * max(1, args.trace_probes),
            expect=progress.expect,
            blocks=task.layer_sizes,
            image_blocks=image_blocks(task, progress),
            state=state,
            save=store.save,
            dtype=getattr(torch, args.dtype),
            device=task.checkpoint.device,
            basis_device=task.plan.basis_device,
        )
    store.remove()
    return found


def measure_eigenvectors(task: Task, matvec: Matvec, gradient: Gradient, progress: Progress) -> dict[str, Any]:
    """Compute the largest eigenvalues, and what their eigenvectors share with the gradient and with each layer.

    The share of the gradient is ⟨g, u⟩²/‖g‖² (Gur-Ari 2018, "Gradient Descent Happens in a Tiny Subspace"), with D g in
    place of g for a scaled matrix. With --save_eigenvectors, the vectors are written next to the measurement.
    """
    args, checkpoint = task.args, task.checkpoint
    with progress.shown(2 * args.eigenvectors + 10, "eigenvectors", unit="product"):
        values, vectors, residuals = eigenpairs(
            matvec,
            task.dimension,
            min(args.eigenvectors, task.dimension),
            seeded_generator("eigenvectors", args.seed),
            dtype=getattr(torch, args.dtype),
            device=checkpoint.device,
            basis_device=task.plan.basis_device,
            expect=lambda products: progress.expect(max(products, 2 * args.eigenvectors + 10)),
        )
    scaled = gradient.vector * parameter_scales(checkpoint.model, args.scale)
    shares = (vectors @ scaled.to(vectors)).double().square() / scaled.double().square().sum().cpu().to(vectors.device)
    squares = torch.stack([part.double().square().sum(1) for part in vectors.split(list(task.layer_sizes.values()), 1)])
    blocks = image_blocks(task, Progress())
    errors: list[float | None] = [None] * len(values)
    if blocks is not None:
        for index, vector in enumerate(vectors):
            _, forms, _ = blocks.product_and_forms(vector.to(checkpoint.device), [task.dimension])
            variance = (1 - blocks.pool_fraction) * forms.var(correction=1).item()
            errors[index] = math.sqrt(variance / len(forms))
    if args.save_eigenvectors:
        path = checkpoint.target.with_name(f"{checkpoint.target.stem}_vectors.pt")
        write_torch(path, {"values": values, "vectors": vectors.cpu(), "residuals": residuals})
    return {
        "values": values.tolist(),
        "residuals": residuals.tolist(),
        "image_errors": errors,
        "gradient_shares": shares.tolist(),
        "gradient_share": shares.sum().item(),
        "layer_shares": dict(zip(task.layer_sizes, squares.tolist(), strict=True)),
    }


def measure_layer_eigenvalues(task: Task, matvec: Matvec, progress: Progress) -> dict[str, dict[str, float]]:
    """Compute the largest eigenvalue of each layer's diagonal block, with its residual."""
    sizes = task.layer_sizes
    steps = {name: min(task.plan.lanczos_steps, size) for name, size in sizes.items()}
    found, start = {}, 0
    generator = seeded_generator("layers", task.args.seed)
    with progress.shown(sum(steps.values()), "layers", unit="product"):
        for name, size in sizes.items():
            block = slice(start, start + size)
            start += size

            def product(vector: torch.Tensor, block: slice = block) -> torch.Tensor:
                whole = torch.zeros(task.dimension, dtype=vector.dtype, device=vector.device)
                whole[block] = vector
                return matvec(whole)[block]

            probe = rademacher(size, generator, getattr(torch, task.args.dtype)).to(task.checkpoint.device)
            nodes, _, residuals = ritz_values(product, probe, steps[name], task.plan.basis_device)
            found[name] = {"max_eigen": nodes[-1].item(), "max_eigen_residual": residuals[-1].item()}
    return found


def describe(task: Task, gradient: Gradient, found: Spectrum) -> dict[str, Any]:
    """Return the part of hessian.json that holds the results."""
    scales = parameter_scales(task.checkpoint.model, task.args.scale)
    half = stats.t.ppf(0.975, found.trace_degrees_of_freedom) * found.trace_total_error
    return {name: getattr(found, name) for name in ESTIMATES} | {
        "trace_interval": [found.trace - half, found.trace + half] if math.isfinite(half) else None,
        "loss": gradient.loss,
        "gradient_norm": torch.linalg.vector_norm(gradient.vector).item(),
        "dimension": task.dimension,
        "zero_scale_directions": int((scales == 0).sum()),
        "image_blocks": len(task.block_sizes),
        "block_size": max(task.block_sizes),
        "statistics_size": task.statistics_size,
        "layer_traces": {
            name: {"trace": trace, "standard_error": error}
            | (
                {"image_error": found.block_errors[name].image, "total_error": found.block_errors[name].total}
                if name in found.block_errors
                else {}
            )
            for name, (trace, error) in found.block_traces.items()
        },
        "probes": [
            {"nodes": nodes[weights > 0].tolist(), "weights": weights[weights > 0].tolist()}
            for nodes, weights in zip(found.nodes, found.weights, strict=True)
        ],
        "products": found.products,
        "trace_samples": found.samples,
    }

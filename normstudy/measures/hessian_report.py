"""The lines that run_hessian.py prints: the work ahead before a measurement, and the results after it."""

import argparse
import math
import sys
from collections.abc import Mapping
from typing import Any

import torch

from normstudy.cli import format_duration
from normstudy.measures.hessian_operator import Task
from normstudy.plots import format_with_residual

UNSETTLED = 0.1  # an eigenvalue is reported as not converged if its residual exceeds this fraction of its size


def announce(task: Task, gradient_seconds: float) -> None:
    """Print the number of products, about how long they will take, and the memory they need."""
    checkpoint, plan = task.checkpoint, task.plan
    gradients = 2 if plan.graph_bytes else 3  # a product takes as long as this many gradients
    least = "" if task.args.trace_error is None else "at least "
    print(
        f"{checkpoint.run.path.name} epoch {checkpoint.epoch}: {least}{task.products} matrix-vector products for "
        f"{task.dimension:,} parameters on {len(task.images)} images ({_of_each_class(task)}{_blocks(task)}), about "
        f"{format_duration(gradients * gradient_seconds * task.products)} on {checkpoint.device}; "
        f"memory: {plan.batch_bytes / 1e9:.2g} GB for a batch of {plan.batch_size}, "
        + (f"{plan.graph_bytes / 1e9:.2g} GB for gradient graphs (kept for speed), " if plan.graph_bytes else "")
        + f"{plan.basis_bytes / 1e9:.2g} GB for the Lanczos vectors (on {plan.basis_device})",
        flush=True,
    )


def report(args: argparse.Namespace, content: dict[str, Any]) -> None:
    """Print the results, and say which eigenvalues have not converged and whether the trace misses --trace_error."""
    trace, error, samples = content["trace"], content["trace_standard_error"], content["trace_samples"]
    edges = {
        name: (content[key], content[f"{key}_residual"])
        for name, key in (("largest", "max_eigen"), ("smallest", "min_eigen"))
    }
    total = content["trace_total_error"]
    spread = f"± {error:.3g} (s.e. over {samples} probes)" if samples > 1 else "(one probe, so no standard error)"
    if math.isfinite(total):
        spread = f"± {total:.3g} (s.e. over {samples} probes and {content['image_blocks']} blocks of images)"
    if content["statistics_size"] is not None and content["has_batch_statistics"]:
        spread += f", statistics of {content['statistics_size']} images"
    print(
        f"trace {trace:.4g} {spread}, "
        f"largest eigenvalue {format_with_residual(*edges['largest'])}{_cross_fitted(content)}, "
        f"smallest {format_with_residual(*edges['smallest'])}, "
        f"loss {content['loss']:.4g}, {content['products']} matrix-vector products in "
        f"{format_duration(content['seconds'])}",
        flush=True,
    )
    if "eigenvectors" in content:
        print(_outliers(content["eigenvectors"]), flush=True)
    if args.curvature != "hessian":
        del edges["smallest"]  # it is zero if there are more parameters than outputs
    if math.isfinite(content["max_eigen_cross_fitted"]):  # its eigenvectors are those of eigenvalues like the largest
        edges["cross-fitted"] = content["max_eigen"], content["max_eigen_cross_fitted_residual"]
    unsettled = [name for name, (value, residual) in edges.items() if residual > UNSETTLED * abs(value)]
    if unsettled:
        print(f"not converged: the {' and the '.join(unsettled)} eigenvalue; raise --lanczos_steps", flush=True)
    if args.trace_error is not None and not error <= args.trace_error * abs(trace):
        part = error / abs(trace) if trace else math.inf
        print(f"the standard error is still {part:.0%} of the trace after {samples} probes", file=sys.stderr)


def _outliers(found: Mapping[str, Any]) -> str:
    """Return a text with the largest eigenvalues, their errors, and the share of the gradient in their eigenvectors."""
    shown = []
    for value, residual, error in zip(found["values"], found["residuals"], found["image_errors"], strict=True):
        of_images = "" if error is None else f" ± {error:.2g}"
        shown.append(
            f"{value:.4g}{of_images}" + (f" (residual {residual:.1g})" if residual > UNSETTLED * value else "")
        )
    errors = "" if found["image_errors"][0] is None else " (± s.e. over blocks of images)"
    share = f"{found['gradient_share']:.0%} of the squared gradient is in the span of their eigenvectors"
    return f"largest eigenvalues{errors}: {', '.join(shown)}; {share}"


def _cross_fitted(content: Mapping[str, Any]) -> str:
    """Return a text with the cross-fitted eigenvalue, if there is one."""
    value = content["max_eigen_cross_fitted"]
    return f", {value:.4g} cross-fitted to other images" if math.isfinite(value) else ""


def _of_each_class(task: Task) -> str:
    """Return a text such as `13 of each class` or `12 or 13 of each class`."""
    counts = torch.bincount(task.images.labels.cpu(), minlength=len(task.checkpoint.dataset.classes))
    few, many = int(counts.min()), int(counts.max())
    if few == many:
        return f"{many} of each class"
    return f"{few} {'or' if many == few + 1 else 'to'} {many} of each class"


def _blocks(task: Task) -> str:
    count, size = len(task.block_sizes), max(task.block_sizes)
    return f", {count} blocks of {size}" if count > 1 else ""

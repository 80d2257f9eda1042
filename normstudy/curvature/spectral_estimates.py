"""Estimates of the spectrum of a symmetric matrix, with errors.

References:
    M. F. Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines",
    Communications in Statistics - Simulation and Computation 19 (1990).
    S. Ubaru, J. Chen and Y. Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature", SIAM Journal on
    Matrix Analysis and Applications 38 (2017).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .krylov_space import Matvec, krylov


@dataclass(frozen=True)
class Spectrum:
    """Estimates of the spectrum of a symmetric matrix of dimension n with eigenvalues λ.

    Standard errors are taken over probes and are NaN for a single probe. The distance from `max_eigen` or `min_eigen`
    to the nearest eigenvalue is at most its residual.

    Attributes:
        trace: Σλ.
        eigen_mean: Σλ/n.
        eigen_variance: Σλ²/n − (Σλ/n)².
        max_eigen: The largest Ritz value of all Lanczos probes.
        min_eigen: The smallest Ritz value of all Lanczos probes.
        nodes: Quadrature nodes of each Lanczos probe, (num_probes, steps), float64.
        weights: Quadrature weights, of the same shape. If the Krylov space of a probe was exhausted early, its row is
            padded with nodes of weight 0.
        block_traces: {name: (trace, standard error)} of diagonal blocks. The traces add up to `trace`.
        products: Number of matrix-vector products.
        samples: Number of probes, both Lanczos and trace probes.
    """

    trace: float
    trace_standard_error: float
    eigen_mean: float
    eigen_mean_standard_error: float
    eigen_variance: float
    eigen_variance_standard_error: float
    max_eigen: float
    max_eigen_residual: float
    min_eigen: float
    min_eigen_residual: float
    nodes: torch.Tensor
    weights: torch.Tensor
    block_traces: dict[str, tuple[float, float]]
    products: int
    samples: int


def rademacher(dimension: int, generator: torch.Generator, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    """Draw a vector (dimension,) of independent random signs ±1 on the generator's device."""
    signs = torch.randint(0, 2, (dimension,), generator=generator, device=generator.device, dtype=torch.int8)
    return signs.to(dtype).mul_(2).sub_(1)


def _mean_and_error(samples: torch.Tensor) -> tuple[float, float]:
    """Return the mean of samples (probes,) and its standard error, which is NaN for a single probe."""
    error = samples.std(correction=1) / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
    return samples.mean().item(), float(error)


def _probes_for(trace_error: float, traces: torch.Tensor) -> int:
    """Estimate the number of probes at which the standard error of the trace is at most `trace_error` times the trace.

    The estimate uses the traces (probes,) so far. It is their own number if they are enough, and otherwise at most
    twice that number, because it is uncertain.
    """
    mean, error = _mean_and_error(traces)
    if error <= trace_error * abs(mean):
        return len(traces)
    needed = len(traces) * (error / (trace_error * mean)) ** 2 if mean and math.isfinite(error) else math.inf
    return max(len(traces) + 1, math.ceil(min(2 * len(traces), needed)))


def spectrum(
    matvec: Matvec,
    dimension: int,
    num_probes: int,
    num_steps: int,
    generator: torch.Generator,
    *,
    trace_probes: int = 0,
    trace_error: float | None = None,
    most_probes: int | None = None,
    expect: Callable[[int], object] | None = None,
    blocks: Mapping[str, int] | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    basis_device: torch.device | str | None = None,
) -> Spectrum:
    """Estimate the spectrum of a symmetric matrix from Rademacher probes.

    The matrix is used only through its products. Lanczos probes take `num_steps` products each (Ubaru, Chen & Saad
    2017). Trace probes take one product each, which is enough for the trace (Hutchinson 1990) and the second moment.

    Args:
        matvec: Function v ↦ Av on vectors (dimension,), for a symmetric matrix A.
        dimension: Number of rows of A.
        num_probes: Number of Lanczos probes, at least 1.
        num_steps: Maximum number of Lanczos steps per probe. More steps resolve the ends of the spectrum better.
        generator: Source of the random signs.
        trace_probes: Number of trace probes in addition to the Lanczos probes.
        trace_error: If given, trace probes are added until the standard error of the trace is at most this fraction of
            the trace, or until there are `most_probes` probes.
        most_probes: Maximum number of probes in all. Required with `trace_error`, for a trace near zero.
        expect: With `trace_error`, called as expect(products) with each new estimate of the total number of products.
        blocks: {name: size} of consecutive diagonal blocks whose traces are estimated. The sizes add up to
            `dimension`. Defaults to one block, "all".
        dtype: Dtype of the vectors passed to `matvec`.
        device: Device of the vectors passed to `matvec`.
        basis_device: Device that stores the Lanczos vectors (num_steps, dimension). Defaults to `device`.

    Raises:
        TypeError: If `generator` is not a torch.Generator.
        ValueError: If `num_probes` or `num_steps` is less than 1, if `trace_probes` is negative, if `trace_error` is
            not positive or comes without `most_probes`, or if the sizes of `blocks` do not add up to `dimension`.
        ArithmeticError: If a product is not finite.
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError("generator must be a torch.Generator, such as torch.Generator().manual_seed(0)")
    if num_probes < 1 or trace_probes < 0:
        raise ValueError("num_probes must be at least 1, and trace_probes must not be negative")
    if trace_error is not None and not (trace_error > 0 and most_probes):
        raise ValueError("trace_error must be positive and needs most_probes, a limit if the trace is near zero")
    blocks = {"all": dimension} if blocks is None else blocks
    if sum(blocks.values()) != dimension:
        raise ValueError(f"the sizes of blocks add up to {sum(blocks.values())}; they must add up to {dimension}")
    quadratures, products = [], 0
    block_samples: list[torch.Tensor] = []  # vᵀHv of each probe v, split by blocks
    square_samples: list[torch.Tensor] = []  # ‖Hv‖² of each probe v
    wanted = num_probes + trace_probes
    while len(square_samples) < wanted:
        index = len(square_samples)
        probe = rademacher(dimension, generator, dtype).to(device)
        found = krylov(matvec, probe, num_steps if index < num_probes else 1, basis_device)
        if index < num_probes:
            quadratures.append(found.quadrature())
        products += len(found.diagonal)
        image = found.first_product
        del found  # the basis is large
        parts = (probe * image).split(list(blocks.values()))
        block_samples.append(torch.stack([part.sum() for part in parts]).cpu().double())
        square_samples.append(torch.linalg.vector_norm(image).cpu().double() ** 2)
        if len(square_samples) == wanted and trace_error is not None and most_probes is not None:
            enough = _probes_for(trace_error, torch.stack(block_samples).sum(1))
            wanted = min(enough, max(most_probes, wanted))
            if expect is not None:
                expect(products + wanted - len(square_samples))
    by_block, squares = torch.stack(block_samples), torch.stack(square_samples)
    block_traces = {name: _mean_and_error(samples) for name, samples in zip(blocks, by_block.T, strict=True)}
    return _summarize(dimension, by_block.sum(1), squares, quadratures, block_traces, products)


def _summarize(
    dimension: int,
    traces: torch.Tensor,
    squares: torch.Tensor,
    quadratures: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    block_traces: dict[str, tuple[float, float]],
    products: int,
) -> Spectrum:
    """Combine the values vᵀHv and ‖Hv‖² (probes,) of all probes, and the quadratures of the Lanczos probes."""
    trace, trace_error = _mean_and_error(traces)
    mean, mean_error = trace / dimension, trace_error / dimension
    # On average, the square of an estimated mean is too large by the variance of the estimate.
    excess = 0.0 if math.isnan(mean_error) else mean_error**2
    variance = (squares.mean() / dimension).item() - mean**2 + excess
    _, variance_error = _mean_and_error(squares / dimension - 2 * mean * traces / dimension)
    largest = max(((nodes[-1], residuals[-1]) for nodes, _, residuals in quadratures), key=lambda pair: pair[0])
    smallest = min(((nodes[0], residuals[0]) for nodes, _, residuals in quadratures), key=lambda pair: pair[0])
    steps = max(len(nodes) for nodes, _, _ in quadratures)
    return Spectrum(
        trace=trace,
        trace_standard_error=trace_error,
        eigen_mean=mean,
        eigen_mean_standard_error=mean_error,
        eigen_variance=max(variance, 0.0),
        eigen_variance_standard_error=variance_error,
        max_eigen=largest[0].item(),
        max_eigen_residual=largest[1].item(),
        min_eigen=smallest[0].item(),
        min_eigen_residual=smallest[1].item(),
        nodes=torch.stack([_fill(nodes, steps, float(nodes[-1])) for nodes, _, _ in quadratures]),
        weights=torch.stack([_fill(weights, steps, 0.0) for _, weights, _ in quadratures]),
        block_traces=block_traces,
        products=products,
        samples=len(squares),
    )


def _fill(values: torch.Tensor, size: int, value: float) -> torch.Tensor:
    """Pad values (m,) with `value` to (size,)."""
    return F.pad(values, (0, size - len(values)), value=value)

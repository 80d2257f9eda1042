"""Estimates of a symmetric matrix's spectrum, with errors."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.nn import functional as F

from .krylov_space import Matvec, krylov


@dataclass(frozen=True)
class Spectrum:
    """Estimates of a symmetric matrix's spectrum, with standard errors over probes (NaN for a single one).

    trace = Σλ, eigen_mean = Σλ/n, eigen_variance = Σλ²/n − (Σλ/n)². max_eigen and min_eigen are the outermost Ritz
    values of all probes; an eigenvalue lies within their residual. nodes, weights (probes, steps) float64: the
    quadrature of each probe that took all steps; a Krylov space that finished early is filled up with weight 0.
    block_traces: {name: (trace, standard error)} of diagonal blocks, which add up to the trace. products: the number
    of matrix-vector products; samples: the number of probes.
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
    """A vector (dimension,) of independent signs, drawn on the generator's device."""
    signs = torch.randint(0, 2, (dimension,), generator=generator, device=generator.device, dtype=torch.int8)
    return signs.to(dtype).mul_(2).sub_(1)


def _mean_and_error(samples: torch.Tensor) -> tuple[float, float]:
    """The mean over probes and its standard error (NaN for a single probe); samples (probes,) float64."""
    error = samples.std(correction=1) / math.sqrt(len(samples)) if len(samples) > 1 else math.nan
    return samples.mean().item(), float(error)


def _probes_for(trace_error: float, traces: torch.Tensor) -> int:
    """How many probes bring the standard error of the trace to this part of it, judged by the traces (probes,) so far.

    Their own number if they are enough, and at most twice as many, for the rest is a guess.
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
    """The Spectrum of a symmetric matrix (dimension, dimension) from Rademacher probes.

    num_probes take num_steps of Lanczos each (Ubaru, Chen & Saad 2017); trace_probes more take one product each,
    which is all that the trace (Hutchinson 1990) and the second moment need. With trace_error, probes are added until
    the trace's standard error is at most this part of it, or there are most_probes in all; expect(products) is then
    told how many products these may take. blocks: {name: size} in the order of the vector, sizes adding up to the
    dimension. dtype and device: of the vectors that matvec is given.
    Raises ValueError for no probes, for an error that is not positive or has no most_probes, and for blocks that do
    not fit, else as `krylov` does.
    """
    if not isinstance(generator, torch.Generator):
        raise TypeError("the generator is one of PyTorch's: torch.Generator().manual_seed(0)")
    if num_probes < 1 or trace_probes < 0:
        raise ValueError("at least one probe must take the steps of Lanczos")
    if trace_error is not None and not (trace_error > 0 and most_probes):
        raise ValueError("trace_error is positive, and needs most_probes, where to stop if the trace is near zero")
    blocks = {"all": dimension} if blocks is None else blocks
    if sum(blocks.values()) != dimension:
        raise ValueError(f"the blocks have {sum(blocks.values())} entries, the matrix {dimension}")
    quadratures, products = [], 0
    block_samples: list[torch.Tensor] = []  # of each probe v: vᵀHv, split by blocks
    square_samples: list[torch.Tensor] = []  # of each probe: ‖Hv‖²
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
    """The Spectrum from the probes' values vᵀHv and ‖Hv‖² (probes,), and their quadratures."""
    trace, trace_error = _mean_and_error(traces)
    mean, mean_error = trace / dimension, trace_error / dimension
    # The square of an estimated mean is too large by its variance.
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
    """values (m,), filled up to (size,)."""
    return F.pad(values, (0, size - len(values)), value=value)

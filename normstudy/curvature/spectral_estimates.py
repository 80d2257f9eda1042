"""Estimates of the spectrum of a symmetric matrix, with errors.

References:
    M. F. Hutchinson, "A Stochastic Estimator of the Trace of the Influence Matrix for Laplacian Smoothing Splines",
    Communications in Statistics - Simulation and Computation 19 (1990).
    S. Ubaru, J. Chen and Y. Saad, "Fast Estimation of tr(f(A)) via Stochastic Lanczos Quadrature", SIAM Journal on
    Matrix Analysis and Applications 38 (2017).
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch.nn import functional as F

from .image_errors import ImageBlocks, LayoutErrors, cross_fitted_eigenvalue, layout_errors
from .krylov_space import Matvec, krylov


@dataclass(frozen=True)
class Spectrum:
    """Estimates of the spectrum of a symmetric matrix of dimension n with eigenvalues λ.

    Standard errors are taken over probes and are NaN for a single probe. Image errors are taken over blocks of images,
    and total errors over both (see `layout_errors`); they are NaN without blocks. The distance from `max_eigen` or
    `min_eigen` to the nearest eigenvalue is at most its residual.

    Attributes:
        trace: Σλ.
        eigen_mean: Σλ/n.
        eigen_variance: Σλ²/n − (Σλ/n)². With blocks of images, from products of different blocks, so that it is that of
            all images and not larger.
        max_eigen: The largest Ritz value of all Lanczos probes.
        min_eigen: The smallest Ritz value of all Lanczos probes.
        nodes: Quadrature nodes of each Lanczos probe, (num_probes, steps), float64.
        weights: Quadrature weights, of the same shape. If the Krylov space of a probe was exhausted early, its row is
            padded with nodes of weight 0.
        block_traces: {name: (trace, standard error)} of diagonal blocks. The traces add up to `trace`.
        block_errors: {name: LayoutErrors} of the same traces.
        trace_degrees_of_freedom: Those of `trace_total_error`, for a t-interval.
        max_eigen_image_error: Standard error of uᵀHu over blocks of images, u being the Ritz vector of `max_eigen`.
        max_eigen_cross_fitted: The value uᵀH_B u of the top eigenvector u of one half of the images and the matrix of
            the other half, averaged over both orders. `max_eigen` is biased upwards, this value downwards.
        max_eigen_cross_fitted_residual: The larger residual of the two eigenvalues whose eigenvectors are used. If
            it is large, these are not the top eigenvectors, and the value means little.
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
    trace_image_error: float = math.nan
    trace_total_error: float = math.nan
    trace_degrees_of_freedom: float = math.nan
    eigen_mean_image_error: float = math.nan
    eigen_mean_total_error: float = math.nan
    max_eigen_image_error: float = math.nan
    max_eigen_cross_fitted: float = math.nan
    max_eigen_cross_fitted_residual: float = math.nan
    block_errors: dict[str, LayoutErrors] = field(default_factory=dict)


@dataclass
class ProbeState:
    """The finished probes of `spectrum`, from which it can continue. All fields are plain tensors, numbers and lists.

    Attributes:
        forms: vᵀH_b v of each probe v and block b of images, split by `blocks`: (image blocks, blocks) each.
        squares: ‖Hv‖² of each probe, zero-dimensional.
        quadratures: (nodes, weights, residuals) of each Lanczos probe.
        products: Number of products so far.
        top: Largest Ritz value so far.
        top_vector: Its Ritz vector (dimension,), kept only with blocks of images.
        generator: State of the generator after the last finished probe.
        wanted: Number of probes to take, as far as it is known.
    """

    forms: list[torch.Tensor] = field(default_factory=list)
    squares: list[torch.Tensor] = field(default_factory=list)
    quadratures: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]] = field(default_factory=list)
    products: int = 0
    top: float = -math.inf
    top_vector: torch.Tensor | None = None
    generator: torch.Tensor | None = None
    wanted: int = 0


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
    image_blocks: ImageBlocks | None = None,
    state: ProbeState | None = None,
    save: Callable[[ProbeState], object] | None = None,
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
        image_blocks: The same matrix as a mean over blocks of images, for image errors. The first product of each probe
            is then computed block by block. The cross-fitted eigenvalue takes num_steps + 2 further products with half
            of the blocks, and the error of `max_eigen` one product.
        state: Finished probes of a stopped call with the same arguments, which are not repeated.
        save: Called as save(state) after each probe.
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
    state = ProbeState() if state is None else state
    if state.generator is not None:
        generator.set_state(state.generator)
    state.wanted = max(state.wanted, num_probes + trace_probes)
    shares = torch.tensor([1.0] if image_blocks is None else image_blocks.shares, dtype=torch.float64)
    while True:
        if len(state.squares) >= state.wanted and trace_error is not None and most_probes is not None:
            traces = (torch.stack(state.forms).sum(2) * shares).sum(1)
            state.wanted = min(_probes_for(trace_error, traces), max(most_probes, state.wanted))
            if expect is not None:
                expect(state.products + state.wanted - len(state.squares))
        if len(state.squares) >= state.wanted:
            break
        probe = rademacher(dimension, generator, dtype).to(device)
        steps = num_steps if len(state.squares) < num_probes else 0
        _add_probe(state, matvec, probe, steps, list(blocks.values()), image_blocks, basis_device)
        state.generator = generator.get_state()
        if save is not None:
            save(state)
    forms = torch.stack(state.forms)  # (probes, image blocks, blocks)
    squares = torch.stack(state.squares)
    if image_blocks is None:
        summary = _summarize(dimension, forms, shares, squares, state.quadratures, list(blocks))
        return replace(summary, products=state.products)
    fraction, products = image_blocks.pool_fraction, state.products
    errors = {name: layout_errors(forms[:, :, index], fraction) for index, name in enumerate(blocks)}
    total = layout_errors(forms.sum(2), fraction)
    cross_fitted = cross_residual = max_error = math.nan
    if len(image_blocks) > 1 and state.top_vector is not None:
        top_vector = state.top_vector.to(device)
        _, top_forms, _ = image_blocks.product_and_forms(top_vector, [dimension])
        max_error = math.sqrt((1 - fraction) * top_forms.var(correction=1).item() / len(top_forms))
        steps = math.ceil(num_steps / 2)
        found = cross_fitted_eigenvalue(image_blocks.halves, top_vector, steps, basis_device)
        cross_fitted, cross_residual = found.value, found.residual
        products += 1 + math.ceil(found.products / 2)
    return replace(
        _summarize(dimension, forms, shares, squares, state.quadratures, list(blocks), total.total),
        products=products,
        trace_image_error=total.image,
        trace_total_error=total.total,
        trace_degrees_of_freedom=total.degrees,
        eigen_mean_image_error=total.image / dimension,
        eigen_mean_total_error=total.total / dimension,
        max_eigen_image_error=max_error,
        max_eigen_cross_fitted=cross_fitted,
        max_eigen_cross_fitted_residual=cross_residual,
        block_errors=errors,
    )


def _add_probe(
    state: ProbeState,
    matvec: Matvec,
    probe: torch.Tensor,
    num_steps: int,
    sizes: list[int],
    image_blocks: ImageBlocks | None,
    basis_device: torch.device | str | None,
) -> None:
    """Add a trace probe (num_steps=0) or a Lanczos probe to the state."""
    image = forms = squares = None
    if image_blocks is not None:
        image, forms, squares = image_blocks.product_and_forms(probe, sizes)
        state.products += num_steps == 0
    if num_steps or image is None:
        space = krylov(matvec, probe, max(1, num_steps), basis_device, image)
        image = space.first_product
        state.products += len(space.diagonal)
        if num_steps:
            state.quadratures.append(space.quadrature())
            largest = float(state.quadratures[-1][0][-1])
            if image_blocks is not None and largest > state.top:
                state.top, state.top_vector = largest, space.largest_ritz_vector().cpu()
        del space  # the basis is large
    square = torch.linalg.vector_norm(image).cpu().double() ** 2
    if image_blocks is None or forms is None or squares is None:
        forms = torch.stack([part.sum() for part in (probe * image).split(sizes)]).cpu().double()[None]
    elif len(image_blocks) > 1:
        shares = torch.tensor(image_blocks.shares, dtype=torch.float64)
        between = (square - (shares.square() * squares).sum()) / (1 - shares.square().sum())  # of different blocks
        square = between + image_blocks.pool_fraction * (square - between)
    state.forms.append(forms)
    state.squares.append(square)


def _summarize(
    dimension: int,
    forms: torch.Tensor,
    shares: torch.Tensor,
    squares: torch.Tensor,
    quadratures: list[tuple[torch.Tensor, torch.Tensor, torch.Tensor]],
    names: list[str],
    total_error: float = math.nan,
) -> Spectrum:
    """Combine forms vᵀH_b v (probes, image blocks, names), ‖Hv‖² (probes,) and the quadratures of Lanczos probes.

    total_error: that of the trace, if it is known.
    """
    by_name = torch.einsum("pbn,b->pn", forms, shares)
    block_traces = {name: _mean_and_error(values) for name, values in zip(names, by_name.T, strict=True)}
    traces = by_name.sum(1)
    trace, trace_error = _mean_and_error(traces)
    mean, mean_error = trace / dimension, trace_error / dimension
    # On average, the square of an estimated mean is too large by the variance of the estimate.
    known_error = mean_error if math.isnan(total_error) else total_error / dimension
    excess = 0.0 if math.isnan(known_error) else known_error**2
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
        products=0,
        samples=len(squares),
    )


def _fill(values: torch.Tensor, size: int, value: float) -> torch.Tensor:
    """Pad values (m,) with `value` to (size,)."""
    return F.pad(values, (0, size - len(values)), value=value)

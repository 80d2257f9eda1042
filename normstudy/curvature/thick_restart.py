"""The largest eigenvalues of a symmetric matrix and their eigenvectors, in bounded memory.

Reference: K. Wu and H. Simon, "Thick-Restart Lanczos Method for Large Symmetric Eigenvalue Problems", SIAM Journal on
Matrix Analysis and Applications 22 (2000).
"""

import math
from collections.abc import Callable

import torch

from .krylov_space import Matvec

COLUMNS = 1 << 20  # of the basis that are rotated at once


def eigenpairs(
    matvec: Matvec,
    dimension: int,
    count: int,
    generator: torch.Generator,
    *,
    tolerance: float = 1e-3,
    max_products: int | None = None,
    basis_size: int | None = None,
    dtype: torch.dtype = torch.float64,
    device: torch.device | str = "cpu",
    basis_device: torch.device | str | None = None,
    expect: Callable[[int], object] | None = None,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Compute the algebraically largest eigenvalues and their eigenvectors by Lanczos with thick restarts.

    When the basis is full, it is replaced with its best Ritz vectors, so that memory stays at (basis_size + 1) vectors.
    The iteration ends when all residuals are small enough, or after `max_products`; look at the residuals. Of equal
    eigenvalues, it may miss copies.

    Args:
        matvec: Function v ↦ Av on vectors (dimension,), for a symmetric matrix A.
        dimension: Number of rows of A.
        count: Number of eigenvalues, at most `dimension`.
        generator: Source of the start vector.
        tolerance: Largest residual, relative to the largest eigenvalue in absolute value.
        max_products: Maximum number of products, at least basis_size. Defaults to 20 · basis_size.
        basis_size: Number of vectors between restarts. Defaults to 2 · count + 10, at most `dimension`.
        dtype: Dtype of the vectors.
        device: Device of the vectors passed to `matvec`.
        basis_device: Device that stores the basis. Defaults to `device`.
        expect: Called as expect(products) after each product.

    Returns:
        (values, vectors, residuals): (count,) in descending order, float64 on the CPU; (count, dimension) unit vectors,
        one per row, on `basis_device`; ‖Av − λv‖ (count,), up to rounding, float64 on the CPU.

    Raises:
        ValueError: If `count` is not from 1 to `dimension`, or if `basis_size` is not larger than `count` (up to
            `dimension`).
        ArithmeticError: If a product is not finite.
    """
    size = min(dimension, 2 * count + 10 if basis_size is None else basis_size)
    if not 1 <= count <= dimension:
        raise ValueError(f"count is {count}; it must be from 1 to {dimension}")
    if size <= count < dimension or size < count:
        raise ValueError(f"basis_size={size} must be larger than count={count}")
    most = 20 * size if max_products is None else max(max_products, size)
    basis = torch.zeros(min(size + 1, dimension), dimension, dtype=dtype, device=basis_device or device)
    projected = torch.zeros(size, size, dtype=torch.float64)  # the matrix in the basis
    epsilon = torch.finfo(dtype).eps
    finished = 10 * math.sqrt(dimension) * epsilon
    basis[0] = _random_direction(basis[:0], generator)
    known, products, scale, dropped = 0, 0, 0.0, 0.0
    while True:
        for step in range(known, size):
            rest = matvec(basis[step].to(device)).to(basis)
            products += 1
            if expect is not None:
                expect(products)
            column = torch.zeros(step + 1, dtype=torch.float64)
            for _ in range(2):
                coefficients = basis[: step + 1] @ rest
                rest = rest - coefficients @ basis[: step + 1]
                column += coefficients.double().cpu()
            beta = torch.linalg.vector_norm(rest, dtype=torch.float64).item()  # float32 squares could underflow
            if not math.isfinite(beta + column.abs().sum().item()):
                raise ArithmeticError(f"matrix-vector product {products} is not finite")
            projected[step, : step + 1] = projected[: step + 1, step] = column
            scale = max(scale, column.abs().max().item(), beta)
            if step + 1 == dimension:  # the basis is complete
                beta = 0.0
                break
            if beta <= finished * scale:  # an invariant space: continue in its complement
                dropped, beta = max(dropped, beta), 0.0
                basis[step + 1] = _random_direction(basis[: step + 1], generator)
            else:
                basis[step + 1] = rest / beta
        values, vectors = torch.linalg.eigh(projected)
        values, vectors = values.flip(0), vectors.flip(1)
        residuals = beta * vectors[-1].abs() + epsilon * values.abs().max() + dropped
        small = residuals[:count] <= max(tolerance, 10 * epsilon) * values.abs().max()
        if bool(small.all()) or products >= most or size == dimension:
            _rotate(basis, vectors[:, :count])
            return values[:count], basis[:count].clone(), residuals[:count]
        known = min(count + (size - count) // 2, size - 1)
        _rotate(basis, vectors[:, :known])
        basis[known] = basis[size]
        projected.zero_()
        projected.diagonal()[:known] = values[:known]


def _rotate(basis: torch.Tensor, vectors: torch.Tensor) -> None:
    """Replace the first rows of the basis with the combinations that the columns of `vectors` (size, k) name."""
    size, count = vectors.shape
    combination = vectors.T.to(basis)
    for start in range(0, basis.shape[1], COLUMNS):
        columns = slice(start, start + COLUMNS)
        basis[:count, columns] = combination @ basis[:size, columns]


def _random_direction(basis: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Return a random unit vector orthogonal to the rows of the basis (k, n)."""
    vector = torch.randn(basis.shape[1], generator=generator, device=generator.device).to(basis)
    for _ in range(2):
        vector = vector - (basis @ vector) @ basis
        vector = vector / vector.norm()
    return vector

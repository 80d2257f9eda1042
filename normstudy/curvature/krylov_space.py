"""Lanczos with full reorthogonalization, and the Gauss quadrature that follows from it.

Reference: G. H. Golub and J. H. Welsch, "Calculation of Gauss Quadrature Rules", Mathematics of Computation 23 (1969).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

Matvec = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Krylov:
    """The result of m Lanczos steps on a symmetric matrix of dimension n.

    Attributes:
        diagonal: Diagonal of the tridiagonal matrix, (m,), float64 on the CPU.
        off_diagonal: Off-diagonal of the tridiagonal matrix, (m−1,), float64 on the CPU.
        remainder: Norm of the remainder after the last step; 0 if the Krylov space is exhausted.
        basis: Orthonormal basis of the Krylov space, (m, n), one vector per row.
        first_product: The first product, matvec(start), (n,).
    """

    diagonal: torch.Tensor
    off_diagonal: torch.Tensor
    remainder: float
    basis: torch.Tensor
    first_product: torch.Tensor

    def tridiagonal(self) -> torch.Tensor:
        """Return the tridiagonal matrix (m, m), in which the matrix acts on the basis."""
        return torch.diag(self.diagonal) + torch.diag(self.off_diagonal, 1) + torch.diag(self.off_diagonal, -1)

    def largest_ritz_vector(self) -> torch.Tensor:
        """Return the unit Ritz vector of the largest Ritz value, (n,), on the device of the basis."""
        coefficients = torch.linalg.eigh(self.tridiagonal()).eigenvectors[:, -1]
        vector = coefficients.to(self.basis) @ self.basis
        return vector / vector.norm()

    def quadrature(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Compute the Gauss quadrature of the spectral measure of the start vector (Golub & Welsch 1969).

        Returns:
            (nodes, weights, residuals), (m,) each, in ascending order of the nodes, float64 on the CPU. The distance
            from a node to the nearest eigenvalue is at most its residual, which includes rounding in the dtype of the
            basis.
        """
        nodes, vectors = torch.linalg.eigh(self.tridiagonal())
        rounding = torch.finfo(self.basis.dtype).eps * nodes.abs().max()
        return nodes, vectors[0].square(), self.remainder * vectors[-1].abs() + rounding


def krylov(
    matvec: Matvec,
    start: torch.Tensor,
    num_steps: int,
    basis_device: torch.device | str | None = None,
    first_product: torch.Tensor | None = None,
) -> Krylov:
    """Run Lanczos from `start`, orthogonalizing each product twice against the whole basis.

    The iteration stops early if the Krylov space is exhausted.

    Args:
        matvec: Function v ↦ Av on vectors (n,), for a symmetric matrix A.
        start: Start vector (n,), not necessarily normalized. The basis has its dtype.
        num_steps: Maximum number of steps. No more than n are taken.
        basis_device: Device that stores the basis (num_steps, n). Defaults to the device of `start`.
        first_product: matvec(start), if it is known. It replaces the first product.

    Raises:
        ValueError: If `start` is zero or not finite, or if `num_steps` is less than 1.
        ArithmeticError: If a product is not finite.
    """
    length = torch.linalg.vector_norm(start).item()
    if not (length > 0 and math.isfinite(length)) or num_steps < 1:
        raise ValueError("Lanczos needs a finite, nonzero start vector and at least one step")
    num_steps = min(num_steps, len(start))
    basis = torch.empty(num_steps, len(start), dtype=start.dtype, device=basis_device or start.device)
    epsilon = torch.finfo(start.dtype).eps
    finished = min(10 * math.sqrt(len(start)) * epsilon, max(1e-6, 10 * epsilon))
    diagonal: list[float] = []
    off_diagonal: list[float] = []
    scale = 0.0
    direction = start / length
    for step in range(num_steps):
        basis[step] = direction
        is_known = step == 0 and first_product is not None
        product = first_product / length if is_known else matvec(direction)
        if step == 0:
            first_product = product * length
        rest = product.to(basis)
        known = basis[: step + 1]
        diagonal_entry = 0.0
        for _ in range(2):
            coefficients = known @ rest
            rest = rest - coefficients @ known
            diagonal_entry += coefficients[step].item()
        beta = torch.linalg.vector_norm(rest).item()
        if not math.isfinite(diagonal_entry + beta):
            raise ArithmeticError(f"the matrix-vector product of Lanczos step {step + 1} is not finite")
        diagonal.append(diagonal_entry)
        scale = max(scale, abs(diagonal_entry), beta)
        if beta <= finished * scale:
            beta = 0.0
            break
        off_diagonal.append(beta)
        direction = (rest / beta).to(start.device)
    size = len(diagonal)
    return Krylov(
        torch.tensor(diagonal, dtype=torch.float64),
        torch.tensor(off_diagonal[: size - 1], dtype=torch.float64),
        beta,
        basis[:size],
        first_product,  # type: ignore[arg-type]  # set in the first step
    )


def lanczos(matvec: Matvec, start: torch.Tensor, num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Compute the Gauss quadrature of the spectral measure of `start` (Golub & Welsch 1969).

    Σ weights · f(nodes) = uᵀ f(A) u for u = start/‖start‖ and every polynomial f of degree up to 2m−1.

    Args:
        matvec: Function v ↦ Av on vectors (n,), for a symmetric matrix A.
        start: Start vector (n,), not necessarily normalized.
        num_steps: Maximum number of Lanczos steps. Fewer are taken if the Krylov space is exhausted.

    Returns:
        (nodes, weights), (m,) each with m ≤ num_steps, float64 on the CPU. The nodes are the Ritz values of A in
        ascending order. The weights sum to 1.

    Raises:
        ValueError: If `start` is zero or not finite, or if `num_steps` is less than 1.
        ArithmeticError: If a product is not finite.
    """
    nodes, weights, _ = krylov(matvec, start, num_steps).quadrature()
    return nodes, weights


def ritz_values(
    matvec: Matvec, start: torch.Tensor, num_steps: int, basis_device: torch.device | str | None = None
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Return (nodes, weights, residuals) of the quadrature that `krylov` gives from `start` (see Krylov.quadrature)."""
    return krylov(matvec, start, num_steps, basis_device).quadrature()

"""Lanczos with full reorthogonalization, and the Gauss quadrature that follows from it."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch

Matvec = Callable[[torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Krylov:
    """The result of m steps of Lanczos on a matrix of dimension n.

    diagonal (m,) and off_diagonal (m−1,) of the tridiagonal matrix, the norm of the remainder, the basis (m, n), and
    the first product, matvec(start).
    """

    diagonal: torch.Tensor
    off_diagonal: torch.Tensor
    remainder: float
    basis: torch.Tensor
    first_product: torch.Tensor

    def quadrature(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(nodes, weights, residuals), (m,) each, ascending, float64 on the CPU.

        The Gauss quadrature of the spectral measure of the start (Golub & Welsch 1969). An eigenvalue lies within the
        residual of each node, rounding in the dtype of the basis included.
        """
        matrix = torch.diag(self.diagonal) + torch.diag(self.off_diagonal, 1) + torch.diag(self.off_diagonal, -1)
        nodes, vectors = torch.linalg.eigh(matrix)
        rounding = torch.finfo(self.basis.dtype).eps * nodes.abs().max()
        return nodes, vectors[0].square(), self.remainder * vectors[-1].abs() + rounding


def krylov(
    matvec: Matvec, start: torch.Tensor, num_steps: int, basis_device: torch.device | str | None = None
) -> Krylov:
    """At most num_steps of Lanczos from `start` (n,), each product orthogonalized twice against the whole basis.

    It stops early if the Krylov space is finished. The basis (num_steps, n) is kept on basis_device (by default that
    of start). Raises ValueError for a start that is zero or not finite, or no steps, ArithmeticError for a product
    that is not finite.
    """
    length = torch.linalg.vector_norm(start).item()
    if not (length > 0 and math.isfinite(length)) or num_steps < 1:
        raise ValueError("Lanczos needs a finite start that is not zero, and at least one step")
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
        product = matvec(direction)
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
            raise ArithmeticError(f"the matrix-vector product of step {step + 1} is not finite")
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
        first_product,
    )


def lanczos(matvec: Matvec, start: torch.Tensor, num_steps: int) -> tuple[torch.Tensor, torch.Tensor]:
    """(nodes, weights), (m,) each with m ≤ num_steps, float64: Gauss quadrature of the spectral measure of `start`.

    Σ weights · f(nodes) = uᵀ f(A) u for u = start/‖start‖ and every polynomial f of degree up to 2m−1; the weights
    sum to 1. The nodes are Ritz values of the symmetric matrix A behind matvec. Raises as `krylov` does.
    """
    nodes, weights, _ = krylov(matvec, start, num_steps).quadrature()
    return nodes, weights

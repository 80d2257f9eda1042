"""Errors from the choice of images: a two-way layout of probes and blocks of images, and a cross-fitted eigenvalue.

References:
    H. Scheffé, "The Analysis of Variance", Wiley (1959), chapter 7: the random-effects two-way layout.
    F. E. Satterthwaite, "An Approximate Distribution of Estimates of Variance Components", Biometrics Bulletin 2
    (1946).
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch

from .krylov_space import Matvec, krylov


class LayoutErrors(NamedTuple):
    """Standard errors of the mean of a two-way layout.

    Attributes:
        probe: Standard error over probes, for the given images. NaN for a single probe.
        image: Standard error over blocks of images, for the given probes. NaN for a single block.
        total: Standard error over probes and blocks. NaN if one of the other two is NaN.
        degrees: Degrees of freedom of `total` (Satterthwaite 1946), for a t-interval.
    """

    probe: float
    image: float
    total: float
    degrees: float


def layout_errors(values: torch.Tensor, pool_fraction: float = 0.0) -> LayoutErrors:
    """Compute the standard errors of the mean of values vᵀH_b v, (probes P, blocks B).

    With the mean squares MS_P of probes, MS_B of blocks and MS_PB of their interaction, the variances of the mean are
    MS_P/PB for given images, MS_B/PB for given probes, and (MS_P + MS_B − MS_PB)/PB for both. A difference
    MS_B − MS_PB below 0 counts as 0.

    Args:
        values: The values, in float64. Blocks are of equal size, up to one image.
        pool_fraction: Fraction of all images that the blocks contain. The part of the images in the variance is
            multiplied by 1 − pool_fraction, so that all images together have no error.
    """
    probes, blocks = values.shape
    mean, by_probe, by_block = values.mean(), values.mean(1), values.mean(0)
    missing = 1 - pool_fraction
    ms_probe = ms_block = math.nan
    if probes > 1:
        ms_probe = blocks * by_probe.var(correction=1).item()
    if blocks > 1:
        ms_block = probes * by_block.var(correction=1).item()
    size = probes * blocks
    probe, image = math.sqrt(ms_probe / size), math.sqrt(missing * ms_block / size)
    if probes < 2 or blocks < 2:
        return LayoutErrors(probe, image, math.nan, math.nan)
    rest = values - by_probe[:, None] - by_block + mean
    ms_both = (rest.square().sum() / ((probes - 1) * (blocks - 1))).item()
    excess = missing * max(ms_block - ms_both, 0.0)
    variance = ms_probe + excess
    parts = [ms_probe**2 / (probes - 1)]
    if excess:
        parts += [(missing * ms_block) ** 2 / (blocks - 1), (missing * ms_both) ** 2 / ((probes - 1) * (blocks - 1))]
    degrees = variance**2 / sum(parts) if sum(parts) else math.inf
    return LayoutErrors(probe, image, math.sqrt(variance / size), degrees)


class CrossFitted(NamedTuple):
    """The cross-fitted eigenvalue, the larger residual of the two Ritz values, and the number of products of halves."""

    value: float
    residual: float
    products: int


def cross_fitted_eigenvalue(
    halves: tuple[Matvec, Matvec],
    start: torch.Tensor,
    num_steps: int,
    basis_device: torch.device | str | None = None,
) -> CrossFitted:
    """Compute the mean of uᵀH_B u and wᵀH_A w, where u and w are the top eigenvectors of H_A and H_B.

    The largest eigenvalue of a subset is too large on average, because its eigenvector fits the subset. An eigenvector
    of other images gives a value that is too small on average.

    Args:
        halves: The products of H_A and H_B, of two disjoint halves of the images.
        start: Start vector of both iterations, such as the top eigenvector of all images.
        num_steps: Number of Lanczos steps for each eigenvector.
        basis_device: Device that stores the Lanczos vectors.
    """
    total, residual, products = 0.0, 0.0, 0
    for own, other in (halves, halves[::-1]):
        space = krylov(own, start, num_steps, basis_device)
        vector = space.largest_ritz_vector().to(start.device)
        residual = max(residual, space.quadrature()[2][-1].item())
        products += len(space.diagonal) + 1
        del space  # the basis is large
        total += torch.dot(vector, other(vector)).item()
    return CrossFitted(total / 2, residual, products)


class ImageBlocks:
    """A matrix as the weighted mean of the matrices H_b of blocks of images.

    Args:
        products: The products v ↦ H_b v.
        sizes: Number of images of each block. Sizes should differ by at most one.
        pool: Number of all images, from which those of the blocks were drawn. None if they are unlimited.
        halves: The products of two disjoint halves of the images (default: those of the even and the odd blocks, which
            take longer).
    """

    def __init__(
        self,
        products: Sequence[Matvec],
        sizes: Sequence[int],
        pool: int | None = None,
        halves: tuple[Matvec, Matvec] | None = None,
    ) -> None:
        self.products = list(products)
        self.halves = halves or (self._product(slice(0, None, 2)), self._product(slice(1, None, 2)))
        self.shares = [size / sum(sizes) for size in sizes]
        self.pool_fraction = 0.0 if pool is None else sum(sizes) / pool
        if not products or len(products) != len(sizes) or self.pool_fraction > 1:
            raise ValueError(f"{len(products)} blocks of {list(sizes)} images do not fit a pool of {pool}")

    def __len__(self) -> int:
        return len(self.products)

    def _product(self, chosen: slice) -> Matvec:
        def matvec(vector: torch.Tensor) -> torch.Tensor:
            pairs = list(zip(self.products[chosen], self.shares[chosen], strict=True))
            whole = sum(share for _, share in pairs)
            total = torch.zeros_like(vector)
            for product, share in pairs:
                total.add_(product(vector), alpha=share / whole)
            return total

        return matvec

    def product_and_forms(
        self, vector: torch.Tensor, sizes: Sequence[int]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return Hv, the forms vᵀH_b v of each diagonal block of parameters, (B, len(sizes)), and ‖H_b v‖², (B,)."""
        total, forms, squares = torch.zeros_like(vector), [], []
        for product, share in zip(self.products, self.shares, strict=True):
            image = product(vector)
            total.add_(image, alpha=share)
            forms.append(torch.stack([part.sum() for part in (vector * image).split(list(sizes))]).cpu().double())
            squares.append(torch.linalg.vector_norm(image).cpu().double() ** 2)
        return total, torch.stack(forms), torch.stack(squares)

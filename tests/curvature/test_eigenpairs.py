"""Eigenpairs against dense matrices and scipy."""

import numpy as np
import pytest
import torch
from curvature_helpers import images_and_labels, symmetric, two_layers
from scipy.sparse.linalg import LinearOperator, eigsh

from normstudy.curvature import eigenpairs, hessian_matvec


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def spread(dimension):
    """Return a matrix with a bulk around zero, five outliers and a large negative eigenvalue, and its eigenvalues."""
    bulk = torch.randn(dimension - 6, dtype=torch.float64)
    return symmetric(torch.cat([bulk, torch.tensor([30.0, 20, 15, 14.9, 9, -40])]))[0]


@pytest.mark.parametrize("count", [1, 4, 12])
@pytest.mark.parametrize("seed", range(4))
def test_the_largest_eigenvalues_and_their_vectors(count, seed):
    matrix = spread(300)
    exact, exact_vectors = torch.linalg.eigh(matrix)
    values, vectors, residuals = eigenpairs(lambda v: matrix @ v, 300, count, generator(seed), tolerance=1e-10)
    torch.testing.assert_close(values, exact.flip(0)[:count], rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(count, dtype=torch.float64), rtol=0, atol=1e-10)
    found = torch.linalg.vector_norm(matrix @ vectors.T - vectors.T * values, dim=0)
    assert (found <= residuals + 1e-10).all()
    assert ((vectors[:1] @ exact_vectors[:, -1:]).abs() - 1).abs() < 1e-9


def test_the_values_are_those_of_scipy_for_a_hessian():
    model = two_layers("BatchNorm").eval()
    matvec, dimension = hessian_matvec(model, [images_and_labels()])
    operator = LinearOperator((dimension, dimension), lambda v: matvec(torch.from_numpy(np.asarray(v).ravel())).numpy())
    expected = np.sort(eigsh(operator, k=5, which="LA", v0=np.ones(dimension))[0])[::-1].copy()
    values, _, residuals = eigenpairs(matvec, dimension, 5, generator(), tolerance=1e-9)
    np.testing.assert_allclose(values.numpy(), expected, rtol=1e-7)
    assert residuals.max() <= 1e-8 * values[0]


def test_memory_is_bounded_and_restarts_are_many():
    matrix = spread(400)
    products: list[int] = []
    values, vectors, residuals = eigenpairs(
        lambda v: matrix @ v, 400, 5, generator(), tolerance=1e-8, basis_size=9, expect=products.append
    )
    assert products[-1] > 3 * 9
    torch.testing.assert_close(values, torch.linalg.eigvalsh(matrix).flip(0)[:5], rtol=1e-6, atol=1e-6)
    assert vectors.shape == (5, 400)
    assert residuals.max() <= 1e-7 * 40


def test_a_matrix_of_low_rank_has_zeros_as_further_eigenvalues():
    root = torch.randn(50, 3, dtype=torch.float64)
    matrix = root @ root.T
    values, vectors, _ = eigenpairs(lambda v: matrix @ v, 50, 6, generator(), tolerance=1e-10)
    torch.testing.assert_close(values[:3], torch.linalg.eigvalsh(matrix).flip(0)[:3])
    assert values[3:].abs().max() < 1e-9
    torch.testing.assert_close(vectors @ vectors.T, torch.eye(6, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("count", [1, 3, 4])
def test_all_eigenvalues_of_a_small_matrix(count):
    matrix, _ = symmetric(torch.tensor([3.0, 2, 2, -5], dtype=torch.float64))
    values, _, _ = eigenpairs(lambda v: matrix @ v, 4, count, generator())
    torch.testing.assert_close(values, torch.tensor([3.0, 2, 2, -5], dtype=torch.float64)[:count])


def test_a_search_that_ends_early_says_so_in_its_residuals():
    matrix = symmetric(torch.linspace(0, 1, 500, dtype=torch.float64))[0]
    values, _, residuals = eigenpairs(lambda v: matrix @ v, 500, 3, generator(), tolerance=1e-12, max_products=20)
    assert residuals.max() > 1e-4
    exact = torch.linalg.eigvalsh(matrix)
    for value, residual in zip(values, residuals, strict=True):
        assert (exact - value).abs().min() <= residual


def test_float32_is_as_good_as_it_can_be():
    matrix = spread(200)
    values, _, _ = eigenpairs(lambda v: (matrix @ v.double()).float(), 200, 3, generator(), dtype=torch.float32)
    torch.testing.assert_close(values, torch.linalg.eigvalsh(matrix).flip(0)[:3], rtol=1e-4, atol=0)


def test_wrong_arguments_are_refused():
    def identity(vector):
        return vector

    for count, basis_size in (0, None), (6, None), (3, 3):
        with pytest.raises(ValueError, match="count"):
            eigenpairs(identity, 5, count, generator(), basis_size=basis_size)
    with pytest.raises(ArithmeticError, match="not finite"):
        eigenpairs(lambda v: v * float("nan"), 5, 1, generator())

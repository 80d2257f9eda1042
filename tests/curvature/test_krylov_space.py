"""Lanczos and its Gauss quadrature against known spectra."""

import math

import pytest
import torch
from curvature_helpers import symmetric
from torch.testing import assert_close

from normstudy.curvature import lanczos, rademacher
from normstudy.curvature.krylov_space import krylov


def test_all_steps_find_all_eigenvalues():
    eigenvalues = torch.linspace(-3, 8, 30, dtype=torch.float64) ** 3
    matrix, basis = symmetric(eigenvalues)
    start = torch.randn(30, dtype=torch.float64)
    nodes, weights = lanczos(lambda v: matrix @ v, start, 30)
    assert_close(nodes, eigenvalues, rtol=1e-10, atol=1e-9)
    assert_close(weights, (basis.T @ (start / start.norm())) ** 2, rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 5, 20])
def test_quadrature_is_exact_for_polynomials_up_to_its_degree(steps):
    matrix, _ = symmetric(torch.randn(40, dtype=torch.float64))
    start = torch.randn(40, dtype=torch.float64)
    unit = start / start.norm()
    nodes, weights = lanczos(lambda v: matrix @ v, start, steps)
    assert len(nodes) == steps
    assert weights.sum().item() == pytest.approx(1, abs=1e-14)
    assert (weights * nodes).sum().item() == pytest.approx((unit @ matrix @ unit).item(), abs=1e-12)
    for degree in range(2 * steps):
        exact = unit @ torch.linalg.matrix_power(matrix, degree) @ unit
        assert_close((weights * nodes**degree).sum(), exact, rtol=1e-8, atol=1e-8)


def test_from_two_steps_on_the_second_moment_is_the_length_of_the_product():
    matrix, _ = symmetric(torch.randn(40, dtype=torch.float64))
    start = rademacher(40, torch.Generator().manual_seed(0))
    for steps in (2, 3, 10):
        nodes, weights = lanczos(lambda v: matrix @ v, start, steps)
        assert 40 * (weights * nodes**2).sum().item() == pytest.approx((matrix @ start).square().sum().item())


def test_a_degenerate_spectrum_ends_the_krylov_space():
    eigenvalues = torch.tensor([2.0] * 10 + [-1.0] * 20 + [7.0], dtype=torch.float64)
    matrix, _ = symmetric(eigenvalues)
    nodes, weights = lanczos(lambda v: matrix @ v, torch.randn(31, dtype=torch.float64), 31)
    assert_close(nodes, torch.tensor([-1.0, 2.0, 7.0], dtype=torch.float64))
    assert weights.sum().item() == pytest.approx(1)


def test_rank_one():
    direction = torch.randn(50, dtype=torch.float64)
    start = torch.randn(50, dtype=torch.float64)
    nodes, weights = lanczos(lambda v: direction * (direction @ v), start, 20)
    overlap = (direction @ start) ** 2 / (direction.square().sum() * start.square().sum())
    assert_close(nodes, torch.stack([torch.zeros_like(overlap), direction.square().sum()]), atol=1e-12, rtol=1e-12)
    assert_close(weights, torch.stack([1 - overlap, overlap]))


@pytest.mark.parametrize("value", [0.0, -3.0, 1e-30, 1e30])
def test_a_multiple_of_the_identity_has_one_node(value):
    nodes, weights = lanczos(lambda v: value * v, torch.randn(10, dtype=torch.float64), 5)
    assert nodes.tolist() == pytest.approx([value], rel=1e-14)
    assert weights.tolist() == [1.0]


def test_more_steps_than_dimensions():
    matrix, _ = symmetric(torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64))
    nodes, _ = lanczos(lambda v: matrix @ v, torch.ones(3, dtype=torch.float64), 50)
    assert len(nodes) <= 3


@pytest.mark.parametrize(("dtype", "bound"), [(torch.float64, 1e-13), (torch.float32, 1e-5)])
def test_the_basis_is_orthogonal_to_machine_precision(dtype, bound):
    eigenvalues = torch.cat([torch.logspace(-6, 0, 190, dtype=torch.float64), torch.arange(1, 11).double() * 100])
    matrix = symmetric(eigenvalues)[0].to(dtype)
    basis = krylov(lambda v: matrix @ v, torch.randn(200, dtype=dtype), 120).basis
    assert (basis @ basis.T - torch.eye(len(basis), dtype=dtype)).abs().max() < bound


def test_an_eigenvalue_lies_within_the_residual_of_a_node():
    eigenvalues = torch.cat([torch.randn(195, dtype=torch.float64), torch.tensor([10.0, 12, 20, 21, -6])])
    matrix, _ = symmetric(eigenvalues)
    for steps in (3, 10, 30):
        nodes, _, residuals = krylov(lambda v: matrix @ v, torch.randn(200, dtype=torch.float64), steps).quadrature()
        distances = (nodes[:, None] - eigenvalues).abs().min(1).values
        assert (distances <= residuals + 1e-12).all()


def test_a_bad_start_and_a_bad_product_are_refused():
    for start in (torch.zeros(4), torch.tensor([1.0, math.nan])):
        with pytest.raises(ValueError, match="start"):
            lanczos(lambda v: v, start, 2)
    with pytest.raises(ValueError, match="step"):
        lanczos(lambda v: v, torch.ones(4), 0)
    with pytest.raises(ArithmeticError, match="not finite"):
        lanczos(lambda v: v * math.nan, torch.ones(4), 2)

"""The spectral density, and the digits of extreme eigenvalues."""

import math

import pytest
import torch

from normstudy.plots import hessian


def test_the_density_of_a_probe_integrates_to_one():
    probes = [{"nodes": [-1.0, 0.0, 5.0], "weights": [0.2, 0.7, 0.1]}]
    points = torch.linspace(-30, 40, 20001, dtype=torch.float64).numpy()
    density = hessian.spectral_density(probes, points, 0.1)
    assert density.shape == (1, 20001)
    assert density.sum() * (points[1] - points[0]) == pytest.approx(1, abs=1e-6)


def test_the_density_of_a_smooth_spectrum_is_no_comb():
    """Equal weights at equal distances stand for a uniform density."""
    probes = [{"nodes": list(range(20)), "weights": [0.05] * 20}]
    points = torch.linspace(4, 15, 1001, dtype=torch.float64).numpy()
    density = hessian.spectral_density(probes, points, 0.01)[0]
    assert density.min() > 0.95 * density.max()


def test_single_eigenvalues_stay_narrow():
    probes = [{"nodes": [0.0, 1.0, 2.0, 10.0], "weights": [0.5, 0.3, 0.2 - 1e-6, 1e-6]}]
    points = torch.linspace(9, 11, 2001, dtype=torch.float64).numpy()
    density = hessian.spectral_density(probes, points, 0.05, dimension=1_000_000)[0]
    assert density.argmax() == 1000
    assert (density > density.max() / 2).mean() < 0.1


@pytest.mark.parametrize(
    ("value", "residual", "words"),
    [
        (44.92, 11.3, "45 (residual 11)"),
        (-1.902, 0.53, "-1.9 (residual 0.5)"),
        (44.9217, 6e-06, "44.92 (residual 6e-06)"),
        (3.0, 0.0, "3 (residual 0)"),
        (-0.04, 1.2, "0 (residual 1)"),
        (1234.5, 3e7, "0 (residual 3e+07)"),
        (1.5, math.inf, "1.5 (residual inf)"),
    ],
)
def test_an_eigenvalue_has_no_more_digits_than_are_sure(value, residual, words):
    assert hessian.format_with_residual(value, residual) == words

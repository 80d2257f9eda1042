"""Activation statistics against float64 textbook values."""

import pytest
import torch
from probes_helpers import activation_statistics
from torch.nn import functional as F

from normstudy.kernels import probe_statistics
from normstudy.kernels.probe_statistics import (
    channel_variance,
    frobenius_norm,
    gram_matrix,
    gram_statistics,
)
from normstudy.storage import ACTIVATION_KEYS

pytestmark = pytest.mark.usefixtures("form")  # each test runs in every form of the kernels


def textbook(x):
    """Return the four statistics in float64 by their definitions: loops over pairs, an SVD. x is (N, C, H, W)."""
    x = x.double()
    rows = [sample.flatten() for sample in x]
    norms = [row.square().sum().sqrt() for row in rows]
    cosines = [(a @ b) / (norms[i] * norms[j]) for i, a in enumerate(rows) for j, b in enumerate(rows) if i != j]
    unit = torch.stack([row / norm for row, norm in zip(rows, norms, strict=True)])
    variances = [((x[:, c] - x[:, c].mean()) ** 2).mean() for c in range(x.shape[1])]
    singular_values = torch.linalg.svdvals(unit)
    return {
        "activation_norm": torch.stack(norms).mean(),
        "activation_variance": torch.stack(variances).mean(),
        "cosine_similarity": torch.stack(cosines).mean(),
        "stable_rank": unit.square().sum() / singular_values[0] ** 2,
    }


def inputs():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(12, 5, 4, 3, generator=generator)
    return {
        "normal": noise,
        "rectified": noise.relu(),
        "far from zero": noise + 30,
        "tiny": noise * 1e-12,
        "huge": noise * 1e12,
        "two clusters": noise * 0.01 + torch.tensor([1.0, -1.0]).repeat(6)[:, None, None, None],
        "orthogonal": torch.eye(12).view(12, 1, 4, 3),
    }


@pytest.mark.parametrize("name", inputs())
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("key", ACTIVATION_KEYS)
def test_statistics_equal_their_definitions(name, memory_format, key):
    x = inputs()[name]
    expected = textbook(x)[key].float()
    found = activation_statistics(x.contiguous(memory_format=memory_format))[key]
    torch.testing.assert_close(found, expected, rtol=2e-5, atol=2e-7)


@pytest.mark.parametrize("key", ACTIVATION_KEYS)
def test_statistics_in_float64_are_exact(key):
    x = inputs()["rectified"].double()
    torch.testing.assert_close(activation_statistics(x)[key], textbook(x)[key], rtol=1e-9, atol=0)


@pytest.mark.parametrize("key", ACTIVATION_KEYS)
def test_statistics_of_half_precision_keep_two_digits(key):
    x = inputs()["rectified"].bfloat16()
    torch.testing.assert_close(activation_statistics(x)[key], textbook(x)[key].float(), rtol=1e-2, atol=1e-3)


def test_stable_rank_of_a_nearly_degenerate_spectrum():
    """256 random directions in 2048 dimensions: the largest singular values are as close as they can be."""
    x = torch.randn(256, 512, 2, 2, generator=torch.Generator().manual_seed(0))
    singular_values = torch.linalg.svdvals(F.normalize(x.double().flatten(1)))
    expected = 256 / singular_values[0] ** 2
    torch.testing.assert_close(activation_statistics(x)["stable_rank"], expected.float(), rtol=1e-3, atol=0)


def test_tokens_are_samples_of_positions_and_channels():
    tokens = torch.randn(6, 7, 4, generator=torch.Generator().manual_seed(0))
    as_maps = activation_statistics(tokens.transpose(1, 2).unsqueeze(3).contiguous())
    torch.testing.assert_close(activation_statistics(tokens), as_maps)


def test_zero_samples_give_finite_numbers():
    x = torch.zeros(4, 3, 2, 2)
    x[1:3] = torch.randn(2, 3, 2, 2, generator=torch.Generator().manual_seed(0))
    assert all(value.isfinite() for value in activation_statistics(x).values())
    assert all(value.isfinite() for value in activation_statistics(torch.zeros(4, 3, 2, 2)).values())


def test_a_zero_sample_counts_as_orthogonal_to_every_other():
    x = torch.ones(3, 2, 1, 1)
    x[2] = 0
    found = activation_statistics(x)
    assert found["cosine_similarity"].item() == pytest.approx(2 / 6)
    assert found["stable_rank"].item() == pytest.approx(1)


def test_statistics_are_zero_dimensional_and_off_the_graph():
    x = torch.randn(4, 3, 2, 2, requires_grad=True)
    assert all(value.dim() == 0 and not value.requires_grad for value in activation_statistics(x).values())


def large_batches():
    """Return batches of 128 samples whose leading direction is more or less easy to find.

    Only the last batch has negative entries.
    """
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(128, 8, 4, 4, generator=generator)
    basis = torch.eye(128).view(128, 8, 4, 4)
    clusters = basis[torch.arange(128) % 2]
    alike = basis.clone()
    alike[:8] = basis[0]
    dead = noise.clone()
    dead[::3] = 0
    return {
        "rectified": torch.randn(128, 8, 4, 4, generator=generator).relu(),
        "positive": noise,
        "orthogonal": basis,
        "two clusters as large": clusters,
        "two clusters": basis[(torch.arange(128) < 70).long()] + 0.1 * noise,
        "eight alike": alike,
        "dead samples": dead,
        "all dead": torch.zeros(128, 8, 4, 4),
        "negative entries": noise - 0.5,
    }


@pytest.mark.parametrize("name", large_batches())
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_statistics_of_large_batches(name, dtype):
    x = large_batches()[name].to(dtype, memory_format=torch.channels_last)
    rows = x.double().flatten(1)
    cosines = F.normalize(rows) @ F.normalize(rows).T
    eigenvalues = torch.linalg.eigvalsh(cosines)
    expected = {
        "activation_norm": rows.norm(dim=1).mean(),
        "activation_variance": x.double().var((0, 2, 3), correction=0).mean(),
        "cosine_similarity": (cosines.sum() - cosines.trace()) / (128 * 127),
        "stable_rank": cosines.trace() / eigenvalues[-1].clamp_min(1e-300),
    }
    for key, value in activation_statistics(x).items():
        tolerance = 1e-3 if key == "stable_rank" else 2e-5 if dtype == torch.float32 else 1e-9
        torch.testing.assert_close(value.double(), expected[key], rtol=tolerance, atol=1e-7)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 2e-5), (torch.bfloat16, 2e-3)])
@pytest.mark.parametrize("offset", [0.0, 1.0, 2.9, 3.1, 30.0])
def test_variance_of_a_large_batch_keeps_its_digits(form, offset, dtype, tolerance):
    """On the CPU, the kernel for other devices adds float32 numbers one by one, which loses digits."""
    tolerance = 1e-3 if form == "device" and not torch.cuda.is_available() else tolerance
    noise = torch.randn(128, 16, 32, 32, generator=torch.Generator().manual_seed(0))
    x = (noise + offset).to(dtype, memory_format=torch.channels_last)
    expected = x.double().var((0, 2, 3), correction=0).mean().float()
    torch.testing.assert_close(activation_statistics(x)["activation_variance"], expected, rtol=tolerance, atol=0)


def test_the_norm_of_a_large_gradient_keeps_its_digits():
    gradient = 1e-3 * torch.randn(256, 64, 32, 32, generator=torch.Generator().manual_seed(0))
    expected = gradient.double().square().sum().sqrt().float()
    for memory_format in (torch.contiguous_format, torch.channels_last):
        found = frobenius_norm(gradient.contiguous(memory_format=memory_format))
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("samples", [1, 31, 100])
def test_variance_and_norm_of_parts_of_any_size(form, dtype, samples):
    """The CPU takes 32 maps of 32 × 32 at a time. The last part may be smaller."""
    noise = torch.randn(samples, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    x = (noise + torch.arange(3.0).view(3, 1, 1)).to(dtype, memory_format=torch.channels_last)
    tolerance = 1e-5 if dtype == torch.float32 and form != "device" else 1e-3
    expected = x.double().var((0, 2, 3), correction=0)
    torch.testing.assert_close(channel_variance(x).double(), expected, rtol=tolerance, atol=0)
    torch.testing.assert_close(frobenius_norm(x).double(), x.double().norm(), rtol=tolerance, atol=0)


def test_statistics_of_sites_do_not_depend_on_how_many_are_computed_at_once(monkeypatch):
    grams = [gram_matrix(torch.randn(6, 9, generator=torch.Generator().manual_seed(seed))) for seed in range(5)]
    expected = gram_statistics(grams)
    monkeypatch.setattr(probe_statistics, "STACKED_ENTRIES", 2 * 36)
    for key, values in gram_statistics(grams).items():
        assert len(values) == 5
        torch.testing.assert_close(values, expected[key])

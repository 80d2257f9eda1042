"""Estimates of a spectrum and their errors, against known spectra."""

import math

import pytest
import torch
from curvature_helpers import dense_hessian, images_and_labels, symmetric, two_layers

from normstudy.curvature import ImageBlocks, ProbeState, Spectrum, hessian_matvec, spectrum


def estimate(matrix, probes, steps, seed=0, **options) -> Spectrum:
    generator = torch.Generator().manual_seed(seed)
    return spectrum(lambda v: matrix @ v, len(matrix), probes, steps, generator, **options)


def indefinite(dimension=60):
    eigenvalues = torch.cat([torch.randn(dimension - 4, dtype=torch.float64), torch.tensor([30.0, 20, 15, -9])])
    return symmetric(eigenvalues)[0], eigenvalues


@pytest.mark.parametrize(("probes", "trace_probes"), [(12, 0), (2, 10)])
def test_standard_errors_cover_the_truth(probes, trace_probes):
    matrix, eigenvalues = indefinite()
    exact = {
        "trace": eigenvalues.sum().item(),
        "eigen_mean": eigenvalues.mean().item(),
        "eigen_variance": eigenvalues.var(correction=0).item(),
    }
    deviations: dict[str, list[float]] = {name: [] for name in exact}
    for seed in range(400):
        found = estimate(matrix, probes, 2, seed, trace_probes=trace_probes)
        for name, value in exact.items():
            deviations[name].append((getattr(found, name) - value) / getattr(found, f"{name}_standard_error"))
    for name, values in deviations.items():
        within = [(torch.tensor(values).abs() < bound).double().mean().item() for bound in (1, 3)]
        # Student's t with 11 degrees of freedom gives 66 % and 98.8 %. 400 seeds leave ±2.4 % and ±0.6 % (s.d.).
        assert 0.57 < within[0] < 0.76, name
        # Estimates of the second moment are skewed, so their standard errors are somewhat too small.
        assert within[1] > (0.94 if name == "eigen_variance" else 0.965), name


@pytest.mark.parametrize("trace_error", [0.1, 0.4])
def test_probes_are_added_until_the_error_of_the_trace_is_small_enough(trace_error):
    matrix, _ = indefinite()
    expected: list[int] = []
    for seed in range(20):
        found = estimate(
            matrix, 2, 3, seed, trace_probes=6, trace_error=trace_error, most_probes=10_000, expect=expected.append
        )
        assert found.trace_standard_error <= trace_error * abs(found.trace)
        assert expected[-1] == found.products == found.samples + 2 * 2
        first = estimate(matrix, 2, 3, seed, trace_probes=6)
        assert (found.samples == 8) == (first.trace_standard_error <= trace_error * abs(first.trace))
        same = estimate(matrix, 2, 3, seed, trace_probes=found.samples - 2)
        assert (same.trace, same.samples) == (found.trace, found.samples)
        assert torch.equal(same.nodes, found.nodes)


def test_standard_errors_cover_the_truth_where_they_decide_the_number_of_probes():
    matrix, eigenvalues = indefinite()
    deviations = []
    for seed in range(100):
        found = estimate(matrix, 2, 3, seed, trace_probes=6, trace_error=0.1, most_probes=10_000)
        deviations.append(abs(found.trace - eigenvalues.sum().item()) / found.trace_standard_error)
    assert sum(deviation < 3 for deviation in deviations) > 95


def test_a_trace_of_zero_takes_the_most_probes():
    matrix, _ = symmetric(torch.tensor([3.0, -3, 1, -1, 0.5, -0.5], dtype=torch.float64))
    assert estimate(matrix, 1, 2, trace_probes=3, trace_error=0.01, most_probes=50).samples == 50
    assert estimate(torch.zeros(4, 4).double(), 1, 2, trace_probes=3, trace_error=0.01, most_probes=50).samples == 4
    with pytest.raises(ValueError, match="most_probes"):
        estimate(matrix, 1, 2, trace_error=0.01)
    with pytest.raises(ValueError, match="positive"):
        estimate(matrix, 1, 2, trace_error=0.0, most_probes=9)


def test_the_estimates_are_right_on_average():
    matrix, eigenvalues = indefinite()
    found = [estimate(matrix, 2, 2, seed) for seed in range(2000)]
    for name, exact in (("trace", eigenvalues.sum()), ("eigen_variance", eigenvalues.var(correction=0))):
        values = torch.tensor([getattr(one, name) for one in found], dtype=torch.float64)
        assert abs(values.mean() - exact) < 4 * values.std() / math.sqrt(len(values)), name


def test_the_trace_is_that_of_nodes_and_weights():
    matrix, _ = indefinite()
    found = estimate(matrix, 5, 7)
    assert found.nodes.shape == found.weights.shape == (5, 7)
    assert found.trace == pytest.approx(60 * (found.weights * found.nodes).sum(1).mean().item())
    assert found.products == 35


def test_extreme_eigenvalues_and_their_residuals():
    matrix, eigenvalues = indefinite()
    found = estimate(matrix, 2, 40)
    assert found.max_eigen == pytest.approx(30, abs=1e-8)
    assert found.min_eigen == pytest.approx(-9, abs=1e-8)
    assert 0 <= found.max_eigen_residual < 1e-6
    assert 0 <= found.min_eigen_residual < 1e-6
    early = estimate(matrix, 2, 4)
    assert (eigenvalues - early.max_eigen).abs().min() <= early.max_eigen_residual
    assert early.max_eigen <= 30 + 1e-9


def test_a_diagonal_matrix_is_exact_with_one_probe_and_block_by_block():
    diagonal = torch.arange(12, dtype=torch.float64)
    found = spectrum(
        lambda v: diagonal * v, 12, 2, 3, torch.Generator().manual_seed(0), blocks={"first": 5, "second": 7}
    )
    assert found.trace == pytest.approx(66)
    assert found.trace_standard_error == pytest.approx(0, abs=1e-12)
    assert found.block_traces["first"] == pytest.approx((10, 0), abs=1e-12)
    assert found.block_traces["second"] == pytest.approx((56, 0), abs=1e-12)
    assert found.eigen_variance == pytest.approx(diagonal.var(correction=0).item())


def test_block_traces_add_up_and_are_unbiased():
    matrix, _ = indefinite()
    found = estimate(matrix, 1, 1, trace_probes=3000, blocks={"a": 10, "b": 20, "c": 30})
    assert sum(trace for trace, _ in found.block_traces.values()) == pytest.approx(found.trace)
    for (trace, error), block in zip(found.block_traces.values(), matrix.diagonal().split([10, 20, 30]), strict=True):
        assert abs(trace - block.sum()) < 4 * error


@pytest.mark.parametrize("value", [0.0, 2.0])
def test_a_multiple_of_the_identity_has_no_variance(value):
    found = estimate(value * torch.eye(20, dtype=torch.float64), 3, 10)
    assert found.trace == pytest.approx(20 * value)
    assert found.eigen_variance == pytest.approx(0, abs=1e-12)
    assert (found.max_eigen, found.min_eigen) == pytest.approx((value, value))
    assert found.weights.sum(1).tolist() == pytest.approx([1, 1, 1])


def test_one_probe_has_no_standard_error():
    found = estimate(indefinite()[0], 1, 5)
    assert math.isnan(found.trace_standard_error)
    assert math.isnan(found.eigen_variance_standard_error)
    assert math.isfinite(found.eigen_variance)


def test_the_generator_decides():
    matrix, _ = indefinite()
    assert estimate(matrix, 2, 5, seed=1).trace == estimate(matrix, 2, 5, seed=1).trace
    assert estimate(matrix, 2, 5, seed=1).trace != estimate(matrix, 2, 5, seed=2).trace


def test_bad_requests_are_refused():
    matrix, _ = indefinite()
    with pytest.raises(ValueError, match="probe"):
        estimate(matrix, 0, 5)
    with pytest.raises(ValueError, match="blocks"):
        estimate(matrix, 1, 5, blocks={"a": 3})


def test_a_seed_is_no_generator():
    with pytest.raises(TypeError, match="Generator"):
        spectrum(lambda v: v, 4, 1, 2, 0)  # type: ignore[arg-type]  # the mistake under test


def test_the_measures_of_a_network_are_those_of_its_dense_hessian():
    model = two_layers("LayerNorm").eval()
    images, labels = images_and_labels()
    eigenvalues = torch.linalg.eigvalsh(dense_hessian(model, images, labels))
    matvec, dimension = hessian_matvec(model, [(images, labels)], keep_graphs=True)
    found = spectrum(matvec, dimension, 2, 60, torch.Generator().manual_seed(0), trace_probes=200)
    assert abs(found.trace - eigenvalues.sum().item()) < 3 * found.trace_standard_error
    assert abs(found.eigen_variance - eigenvalues.var(correction=0).item()) < 3 * found.eigen_variance_standard_error
    assert found.max_eigen == pytest.approx(eigenvalues.max().item(), rel=1e-6)
    assert found.min_eigen == pytest.approx(eigenvalues.min().item(), rel=1e-6)


@pytest.mark.parametrize("stop_after", range(1, 12))
@pytest.mark.parametrize("has_blocks", [False, True])
def test_a_stopped_estimate_continues_to_the_same_numbers(tmp_path, stop_after, has_blocks):
    matrix, _ = indefinite()

    def product(vector):
        return matrix @ vector

    image_blocks = ImageBlocks([product, lambda v: 2 * product(v)], [3, 3]) if has_blocks else None
    options = {"trace_probes": 3, "trace_error": 0.01, "most_probes": 12, "image_blocks": image_blocks}
    whole = estimate(matrix, 2, 4, **options)

    class Stop(Exception):
        pass

    def save(state):
        torch.save(vars(state), tmp_path / "state.pt")
        if len(state.squares) == stop_after:
            raise Stop

    with pytest.raises(Stop):
        estimate(matrix, 2, 4, save=save, **options)
    state = ProbeState(**torch.load(tmp_path / "state.pt", weights_only=True))
    assert len(state.squares) == stop_after
    continued = estimate(matrix, 2, 4, state=state, **options)
    assert repr(continued) == repr(whole)

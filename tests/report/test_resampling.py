"""Coefficients of resamples compared with scipy on repeated points, and the coverage of their intervals."""

import numpy as np
import pytest
from scipy import stats

from normstudy.report import resampling

pytestmark = pytest.mark.filterwarnings("error")
SCIPY = {"Pearson": stats.pearsonr, "Spearman": stats.spearmanr, "Kendall": stats.kendalltau}


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("n", [5, 12, 40])
def test_a_resample_by_counts_is_scipys_coefficient_of_repeated_points(n, seed):
    generator = np.random.default_rng(seed)
    x, y = generator.integers(0, 6, n).astype(float), generator.normal(size=n).round(1)
    counts = generator.multinomial(n, np.full(n, 1 / n), size=20)
    found = resampling.resampled_coefficients(x, y, counts)
    for row, times in enumerate(counts):
        a, b = np.repeat(x, times), np.repeat(y, times)
        if np.ptp(a) > 0 and np.ptp(b) > 0:
            for name, function in SCIPY.items():
                assert found[name][row] == pytest.approx(function(a, b)[0], abs=1e-5)


def test_the_interval_covers_the_truth_about_as_often_as_it_says():
    """For 200 samples of 40 points with correlation 0.5, 88 to 99 % of the 95 % intervals contain 0.5."""
    generator = np.random.default_rng(0)
    held = 0
    for _ in range(200):
        x = generator.normal(size=40)
        y = 0.5 * x + np.sqrt(0.75) * generator.normal(size=40)
        counts = resampling.resample_counts(generator, 40, 400)
        low, high = resampling.interval_of(resampling.resampled_coefficients(x, y, counts)["Pearson"])
        held += low <= 0.5 <= high
    assert 0.88 * 200 <= held <= 0.99 * 200

"""Bootstrap resamples: how often each point is drawn, the coefficients of the resamples, and intervals."""

import numpy as np

RESAMPLES = 1000
INTERVAL = (0.025, 0.975)  # quantiles of the resamples that bound a 95 % interval
MIN_SAMPLES = 100  # minimum number of finite resamples for an interval
MOST_PAIRWISE = 3000  # maximum number of points for Kendall's interval, which uses all pairs


def resample_counts(generator: np.random.Generator, n: int, resamples: int) -> np.ndarray:
    """Return how often each of n items is drawn in n draws with replacement: (resamples, n)."""
    return generator.multinomial(n, np.full(n, 1 / n), size=resamples)


def interval_of(samples: np.ndarray) -> tuple[float, float]:
    """Return the 95 % interval of samples (B,); NaN if fewer than MIN_SAMPLES are finite."""
    samples = samples[np.isfinite(samples)]
    if len(samples) < MIN_SAMPLES:
        return np.nan, np.nan
    low, high = np.quantile(samples, INTERVAL)
    return low, high


def resampled_coefficients(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> dict[str, np.ndarray]:
    """Return {coefficient: (B,)} of B resamples; resample b contains point i counts[b, i] times.

    The result is that of repeating the points, but ranks and pairs are weighted instead. Kendall's coefficient is τ-b;
    it is NaN for more than MOST_PAIRWISE points.
    """
    counts = counts.astype(float)
    found = {
        "Pearson": _weighted_pearson(x[None], y[None], counts),
        "Spearman": _weighted_pearson(_weighted_ranks(x, counts), _weighted_ranks(y, counts), counts),
    }
    if len(x) <= MOST_PAIRWISE:
        signs = [np.sign(values[:, None] - values[None]).astype(np.float32) for values in (x, y)]
        weights = counts.astype(np.float32)
        agreement, untied_x, untied_y = (
            ((weights @ matrix) * weights).sum(1, dtype=float)
            for matrix in (signs[0] * signs[1], np.abs(signs[0]), np.abs(signs[1]))
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            found["Kendall"] = agreement / np.sqrt(untied_x * untied_y)
    else:
        found["Kendall"] = np.full(len(counts), np.nan)
    return found


def _weighted_pearson(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Pearson's r (B,) of points x, y (B or 1, n), with counts (B, n) as their weights."""
    total = counts.sum(1, keepdims=True)
    x = x - (x * counts).sum(1, keepdims=True) / total
    y = y - (y * counts).sum(1, keepdims=True) / total
    covariance, x_variance, y_variance = ((counts * product).sum(1) for product in (x * y, x * x, y * y))
    with np.errstate(divide="ignore", invalid="ignore"):
        return covariance / np.sqrt(x_variance * y_variance)


def _weighted_ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return the mean rank of each of n values among the repeated values: (B, n)."""
    distinct, place = np.unique(values, return_inverse=True)
    per_value = np.zeros((len(counts), len(distinct)))
    for index in range(len(distinct)):
        per_value[:, index] = counts[:, place == index].sum(1)
    below = np.cumsum(per_value, axis=1) - per_value
    return (below + (per_value + 1) / 2)[:, place]

"""Bootstrap resamples: how often each item is drawn."""

import numpy as np

RESAMPLES = 1000
INTERVAL = (0.025, 0.975)  # quantiles of the resamples that bound a 95 % interval


def resample_counts(generator: np.random.Generator, n: int, resamples: int) -> np.ndarray:
    """Return how often each of n items is drawn in n draws with replacement: (resamples, n)."""
    return generator.multinomial(n, np.full(n, 1 / n), size=resamples)

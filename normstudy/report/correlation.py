"""Which measure goes with which outcome: coefficients, intervals, p values."""

import warnings
from dataclasses import dataclass

import numpy as np
import pandas as pd
from scipy import stats

from normstudy.report.tables import MEASURES, MIN_POINTS, OUTCOMES, hyperparameters, setting_keys

COEFFICIENTS = ("Pearson", "Spearman", "Kendall")
RESAMPLES = 1000
MOST_PAIRWISE = 3000  # runs of which Kendall's interval is made from all pairs


def correlation_coefficients(x, y):
    """{"Pearson", "Spearman", "Kendall": (value, p)} by scipy; NaN for fewer than LEAST points or a constant."""
    if len(x) < MIN_POINTS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict.fromkeys(COEFFICIENTS, (np.nan, np.nan))
    functions = {"Pearson": stats.pearsonr, "Spearman": stats.spearmanr, "Kendall": stats.kendalltau}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return {name: tuple(map(float, function(x, y)))[:2] for name, function in functions.items()}


def resampled_coefficients(x, y, counts):
    """{coefficient: (B,)} of resamples in which each of n points stands counts (B, n) times; Kendall's is τ-b.

    The same as repeating the points; ranks and pairs are weighted instead.
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


def _weighted_pearson(x, y, counts):
    total = counts.sum(1, keepdims=True)
    x = x - (x * counts).sum(1, keepdims=True) / total
    y = y - (y * counts).sum(1, keepdims=True) / total
    covariance, x_variance, y_variance = ((counts * product).sum(1) for product in (x * y, x * x, y * y))
    with np.errstate(divide="ignore", invalid="ignore"):
        return covariance / np.sqrt(x_variance * y_variance)


def _weighted_ranks(values, counts):
    """The mean rank of each value among repeated ones: (B, n)."""
    distinct, place = np.unique(values, return_inverse=True)
    per_value = np.zeros((len(counts), len(distinct)))
    for index in range(len(distinct)):
        per_value[:, index] = counts[:, place == index].sum(1)
    below = np.cumsum(per_value, axis=1) - per_value
    return (below + (per_value + 1) / 2)[:, place]


@dataclass(frozen=True)
class Correlation:
    """One coefficient of a measure and an outcome; NaN where there are too few points. p is adjusted by Holm."""

    measure: str
    outcome: str
    way: str
    coefficient: str
    value: float
    low: float
    high: float
    n: int
    p: float
    p_holm: float = np.nan


def correlate_measures(table, measures=MEASURES, outcomes=OUTCOMES, resamples=RESAMPLES, seed=0):
    """Every measure against every outcome, pooled and within cells, as a frame of Correlation's fields.

    A row is a point; where each is to be a setting, over_seeds gives the table. pooled: all rows. within cells: the
    mean, weighted by rows, of the coefficients in each cell of equal hyperparameters (all but norm, grouping and seed)
    that has LEAST rows. low and high are the 95 % interval of resampling rows (within their cells). p is that of
    independence, two-sided (pooled: scipy's; within cells: normal, with each cell's variance under independence);
    p_holm is adjusted over all measures and outcomes of a way and coefficient (Holm 1979).
    """
    usable = table[~table["has_failed"]]
    axes = hyperparameters(table)
    cells = setting_keys(usable, axes)
    generator = np.random.default_rng(seed)
    found = []
    for measure in measures:
        for outcome in outcomes:
            pair = usable[[measure, outcome]].dropna()
            x, y = pair[measure].to_numpy(float), pair[outcome].to_numpy(float)
            found += _pooled(measure, outcome, x, y, resamples, generator)
            found += _within(measure, outcome, x, y, cells[pair.index].to_numpy(), resamples, generator)
    frame = pd.DataFrame(found, columns=list(Correlation.__dataclass_fields__))
    for _, family in frame.groupby(["way", "coefficient"]):
        frame.loc[family.index, "p_holm"] = holm_adjusted(family["p"].to_numpy())
    return frame


def resample_counts(generator, n, resamples):
    """(resamples, n): how often each of n things is drawn in n draws with replacement."""
    return generator.multinomial(n, np.full(n, 1 / n), size=resamples)


def _interval(samples):
    samples = samples[np.isfinite(samples)]
    return tuple(np.quantile(samples, [0.025, 0.975])) if len(samples) >= 100 else (np.nan, np.nan)


def _pooled(measure, outcome, x, y, resamples, generator):
    values = correlation_coefficients(x, y)
    has_value = np.isfinite(values["Pearson"][0])
    samples = resampled_coefficients(x, y, resample_counts(generator, len(x), resamples)) if has_value else {}
    for name, (value, p) in values.items():
        low, high = _interval(samples[name]) if has_value else (np.nan, np.nan)
        yield Correlation(measure, outcome, "pooled", name, value, low, high, len(x), p)


def _within(measure, outcome, x, y, cells, resamples, generator):
    parts = [np.flatnonzero(cells == cell) for cell in np.unique(cells)]
    parts = [part for part in parts if np.isfinite(correlation_coefficients(x[part], y[part])["Pearson"][0])]
    n = sum(map(len, parts))
    values, variances = (dict.fromkeys(COEFFICIENTS, 0.0) for _ in range(2))
    samples = {name: np.zeros(resamples) for name in COEFFICIENTS}
    for part in parts:
        size, weight = len(part), len(part) / n
        drawn = resampled_coefficients(x[part], y[part], resample_counts(generator, size, resamples))
        for name, (value, _) in correlation_coefficients(x[part], y[part]).items():
            variance = 2 * (2 * size + 5) / (9 * size * (size - 1)) if name == "Kendall" else 1 / (size - 1)
            values[name] += weight * value
            variances[name] += weight**2 * variance
            samples[name] += weight * np.nan_to_num(drawn[name], nan=value)
    for name in COEFFICIENTS:
        if not parts:
            yield Correlation(measure, outcome, "within cells", name, np.nan, np.nan, np.nan, 0, np.nan)
            continue
        low, high = _interval(samples[name])
        p = 2 * stats.norm.sf(abs(values[name]) / np.sqrt(variances[name]))
        yield Correlation(measure, outcome, "within cells", name, values[name], low, high, n, float(p))


def holm_adjusted(p):
    """p values adjusted for their number (Holm 1979); NaN stays, and is not counted."""
    p = np.asarray(p, float)
    adjusted = np.full(len(p), np.nan)
    order = [index for index in np.argsort(p) if np.isfinite(p[index])]
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p[index]))
        adjusted[index] = largest
    return adjusted

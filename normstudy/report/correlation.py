"""Correlations of measures with outcomes: coefficients, intervals and p values."""

import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields

import numpy as np
import pandas as pd
from scipy import stats

from normstudy.report.resampling import RESAMPLES, interval_of, resample_counts, resampled_coefficients
from normstudy.report.tables import MEASURES, MIN_POINTS, OUTCOMES, hyperparameters, setting_keys

COEFFICIENTS = ("Pearson", "Spearman", "Kendall")


@dataclass(frozen=True)
class Correlation:
    """One coefficient of a measure and an outcome, with its 95 % interval, number of points and p value.

    `way` is "pooled" or "within cells". Numbers are NaN if there are too few points. p_holm is p adjusted by Holm's
    method.
    """

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


def correlate_measures(
    table: pd.DataFrame,
    measures: Iterable[str] = MEASURES,
    outcomes: Iterable[str] = OUTCOMES,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Correlate every measure with every outcome, pooled and within cells; return a frame of Correlation's fields.

    Each row of `table` is one point. For one point per setting, pass the result of average_over_seeds.

    "pooled" uses all rows. "within cells" is the mean of the coefficients of the cells, weighted by their rows. A cell
    is a set of rows with equal hyperparameters (all but norm, grouping and seed); cells with fewer than MIN_POINTS
    rows are left out. low and high bound the 95 % interval from resampling rows (within their cells). p is the
    two-sided p value for independence: scipy's for "pooled", and a normal approximation with each cell's variance
    under independence for "within cells". p_holm is adjusted over all measures and outcomes with the same way and
    coefficient (Holm 1979).
    """
    usable = table[~table["has_failed"]]
    cells = setting_keys(usable, hyperparameters(table))
    generator = np.random.default_rng(seed)
    found: list[Correlation] = []
    for measure in measures:
        for outcome in outcomes:
            pair = usable[[measure, outcome]].dropna()
            x, y = pair[measure].to_numpy(float), pair[outcome].to_numpy(float)
            found += _pooled(measure, outcome, x, y, resamples, generator)
            found += _within(measure, outcome, x, y, cells[pair.index].to_numpy(), resamples, generator)
    frame = pd.DataFrame(found, columns=[field.name for field in fields(Correlation)])
    for _, family in frame.groupby(["way", "coefficient"]):
        frame.loc[family.index, "p_holm"] = holm_adjusted(family["p"].to_numpy())
    return frame


def select_coefficient(correlations: pd.DataFrame, way: str, coefficient: str) -> pd.DataFrame:
    """Return the rows of a frame of correlate_measures that have this way and coefficient."""
    return correlations[(correlations["way"] == way) & (correlations["coefficient"] == coefficient)]


def select_pair(frame: pd.DataFrame, measure: str, outcome: str) -> pd.DataFrame:
    """Return the rows of a frame of correlate_measures or granulated_table for this measure and outcome."""
    return frame[(frame["measure"] == measure) & (frame["outcome"] == outcome)]


def correlation_coefficients(x: np.ndarray, y: np.ndarray) -> dict[str, tuple[float, float]]:
    """Return scipy's {"Pearson", "Spearman", "Kendall": (value, p)}.

    All are NaN for fewer than MIN_POINTS points, or if x or y is constant.
    """
    if len(x) < MIN_POINTS or np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict.fromkeys(COEFFICIENTS, (np.nan, np.nan))
    functions = {"Pearson": stats.pearsonr, "Spearman": stats.spearmanr, "Kendall": stats.kendalltau}
    found = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        for name, function in functions.items():
            value, p = function(x, y)
            found[name] = float(value), float(p)
    return found


def _pooled(
    measure: str, outcome: str, x: np.ndarray, y: np.ndarray, resamples: int, generator: np.random.Generator
) -> Iterator[Correlation]:
    values = correlation_coefficients(x, y)
    has_value = np.isfinite(values["Pearson"][0])
    samples = resampled_coefficients(x, y, resample_counts(generator, len(x), resamples)) if has_value else {}
    for name, (value, p) in values.items():
        low, high = interval_of(samples[name]) if has_value else (np.nan, np.nan)
        yield Correlation(measure, outcome, "pooled", name, value, low, high, len(x), p)


def _within(
    measure: str,
    outcome: str,
    x: np.ndarray,
    y: np.ndarray,
    cells: np.ndarray,
    resamples: int,
    generator: np.random.Generator,
) -> Iterator[Correlation]:
    parts = [np.flatnonzero(cells == cell) for cell in np.unique(cells)]
    parts = [part for part in parts if np.isfinite(correlation_coefficients(x[part], y[part])["Pearson"][0])]
    n = sum(map(len, parts))
    values, variances = dict.fromkeys(COEFFICIENTS, 0.0), dict.fromkeys(COEFFICIENTS, 0.0)
    samples = {name: np.zeros(resamples) for name in COEFFICIENTS}
    for part in parts:
        size, weight = len(part), len(part) / n
        drawn = resampled_coefficients(x[part], y[part], resample_counts(generator, size, resamples))
        for name, (value, _) in correlation_coefficients(x[part], y[part]).items():
            variance = 2 * (2 * size + 5) / (9 * size * (size - 1)) if name == "Kendall" else 1 / (size - 1)
            values[name] += weight * value
            variances[name] += weight**2 * variance
            has_samples = np.isfinite(drawn[name]).any()  # Kendall's coefficient of many points has none
            samples[name] += weight * (np.nan_to_num(drawn[name], nan=value) if has_samples else np.nan)
    for name in COEFFICIENTS:
        if not parts:
            yield Correlation(measure, outcome, "within cells", name, np.nan, np.nan, np.nan, 0, np.nan)
            continue
        low, high = interval_of(samples[name])
        p = 2 * stats.norm.sf(abs(values[name]) / np.sqrt(variances[name]))
        yield Correlation(measure, outcome, "within cells", name, values[name], low, high, n, float(p))


def holm_adjusted(p: np.ndarray) -> np.ndarray:
    """Return p values (n,) adjusted for their number (Holm 1979); NaN stays NaN and is not counted."""
    p = np.asarray(p, float)
    adjusted = np.full(len(p), np.nan)
    order = [index for index in np.argsort(p) if np.isfinite(p[index])]
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p[index]))
        adjusted[index] = largest
    return adjusted

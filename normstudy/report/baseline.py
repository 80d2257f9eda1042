"""Differences of each norm to a baseline norm, paired by cell and seed."""

import math

import numpy as np
import pandas as pd
from scipy import stats

from normstudy.report.rankings import LEAST_CELLS, Contrast
from normstudy.report.tables import hyperparameters, setting_keys
from normstudy.report.tuning import ways_to_compare

BASELINE = "BatchNorm"
EQUIVALENT = 1.0  # points of accuracy within which norms count as equivalent
POWER, MOST_SEEDS = 0.8, 1000
COLUMNS = ["network", "norm", "baseline", "at", "n", "difference", "low", "high", "verdict", "seeds_needed"]


def differences_to(table: pd.DataFrame, baseline: str = BASELINE) -> pd.DataFrame:
    """Compare each norm's test accuracy with the baseline's; return a frame with COLUMNS.

    A pair is a norm and the baseline in one cell with one seed (each the mean over its groupings); without seeds, or
    without common ones, a cell is a pair. The interval is a t-interval: over cells with at least LEAST_CELLS of them,
    else over the pairs in these cells. verdict: see verdict_of. seeds_needed: the number of pairs per cell with which
    a paired t-test finds a difference of 1 point in 80 % of the cases.
    """
    rows = []
    for network in table["Model"].unique():
        for at, chosen in ways_to_compare(table[table["Model"] == network]):
            for norm, pairs in _pairs(chosen, baseline).items():
                contrast, spread = _contrast(pairs)
                low, high = contrast.interval()
                found = [contrast.value, low, high, verdict_of(low, high), seeds_needed(spread)]
                rows.append([network, norm, baseline, at, len(pairs), *found])
    return pd.DataFrame(rows, columns=COLUMNS)


def _pairs(table: pd.DataFrame, baseline: str) -> dict[str, pd.Series]:
    """Return {norm: its differences to the baseline, indexed by (cell, seed)}."""
    usable = table[~table["has_failed"]]
    usable = usable.assign(cell=setting_keys(usable, hyperparameters(table)), seed=usable["seed"].fillna(-1))
    settings = usable.groupby(["cell", "seed", "Norm", "Label"])["Test Accuracy"].mean()
    by_seed = settings.groupby(level=["cell", "seed", "Norm"]).mean().unstack("Norm")
    by_cell = by_seed.groupby(level="cell").mean()
    found = {}
    for norm in by_seed.columns:
        if norm == baseline or baseline not in by_seed:
            continue
        pairs = (by_seed[norm] - by_seed[baseline]).dropna()
        if pairs.empty:
            pairs = (by_cell[norm] - by_cell[baseline]).dropna()
            pairs.index = pd.MultiIndex.from_product([pairs.index, [-1]], names=["cell", "seed"])
        if len(pairs):
            found[norm] = pairs
    return found


def _contrast(pairs: pd.Series) -> tuple[Contrast, float]:
    """Return the mean difference over cells, and the s.d. of differences within cells (NaN without two of a cell)."""
    cells = pairs.groupby(level="cell")
    means, sizes = cells.mean(), cells.size()
    freedom = int((sizes - 1).sum())
    spread = math.sqrt(((pairs - cells.transform("mean")) ** 2).sum() / freedom) if freedom else math.nan
    if len(means) >= LEAST_CELLS:
        error = means.std(ddof=1) / math.sqrt(len(means))
        return Contrast(means.mean(), error, len(means) - 1), spread
    error = spread * math.sqrt((1 / sizes).sum()) / len(means)
    return Contrast(means.mean(), error, freedom if freedom else math.nan), spread


def verdict_of(low: float, high: float) -> str:
    """Say what an interval of a difference shows.

    It is "better" or "worse" if it excludes zero, "equivalent within ±1 point" if it lies within ±1 point, else "within
    chance": the runs show neither a difference nor its absence.
    """
    if not low <= high:
        return "unknown: no spread between seeds"
    is_small = low > -EQUIVALENT and high < EQUIVALENT
    if low > 0 or high < 0:
        return ("better" if low > 0 else "worse") + (", by less than 1 point" if is_small else "")
    return f"equivalent within ±{EQUIVALENT:g} point" if is_small else "within chance"


def seeds_needed(spread: float) -> float:
    """Return the number of pairs for a power of 0.8 to find EQUIVALENT at the 5 % level.

    It is NaN without a spread, and inf above MOST_SEEDS.
    """
    if not (np.isfinite(spread) and spread > 0):
        return math.nan
    for n in range(2, MOST_SEEDS):
        limit = stats.t.ppf(0.975, n - 1)
        if stats.nct.sf(limit, n - 1, EQUIVALENT * math.sqrt(n) / spread) >= POWER:
            return n
    return math.inf

"""Rank association of a measure and an outcome, with whole norms as the independent units.

Points are arranged as blocks × entities. Between norms, a block is a cell and an entity a norm. Within norms, a block
is a norm in a cell, and an entity is one of its settings or runs. The coefficient is the mean of the blocks' Spearman's
ρ, weighted by their points.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from config import NORM_TRAITS
from normstudy.report.resampling import RESAMPLES, resample_counts

PERMUTATIONS = 9999
WITHOUT_RUNNING = "without running statistics"
WITHOUT_TUNING = "without the seed that chose the rates"
CHUNK = 500  # permutations or resamples computed at once
LEAST_BETWEEN, LEAST_WITHIN = 5, 3  # entities in a block for a coefficient


class Association(NamedTuple):
    """A coefficient with its 95 % interval and p value; NaN where it is not defined. The counts are those it rests on.

    n_settings counts points before norms are averaged, n_norms the norms, n_cells the cells.
    """

    value: float
    low: float
    high: float
    n_settings: int
    n_norms: int
    n_cells: int
    p: float


UNDEFINED = Association(np.nan, np.nan, np.nan, 0, 0, 0, np.nan)


def between_norms(
    points: pd.DataFrame, resamples: int = RESAMPLES, permutations: int = PERMUTATIONS, seed: int = 0
) -> Association:
    """Associate norms' values of x and y within cells.

    points: a row for each setting, with the columns norm, cell, x, y. A norm's settings in a cell are averaged. p
    permutes whole norms, jointly over cells (their x moves to another norm's y). The interval is a t-interval on the
    scale of Fisher's z, with the standard error of resampled norms and cells and the number of norms minus one as
    degrees of freedom. With fewer than five cells, the standard error is at least that of independent norms in one
    cell, √((1 + ρ²/2)/(norms − 3)) (Bonett & Wright 2000).
    """
    points = points.dropna(subset=["x", "y"])
    means = points.groupby(["cell", "norm"], sort=True)[["x", "y"]].mean()
    table = means.unstack("norm") if len(means) else None
    if table is None:
        return UNDEFINED
    x, y = table["x"].to_numpy(float), table["y"].to_numpy(float)  # (cells, norms)
    kept = _has_coefficient(x, y, LEAST_BETWEEN)
    if not kept.any():
        return UNDEFINED
    cells = table.index[kept]
    x, y = x[kept], y[kept]
    norms = table["x"].columns[np.isfinite(x).any(0)]
    x, y = x[:, np.isfinite(x).any(0)], y[:, np.isfinite(x).any(0)]
    value = _weighted_mean_rho(x, y, np.ones((1, len(norms))), np.ones((1, len(cells))))[0]
    generator = np.random.default_rng(seed)
    p = _permutation_p(x, y, np.zeros(len(cells), int), permutations, generator)
    counts = resample_counts(generator, len(norms), resamples), resample_counts(generator, len(cells), resamples)
    low, high = _interval(value, _weighted_mean_rho(x, y, *counts), len(norms), len(cells) < LEAST_BETWEEN)
    used = points[points["cell"].isin(cells) & points["norm"].isin(norms)]
    return Association(value, low, high, len(used), len(norms), len(cells), p)


def without_each_norm(points: pd.DataFrame) -> dict[str, float]:
    """Return {norm: the coefficient of between_norms without it}; NaN where too few norms are left.

    WITHOUT_RUNNING is without all norms that keep running statistics, if there are some.
    """
    norms = sorted(points.dropna(subset=["x", "y"])["norm"].unique())
    found = {norm: between_norms(points[points["norm"] != norm], 2, 0).value for norm in norms}
    keeping = {norm for norm in norms if norm in NORM_TRAITS and NORM_TRAITS[norm].has_batch_statistics}
    if keeping:
        found[WITHOUT_RUNNING] = between_norms(points[~points["norm"].isin(keeping)], 2, 0).value
    return found


def within_norms(
    points: pd.DataFrame,
    are_separate: bool = False,
    resamples: int = RESAMPLES,
    permutations: int = PERMUTATIONS,
    seed: int = 0,
) -> Association:
    """Associate x and y among the settings, or the runs, of one norm in one cell.

    points: a row for each point, with the columns norm, cell, entity, x, y. p permutes a norm's entities, jointly over
    its cells, or with `are_separate` in each cell by itself, for entities such as runs that are other ones in each
    cell. The interval is as in between_norms, from resampled norms; it needs five norms.
    """
    points = points.dropna(subset=["x", "y"]).drop_duplicates(["norm", "cell", "entity"])
    points = points[points.groupby(["norm", "cell"])["x"].transform("size") >= LEAST_WITHIN]
    if points.empty:
        return UNDEFINED
    place = points.groupby("norm")["entity"].transform(lambda entities: pd.factorize(entities)[0])
    table = points.assign(place=place).pivot(index=["norm", "cell"], columns="place", values=["x", "y"])
    x, y = table["x"].to_numpy(float), table["y"].to_numpy(float)
    kept = _has_coefficient(x, y, LEAST_WITHIN)
    if not kept.any():
        return UNDEFINED
    x, y, blocks = x[kept], y[kept], table.index[kept]
    norms, of_block = np.unique(blocks.get_level_values("norm"), return_inverse=True)
    entities = np.ones((1, x.shape[1]))
    value = _weighted_mean_rho(x, y, entities, np.ones((1, len(blocks))))[0]
    generator = np.random.default_rng(seed)
    group_of_block = np.arange(len(blocks)) if are_separate else of_block
    p = _permutation_p(x, y, group_of_block, permutations, generator)
    counts = resample_counts(generator, len(norms), resamples)[:, of_block]
    low, high = _interval(value, _weighted_mean_rho(x, y, entities, counts), len(norms))
    n_cells = blocks.get_level_values("cell").nunique()
    return Association(value, low, high, int(np.isfinite(x).sum()), len(norms), n_cells, p)


def compare_between(points: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> Association:
    """Compare the strength of two measures: |ρ| of x minus |ρ| of `rival`, both with y between norms.

    points: a row for each setting, with the columns norm, cell, x, rival, y. Norms and cells are resampled together,
    and the interval is the t-interval with the standard error of the difference. p is NaN.
    """
    points = points.dropna(subset=["x", "rival", "y"])
    means = points.groupby(["cell", "norm"], sort=True)[["x", "rival", "y"]].mean()
    if means.empty:
        return UNDEFINED
    table = means.unstack("norm")
    x, rival, y = (table[name].to_numpy(float) for name in ("x", "rival", "y"))
    kept = _has_coefficient(x, y, LEAST_BETWEEN) & _has_coefficient(rival, y, LEAST_BETWEEN)
    if not kept.any():
        return UNDEFINED
    there = np.isfinite(x[kept]).any(0)
    x, rival, y = (each[kept][:, there] for each in (x, rival, y))
    cells, norms = x.shape
    points = points[points["cell"].isin(table.index[kept]) & points["norm"].isin(table["x"].columns[there])]
    generator = np.random.default_rng(seed)
    counts = resample_counts(generator, norms, resamples), resample_counts(generator, cells, resamples)
    whole = np.ones((1, norms)), np.ones((1, cells))

    def strength(drawn: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
        own, other = (_weighted_mean_rho(each, y, *drawn) for each in (x, rival))
        return np.abs(own) - np.abs(other)

    value, resampled = float(strength(whole)[0]), strength(counts)
    error = np.nanstd(resampled, ddof=1)
    half = stats.t.ppf(0.975, norms - 1) * error if error > 1e-9 else np.nan  # resamples that all agree say nothing
    return Association(value, value - half, value + half, len(points), norms, cells, np.nan)


def _has_coefficient(x: np.ndarray, y: np.ndarray, least: int) -> np.ndarray:
    """Return which blocks (blocks, entities) have enough points, not all equal in x or in y."""
    there = np.isfinite(x) & np.isfinite(y)
    spread = [np.nanmax(np.where(there, v, -np.inf), 1) > np.nanmin(np.where(there, v, np.inf), 1) for v in (x, y)]
    enough: np.ndarray = there.sum(1) >= least
    return enough & spread[0] & spread[1]


def _ranks(values: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return mean ranks along the last axis, in which entity i occurs counts[…, i] times; 0 leaves it out."""
    below = (values[..., None, :] < values[..., :, None]).astype(float)
    equal = (values[..., None, :] == values[..., :, None]).astype(float)
    ranks: np.ndarray = np.einsum("...ij,...j->...i", below + 0.5 * equal, counts) + 0.5
    return ranks


def _rho(x: np.ndarray, y: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """Return Spearman's ρ along the last axis; NaN if all values are equal. Entities with count 0 may be anything."""
    total = counts.sum(-1, keepdims=True)
    with np.errstate(divide="ignore", invalid="ignore"):
        x, y = (
            rank - (rank * counts).sum(-1, keepdims=True) / total for rank in (_ranks(x, counts), _ranks(y, counts))
        )
        spread = np.sqrt((counts * x * x).sum(-1) * (counts * y * y).sum(-1))
        found: np.ndarray = np.where(spread > 1e-9, (counts * x * y).sum(-1) / spread, np.nan)
    return found


def _weighted_mean_rho(x: np.ndarray, y: np.ndarray, entities: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """Return the mean ρ of blocks in B resamples: entities (B or 1, entities) and blocks (B, blocks) are counts."""
    there = np.isfinite(x) & np.isfinite(y)
    filled = np.where(there, x, 0), np.where(there, y, 0)
    found = []
    for start in range(0, len(blocks), CHUNK):
        part = slice(start, start + CHUNK)
        chosen = entities[part] if len(entities) > 1 else entities
        counts = chosen[:, None, :] * there  # (B, blocks, entities)
        rho = _rho(np.broadcast_to(filled[0], counts.shape), np.broadcast_to(filled[1], counts.shape), counts)
        weights = blocks[part] * counts.sum(-1) * np.isfinite(rho)
        with np.errstate(invalid="ignore"):
            found.append((weights * np.nan_to_num(rho)).sum(1) / weights.sum(1))
    return np.concatenate(found)


def _permutation_p(
    x: np.ndarray,
    y: np.ndarray,
    group_of_block: np.ndarray,
    permutations: int,
    generator: np.random.Generator,
) -> float:
    """Return the two-sided p value: the share of permutations of entities with as large a coefficient.

    An entity takes the x of another one in all blocks of its group (all blocks, the blocks of a norm, or one block).
    The statistic is the sum over entities of u = Σ over blocks of the products of their centred ranks. If entities lack
    some blocks, their profiles are not exchangeable as they are; the sum is then divided by √Σu² (Janssen 1997).
    """
    if permutations == 0:
        return np.nan
    x_scores, y_scores = _scores(x), _scores(y)
    is_whole = bool((np.isfinite(x) & np.isfinite(y)).all())
    groups = [group_of_block == group for group in np.unique(group_of_block)]

    def statistic(moved: np.ndarray) -> np.ndarray:
        """Return (B,) for B moved scores (B, blocks, entities)."""
        products = moved * y_scores
        total = products.sum((1, 2))
        if is_whole:
            return np.abs(total)
        squares = sum((products[:, own].sum(1) ** 2).sum(1) for own in groups)
        return np.abs(total) / np.sqrt(np.maximum(squares, 1e-30))

    found, extreme = statistic(x_scores[None])[0], 1
    for start in range(0, permutations, CHUNK):
        size = min(CHUNK, permutations - start)
        moved = np.empty((size, *x.shape))
        for own in groups:
            there = np.flatnonzero(np.isfinite(x[own]).any(0))
            order = np.tile(np.arange(x.shape[1]), (size, 1))
            order[:, there] = generator.permuted(np.tile(there, (size, 1)), axis=1)
            moved[:, own] = np.moveaxis(x_scores[own][:, order], 0, 1)
        extreme += int((statistic(moved) >= found - 1e-9).sum())
    return extreme / (permutations + 1)


def _scores(values: np.ndarray) -> np.ndarray:
    """Return centred ranks of blocks (blocks, entities), 0 where missing.

    They are scaled so that the products of a block's x and y scores add up to √n · ρ, with n its points.
    """
    there = np.isfinite(values)
    ranks = np.where(there, _ranks(np.where(there, values, 0), there.astype(float)), 0)
    ranks = np.where(there, ranks - ranks.sum(1, keepdims=True) / there.sum(1, keepdims=True), 0)
    scores: np.ndarray = ranks / np.linalg.norm(ranks, axis=1, keepdims=True) * there.sum(1, keepdims=True) ** 0.25
    return scores


def _interval(value: float, resampled: np.ndarray, n: int, is_single: bool = False) -> tuple[float, float]:
    """Return the t-interval of a coefficient on the scale of Fisher's z; NaN with fewer than LEAST_BETWEEN units.

    Few units often agree perfectly, also in resamples, which says little: coefficients are limited to 1 − 1/(2n). At
    this limit, and with `is_single` (few cells), the standard error is at least that of n independent units,
    √((1 + ρ²/2)/(n − 3)) (Bonett & Wright 2000).
    """
    resampled = resampled[np.isfinite(resampled)]
    if n < LEAST_BETWEEN or len(resampled) < 2 or not np.isfinite(value):
        return np.nan, np.nan
    limit = 1 - 0.5 / n
    z, centre = np.arctanh(np.clip(resampled, -limit, limit)), np.arctanh(np.clip(value, -limit, limit))
    half = stats.t.ppf(0.975, n - 1) * z.std(ddof=1)
    if is_single or abs(value) >= limit:
        half = max(half, stats.norm.ppf(0.975) * math.sqrt((1 + value**2 / 2) / (n - 3)))
    if half < 1e-9:  # resamples that all agree say nothing
        return np.nan, np.nan
    low, high = float(np.tanh(centre - half)), float(np.tanh(centre + half))
    return min(low, value), max(high, value)

"""Granulated rank correlation (Jiang et al. 2020)."""

from collections.abc import Iterable
from typing import NamedTuple

import numpy as np
import pandas as pd

from normstudy.report.resampling import INTERVAL, RESAMPLES
from normstudy.report.tables import MIN_POINTS, OUTCOMES, axes_of, hyperparameters, setting_keys

Groups = dict[str, list[tuple[np.ndarray, np.ndarray]]]  # by hyperparameter; see groups_by_axis


class Granulated(NamedTuple):
    """Ψ with its 95 % interval, and each hyperparameter's ψ with the number of groups that it averages over."""

    by_axis: dict[str, tuple[float, int]]
    value: float
    low: float
    high: float


def groups_by_axis(table: pd.DataFrame) -> Groups:
    """Return {axis: [(positions of runs, their values of it)]}: groups of runs that differ only in an axis of axes_of.

    The norm with its grouping is the axis Label.
    """
    names = ["Label", *hyperparameters(table)]
    found = {}
    for axis, columns in {"Label": ["Label"], **axes_of(table)}.items():
        keys = setting_keys(table, [name for name in names if name not in columns]).to_numpy()
        settings = setting_keys(table, columns).to_numpy()
        _, inverse, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        groups = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
        found[axis] = [(group, settings[group]) for group in groups if len(set(settings[group])) > 1]
    return found


def granulated_psi(
    table: pd.DataFrame,
    measure: str,
    outcome: str,
    groups: Groups,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> Granulated:
    """Compute Ψ of Jiang et al. 2020, section 3; it is NaN if no hyperparameter has a ψ.

    ψ of a hyperparameter is the mean, over groups of runs that differ only in it, of the sign agreement of measure and
    outcome over the group's pairs (ties count 0). A hyperparameter with fewer than MIN_POINTS groups has no ψ, because
    Ψ would give its few pairs the same weight as the many of another. Ψ is the mean of all ψ; its 95 % interval comes
    from resampling groups. The smallest and largest ψ are the worst cases (after Dziugaite et al. 2020). `groups` is
    groups_by_axis of the runs that did not fail.
    """
    usable = table[~table["has_failed"]]
    x, y = usable[measure].to_numpy(float), usable[outcome].to_numpy(float)
    is_there = np.isfinite(x) & np.isfinite(y)
    generator = np.random.default_rng(seed)
    found: dict[str, tuple[float, int]] = {}
    samples = []
    for axis, members in groups.items():
        agreements = []
        for positions, settings in members:
            kept = is_there[positions]
            agreement = sign_agreement(x[positions[kept]], y[positions[kept]], settings[kept])
            if np.isfinite(agreement):
                agreements.append(agreement)
        n = len(agreements)
        if n >= MIN_POINTS:
            found[axis] = float(np.mean(agreements)), n
            samples.append(np.array(agreements)[generator.integers(0, n, (resamples, n))].mean(1))
    if not found:
        return Granulated({}, np.nan, np.nan, np.nan)
    low, high = np.quantile(np.mean(samples, axis=0), INTERVAL)
    return Granulated(found, float(np.mean([psi for psi, _ in found.values()])), float(low), float(high))


def granulated_table(
    table: pd.DataFrame,
    measures: Iterable[str],
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Return a frame with one row for each measure and outcome, which holds its granulated_psi.

    The columns are Ψ (value), its interval (low, high), the hyperparameters of the smallest and the largest ψ (lowest,
    highest), and every ψ with its number of groups.
    """
    rows, groups = [], groups_by_axis(table[~table["has_failed"]])
    for measure in measures:
        for outcome in OUTCOMES:
            found, value, low, high = granulated_psi(table, measure, outcome, groups, resamples, seed)
            row = {"measure": measure, "outcome": outcome, "value": value, "low": low, "high": high}
            row["lowest"] = min(found, key=lambda axis: found[axis][0], default="")
            row["highest"] = max(found, key=lambda axis: found[axis][0], default="")
            for axis, (psi, n) in found.items():
                row |= {f"ψ {axis}": psi, f"groups {axis}": n}
            rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["measure", "outcome", "value", "low", "high"])


def sign_agreement(x: np.ndarray, y: np.ndarray, settings: np.ndarray) -> float:
    """Return the mean of sign(xᵢ−xⱼ)·sign(yᵢ−yⱼ) over pairs whose settings differ; NaN without such a pair."""
    signs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    pairs = settings[:, None] != settings
    return float(signs[pairs].mean()) if pairs.any() else np.nan

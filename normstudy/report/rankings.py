"""Rankings of norms and effects of settings, with intervals.

A cell is a set of runs with equal hyperparameters (all but norm, grouping and seed).
"""

from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from config import ARCHS
from normstudy.report.resampling import INTERVAL, RESAMPLES, resample_counts
from normstudy.report.tables import CELL, MIN_POINTS, hyperparameters, setting_keys


class SettingEffect(NamedTuple):
    """The mean difference of an outcome between two settings (second minus first), over n groups of runs."""

    value: float
    low: float
    high: float
    n: int
    settings: list[Any]


def summarize_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Compute mean, s.d. and n of each outcome for each norm (and grouping) in each cell, and count the failed runs.

    The columns that define a cell are those of CELL and all other hyperparameters that differ within the table.
    """
    keys = ["Label", *dict.fromkeys([*CELL, *hyperparameters(table)])]
    groups = table.assign(**{name: table[name].astype(str) for name in keys[1:]}).groupby(keys, sort=True)
    counts = pd.DataFrame({"n": groups.size(), "failed": groups["has_failed"].sum()})
    parts = [counts]
    for name in ("Test Accuracy", "Train Accuracy", "Gen. Ratio"):
        parts.append(groups[name].agg(["mean", "std"]).rename(columns={"mean": f"{name} mean", "std": f"{name} s.d."}))
    return pd.concat(parts, axis=1).reset_index()


def rank_norms(
    table: pd.DataFrame,
    outcome: str = "Test Accuracy",
    label: str = "Norm",
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> pd.DataFrame:
    """Rank norms by their advantage over the other norms in the same cells; return a frame, best first.

    `advantage` is the mean over a norm's runs of the outcome minus the mean of the norms' means in the run's cell.
    Cells with only one norm are left out, because they compare nothing. low and high bound the 95 % interval from
    resampling the cells, and in each cell every norm's runs; rank_low and rank_high bound that of the rank. They are
    NaN for a norm with one run, because one run does not show the spread. `failed` counts the runs that failed.
    """
    names = [label, "n", "failed", "mean", "advantage", "low", "high", "rank_low", "rank_high"]
    usable = table[~table["has_failed"] & table[outcome].notna()]
    usable = usable.assign(cell=setting_keys(usable, hyperparameters(table)))
    is_shared = usable.groupby("cell")[label].transform("nunique") > 1
    usable = usable[is_shared] if is_shared.any() else usable
    if usable.empty:
        return pd.DataFrame(columns=names)
    advantage, samples = _advantages(usable, outcome, label, resamples, seed)
    ranks = stats.rankdata(-np.where(np.isnan(samples), advantage, samples), axis=1)
    found = usable.groupby(label)[outcome].agg(["size", "mean"]).reset_index().rename(columns={"size": "n"})
    found.insert(2, "failed", found[label].map(table.groupby(label)["has_failed"].sum()).astype(int))
    found["advantage"] = advantage
    for name, values in (("", samples), ("rank_", ranks)):
        bounds = np.where(found["n"] > 1, np.nanquantile(values, INTERVAL, axis=0).round(9), np.nan)
        found[f"{name}low"], found[f"{name}high"] = bounds
    return found[names].sort_values("advantage", ascending=False, ignore_index=True)


def _advantages(
    usable: pd.DataFrame, outcome: str, label: str, resamples: int, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Return the advantage of each norm (norms,), in the order of their names, and that in each resample (B, norms)."""
    by_group = usable.groupby(["cell", label])[outcome]
    groups = by_group.agg(["mean", "size"]).reset_index()
    cells, of_group = np.unique(groups["cell"], return_inverse=True)
    members = pd.get_dummies(of_group).to_numpy(float).T  # (cells, groups)
    sizes = pd.get_dummies(groups[label]).to_numpy(float) * groups["size"].to_numpy()[:, None]  # (groups, norms): runs

    def advantages(means: np.ndarray, weights: np.ndarray) -> np.ndarray:
        """Return (B, norms) from the means of groups (B, groups) and how often each cell counts (B, cells)."""
        above = means - (means @ members.T / members.sum(1)) @ members
        weights = weights @ members
        with np.errstate(invalid="ignore"):
            return (above * weights) @ sizes / (weights @ sizes)

    generator = np.random.default_rng(seed)
    means = np.empty((resamples, len(groups)))
    for index, (_, values) in enumerate(by_group):
        means[:, index] = values.to_numpy()[generator.integers(0, len(values), (resamples, len(values)))].mean(1)
    samples = advantages(means, resample_counts(generator, len(cells), resamples))
    return advantages(groups["mean"].to_numpy()[None], np.ones((1, len(cells))))[0].round(9), samples


def rank_norms_by_network(table: pd.DataFrame, resamples: int = RESAMPLES, seed: int = 0) -> dict[str, pd.DataFrame]:
    """Return {network: ranking of its runs}, since different norms suit, and were tried in, different networks."""
    there = set(table["Model"])
    networks = dict.fromkeys(name for name in (*ARCHS, *sorted(there)) if name in there)
    found = {
        network: rank_norms(table[table["Model"] == network], resamples=resamples, seed=seed) for network in networks
    }
    return {network: ranks for network, ranks in found.items() if len(ranks)}


def setting_effect(
    table: pd.DataFrame, axis: str, outcome: str, resamples: int = RESAMPLES, seed: int = 0
) -> SettingEffect | None:
    """Compute how an outcome differs between the two settings of a hyperparameter.

    A difference is that of the means within a group of runs that are equal in norm, grouping and all other
    hyperparameters. Return None unless there are exactly two settings and at least MIN_POINTS groups.
    """
    usable = table[~table["has_failed"] & table[outcome].notna() & table[axis].notna()]
    settings = sorted(usable[axis].unique())
    if len(settings) != 2:
        return None
    others = ["Label", *(name for name in hyperparameters(usable) if name != axis)]
    keys = setting_keys(usable, others)
    means = usable.groupby([keys, axis])[outcome].mean().unstack()
    differences = (means[settings[1]] - means[settings[0]]).dropna().to_numpy()
    if len(differences) < MIN_POINTS:
        return None
    drawn = np.random.default_rng(seed).integers(0, len(differences), (resamples, len(differences)))
    low, high = np.quantile(differences[drawn].mean(1), INTERVAL)
    return SettingEffect(float(differences.mean()), float(low), float(high), len(differences), settings)

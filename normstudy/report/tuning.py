"""The learning rate of each norm that was tuned: the one with the highest validation accuracy."""

from typing import NamedTuple

import numpy as np
import pandas as pd

from normstudy.report.tables import hyperparameters, setting_keys

RATES = ("init_lr", "lr")
TUNED = "tuned"  # stands for the rate in the columns of rates


class Tuned(NamedTuple):
    """The runs at each setting's best rate, with TUNED in place of the rate.

    untuned: the runs of settings with one rate. edges: the settings whose best rate is at the edge of the grid.
    """

    runs: pd.DataFrame
    untuned: pd.DataFrame
    edges: list[str]


def at_best_rates(table: pd.DataFrame) -> Tuned | None:
    """Return the Tuned runs, or None if no setting was trained at several rates with validation images.

    A setting is a norm, its grouping, and all hyperparameters but the rate, which is the peak learning rate. Its rates
    are compared by the validation accuracy of one seed: that with the most rates, or of several the smallest. Failed
    runs are never chosen, and those that did not reach their training loss only if none did; of equal rates, the
    smaller is. Test accuracies play no part.
    """
    rates = [name for name in RATES if name in table and table[name].astype(str).nunique() > 1]
    if not rates or "validation_accuracy" not in table:
        return None
    columns = [pd.to_numeric(table[name], errors="coerce") if name in table else np.nan for name in RATES]
    rate = pd.Series(columns[1], index=table.index)
    rate = rate.where(rate > 0, 0.1 * pd.Series(columns[0], index=table.index).fillna(1.0) * table["Batch Size"] / 256)
    values = pd.to_numeric(table["validation_accuracy"], errors="coerce")
    known = table.assign(validation=values.where(~table["has_failed"]), rate=rate, is_late=is_late(table))
    axes = ["Label", *(name for name in hyperparameters(table) if name not in RATES)]
    kept, others, edges = [], [], []
    for _, runs in known.groupby(setting_keys(known, axes), sort=False):
        chosen = _best_rate(runs)
        if chosen is None:
            others.append(runs)
            continue
        kept.append(runs[runs["rate"] == chosen])
        if chosen in (runs["rate"].min(), runs["rate"].max()):
            edges.append(f"{runs['Model'].iloc[0]} {runs['Label'].iloc[0]} at {chosen:g}")
    if not kept:
        return None
    extra = ["validation", "rate", "is_late"]
    untuned = pd.concat(others) if others else known.iloc[:0]
    runs = pd.concat(kept).drop(columns=extra).assign(**dict.fromkeys(rates, TUNED))
    return Tuned(runs, untuned.drop(columns=extra), edges)


def is_late(table: pd.DataFrame) -> pd.Series:
    """Return which runs were to stop at a training loss and did not reach it."""
    if "reached_loss" not in table:
        return pd.Series(False, index=table.index)
    return table["reached_loss"].astype(str).str.lower() == "false"


def _best_rate(runs: pd.DataFrame) -> float | None:
    """Return the rate with the highest validation accuracy; None with fewer than two rates or without any accuracy."""
    if runs["rate"].nunique() < 2 or runs["validation"].isna().all():
        return None
    seeds = runs["seed"].fillna(0)
    by_seed = runs.groupby(seeds)["rate"].nunique()
    seed = by_seed[by_seed == by_seed.max()].index.min()
    tried = runs[(seeds == seed) & runs["validation"].notna()].sort_values("rate")
    tried = tried[~tried["is_late"]] if not tried["is_late"].all() else tried
    if tried.empty:
        return None
    best: float = tried.loc[tried["validation"].idxmax(), "rate"]
    return best

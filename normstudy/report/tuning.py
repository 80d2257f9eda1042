"""The learning rate of each norm that was tuned: the one with the highest validation accuracy."""

from typing import NamedTuple

import pandas as pd

from normstudy.report.tables import hyperparameters, setting_keys

RATES = ("init_lr", "lr")
TUNED = "tuned"  # stands for the rate in the columns of rates


class Tuned(NamedTuple):
    """The runs at each setting's best rate, with TUNED in place of the rate, and the settings whose best is an edge."""

    runs: pd.DataFrame
    edges: list[str]


def at_best_rates(table: pd.DataFrame) -> Tuned | None:
    """Return the Tuned runs, or None if no setting was trained at several rates with validation images.

    A setting is a norm, its grouping, and all hyperparameters but the rate. Its rates are compared by the validation
    accuracy of one seed: that with the most rates, or of several the smallest. Failed runs are never chosen; of equal
    rates, the smaller is. Test accuracies play no part. Settings with one rate are left out.
    """
    rates = [name for name in RATES if name in table and table[name].astype(str).nunique() > 1]
    if not rates or "validation_accuracy" not in table:
        return None
    values = pd.to_numeric(table["validation_accuracy"], errors="coerce")
    rate = table[rates].apply(lambda column: pd.to_numeric(column, errors="coerce")).bfill(axis=1).iloc[:, 0]
    known = table.assign(validation=values.where(~table["has_failed"]), rate=rate)
    axes = ["Label", *(name for name in hyperparameters(table) if name not in RATES)]
    kept, edges = [], []
    for _, runs in known.groupby(setting_keys(known, axes), sort=False):
        chosen = _best_rate(runs)
        if chosen is not None:
            kept.append(runs[runs["rate"] == chosen])
            if chosen in (runs["rate"].min(), runs["rate"].max()):
                edges.append(f"{runs['Model'].iloc[0]} {runs['Label'].iloc[0]}: {chosen:g}")
    if not kept:
        return None
    return Tuned(pd.concat(kept).drop(columns=["validation", "rate"]).assign(**dict.fromkeys(rates, TUNED)), edges)


def _best_rate(runs: pd.DataFrame) -> float | None:
    """Return the rate with the highest validation accuracy; None with fewer than two rates or without any accuracy."""
    if runs["rate"].nunique() < 2 or runs["validation"].isna().all():
        return None
    seeds = runs["seed"].fillna(0)
    by_seed = runs.groupby(seeds)["rate"].nunique()
    seed = by_seed[by_seed == by_seed.max()].index.min()
    tried = runs[(seeds == seed) & runs["validation"].notna()].sort_values("rate")
    if tried.empty:
        return None
    best: float = tried.loc[tried["validation"].idxmax(), "rate"]
    return best

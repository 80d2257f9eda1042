"""The learning rate of each norm that was tuned: the one with the highest validation accuracy."""

from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd

from normstudy.report.tables import Row, hyperparameters, setting_keys

T = TypeVar("T")

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


class Comparable(NamedTuple):
    """The runs at which norms are compared: at their best rates in the networks `tuned`, at all rates in the others.

    untuned: the runs of the tuned networks whose settings have one rate. edges: as in Tuned.
    """

    runs: pd.DataFrame
    untuned: pd.DataFrame
    tuned: list[str]
    edges: list[str]


def at_comparable_rates(table: pd.DataFrame) -> Comparable:
    """Return the Comparable runs. Failed ones are among them, and those that did not reach their training loss."""
    found = at_best_rates(table)
    if found is None:
        return Comparable(table, table.iloc[:0], [], [])
    networks = set(found.runs["Model"])
    is_tuned = found.untuned["Model"].isin(networks)
    runs = pd.concat([found.runs, found.untuned[~is_tuned]])
    return Comparable(runs, found.untuned[is_tuned], sorted(networks), found.edges)


def pairs_at_comparable_rates(table: pd.DataFrame, pairs: Sequence[tuple[Row, T]]) -> list[tuple[Row, T]]:
    """Return the pairs (row, anything) of the runs of at_comparable_rates, with its rows."""
    if not pairs:  # a table without folders need not name its runs
        return []
    rows = {(row["table"], row["run"]): row for row in at_comparable_rates(table).runs.to_dict("records")}
    names = [(row["table"], row["run"]) for row, _ in pairs]
    return [(rows[name], thing) for name, (_, thing) in zip(names, pairs, strict=True) if name in rows]


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

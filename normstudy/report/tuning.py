"""The learning rate of each norm that was tuned: the one with the highest validation accuracy."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple, TypeVar

import numpy as np
import pandas as pd

from config import LEARNING_RATE_PER_256
from normstudy.report.tables import Row, hyperparameters, setting_keys

T = TypeVar("T")

RATES = ("init_lr", "lr")
TUNED = "tuned"  # stands for the rate in the columns of rates


EQUAL_SETTINGS, BEST_RATE = "equal settings", "best rate"


class Tuned(NamedTuple):
    """The runs at each setting's best rate, with TUNED in place of the rate.

    Two columns are added: peak_rate, and is_tuning_seed, whether the run was one of those that chose the rate.
    other_rates: the runs of the same settings at other rates. untuned: the runs of settings with one rate. edges: the
    settings whose best rate is at the edge of the grid.
    """

    runs: pd.DataFrame
    other_rates: pd.DataFrame
    untuned: pd.DataFrame
    edges: list[str]


class Choice(NamedTuple):
    """The best rate of a setting, and the seed whose runs chose it."""

    rate: float
    seed: float


def at_best_rates(table: pd.DataFrame) -> Tuned | None:
    """Return the Tuned runs, or None if no setting was trained at several rates with validation images.

    A setting is a norm, its grouping, and all hyperparameters but the rate, which is the peak learning rate. Its rates
    are compared by the validation accuracy of one seed: that with the most rates, or of several the smallest. Failed
    runs are never chosen, and those that did not reach their training loss only if none did; of equal rates, the
    smaller is. Test accuracies play no part.
    """
    kept, other_rates, others, edges = [], [], [], []
    for runs, choice in _choices(table):
        if choice is None:
            others.append(runs)
            continue
        is_chosen = runs["peak_rate"] == choice.rate
        kept.append(runs[is_chosen].assign(is_tuning_seed=_seeds(runs)[is_chosen] == choice.seed))
        other_rates.append(runs[~is_chosen])
        if choice.rate in (runs["peak_rate"].min(), runs["peak_rate"].max()):
            edges.append(f"{runs['Model'].iloc[0]} {runs['Label'].iloc[0]} at {choice.rate:g}")
    if not kept:
        return None
    untuned = pd.concat(others) if others else table.iloc[:0]
    runs = pd.concat(kept).assign(**dict.fromkeys(_varied_rates(table), TUNED))
    return Tuned(runs, pd.concat(other_rates), untuned, edges)


def of_tuning_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs without those that only the best rate of a tuned setting has: the seeds that chose no rate.

    At each rate of a setting, the same seeds are left, so that rates can be compared.
    """
    kept = [runs if choice is None else runs[_seeds(runs) == choice.seed] for runs, choice in _choices(table)]
    return pd.concat(kept)[table.columns] if kept else table


def tuning_curves(table: pd.DataFrame) -> list[pd.DataFrame]:
    """Return, for each tuned setting, the runs of the seed that chose its rate, by ascending peak_rate.

    is_chosen marks the best rate. Failed runs and those that did not reach their training loss are left out.
    """
    curves = []
    for runs, choice in _choices(table):
        if choice is not None:
            own = in_time(runs[(_seeds(runs) == choice.seed) & ~runs["has_failed"]]).sort_values("peak_rate")
            curves.append(own.assign(is_chosen=own["peak_rate"] == choice.rate))
    return [curve for curve in curves if len(curve)]


def _choices(table: pd.DataFrame) -> Iterator[tuple[pd.DataFrame, Choice | None]]:
    """Yield the runs of each setting with their peak_rate, and its Choice, or None if it was not tuned.

    Yield nothing if no setting can have been tuned.
    """
    if not _varied_rates(table) or "validation_accuracy" not in table:
        return
    columns = [pd.to_numeric(table[name], errors="coerce") if name in table else np.nan for name in RATES]
    rate = pd.Series(columns[1], index=table.index)
    per_256 = LEARNING_RATE_PER_256 * pd.Series(columns[0], index=table.index).fillna(1.0)
    rate = rate.where(rate > 0, per_256 * table["Batch Size"] / 256)
    known = table.assign(peak_rate=rate)
    axes = ["Label", *(name for name in hyperparameters(table) if name not in RATES)]
    for _, runs in known.groupby(setting_keys(known, axes), sort=False):
        yield runs, _best_rate(runs)


def _varied_rates(table: pd.DataFrame) -> list[str]:
    return [name for name in RATES if name in table and table[name].astype(str).nunique() > 1]


def _seeds(runs: pd.DataFrame) -> pd.Series:
    return runs["seed"].fillna(0)


def _best_rate(runs: pd.DataFrame) -> Choice | None:
    """Return the rate with the highest validation accuracy; None with fewer than two rates or without any accuracy."""
    validation = pd.to_numeric(runs["validation_accuracy"], errors="coerce").where(~runs["has_failed"])
    if runs["peak_rate"].nunique() < 2 or validation.isna().all():
        return None
    by_seed = runs.groupby(_seeds(runs))["peak_rate"].nunique()
    seed = by_seed[by_seed == by_seed.max()].index.min()
    tried = runs.assign(validation=validation)[(_seeds(runs) == seed) & validation.notna()].sort_values("peak_rate")
    late = is_late(tried)
    tried = tried[~late] if not late.all() else tried
    return None if tried.empty else Choice(float(tried.loc[tried["validation"].idxmax(), "peak_rate"]), seed)


class Comparable(NamedTuple):
    """The runs at which norms are compared: at their best rates in the networks `tuned`, at all rates in the others.

    other_rates, edges: as in Tuned. untuned: the runs of the tuned networks whose settings have one rate.
    """

    runs: pd.DataFrame
    other_rates: pd.DataFrame
    untuned: pd.DataFrame
    tuned: list[str]
    edges: list[str]


def at_comparable_rates(table: pd.DataFrame) -> Comparable:
    """Return the Comparable runs. Failed ones are among them, and those that did not reach their training loss."""
    found = at_best_rates(table)
    if found is None:
        return Comparable(table, table.iloc[:0], table.iloc[:0], [], [])
    networks = set(found.runs["Model"])
    is_tuned = found.untuned["Model"].isin(networks)
    runs = pd.concat([found.runs, found.untuned[~is_tuned]])
    return Comparable(runs, found.other_rates, found.untuned[is_tuned], sorted(networks), found.edges)


def ways_to_compare(runs: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield the runs of one network at BEST_RATE, if rates were tuned, and at EQUAL_SETTINGS.

    Runs that did not reach their training loss are left out. So are the cells of equal settings in which there is such
    a run, unless no cell remains: their other norms would be compared with fewer norms.
    """
    tuned = at_best_rates(runs)
    if tuned is not None:
        yield BEST_RATE, in_time(tuned.runs)
    cells = setting_keys(runs, hyperparameters(runs))
    complete = runs[~cells.isin(cells[is_late(runs)])]
    yield EQUAL_SETTINGS, complete if len(complete) else in_time(runs)


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


def in_time(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs that reached their training loss, or had none to reach."""
    return table[~is_late(table)]

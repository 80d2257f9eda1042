"""Compare the trends of another table with those of the runs."""

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from scipy import stats

from normstudy.report.association import between_norms
from normstudy.report.claims import verdict
from normstudy.report.correlation import points_of
from normstudy.report.resampling import RESAMPLES
from normstudy.report.tables import MEASURES, MIN_POINTS, OUTCOMES, Row, average_over_seeds, largest_cells, setting_keys
from normstudy.report.tuning import at_comparable_rates, in_time

SHARED = ["Model", "Dataset", "Batch Size", "Mom & WD", "SkipInit"]
SWITCHES = {"Mom & WD": "momentum and weight decay", "SkipInit": "SkipInit"}
COLUMNS_OF_SIGNS = [
    *("measure", "outcome", "rho here", "low here", "high here", "n here"),
    *("rho there", "low there", "high there", "n there", "verdict"),
]
ON_OR_OFF = {"true": "on", "false": "off"}


def compare_tables(
    table: pd.DataFrame,
    other: pd.DataFrame,
    same_data: Sequence[str] = (),
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the frames (orders, signs), which compare another table with these runs; see _orders and _signs.

    Only cells with at least two norms in both tables are used. Here a cell is a set of runs with equal values in the
    columns of SHARED. Without such a cell, both frames are empty.

    same_data: names of data sets that count as one. resamples, seed: the number of resamples for the intervals, and
    their seed.
    """
    ours, theirs = (_comparable(at_comparable_rates(each).runs, same_data) for each in (table, other))
    ours = largest_cells(ours, SHARED, "Label")
    ours, theirs = (each.assign(cell=setting_keys(each, SHARED)) for each in (ours, theirs))
    labels_of_cells = {}
    for cell in sorted(set(ours["cell"]) & set(theirs["cell"])):
        labels = set(ours[ours["cell"] == cell]["Label"]) & set(theirs[theirs["cell"] == cell]["Label"])
        if len(labels) > 1:
            labels_of_cells[cell] = labels
    if not labels_of_cells:
        return _orders(ours, theirs, {}), pd.DataFrame(columns=COLUMNS_OF_SIGNS)
    ours, theirs = (
        each[[label in labels_of_cells.get(cell, ()) for cell, label in zip(each["cell"], each["Label"], strict=True)]]
        for each in (ours, theirs)
    )
    return _orders(ours, theirs, labels_of_cells), _signs(ours, theirs, resamples, seed)


def _comparable(table: pd.DataFrame, same_data: Sequence[str]) -> pd.DataFrame:
    """Return the runs that are not failed or late, with the columns of SHARED spelled alike in all tables."""
    usable = in_time(table[~table["has_failed"]]).copy()
    if same_data:
        usable["Dataset"] = usable["Dataset"].where(~usable["Dataset"].isin(same_data), same_data[-1])
    for name in ("Mom & WD", "SkipInit"):
        usable[name] = usable[name].astype(str).str.lower()
    usable.loc[usable["Model"] != "resnet-56", "SkipInit"] = "false"  # no other network has SkipInit
    usable["Batch Size"] = usable["Batch Size"].astype(float)
    return usable


def _orders(ours: pd.DataFrame, theirs: pd.DataFrame, labels_of_cells: Mapping[str, set[str]]) -> pd.DataFrame:
    """Order each cell's norms by mean test accuracy in both tables, best first; add Kendall's τ and its p value."""
    rows = []
    for cell, labels in labels_of_cells.items():
        own, others = (each[each["cell"] == cell] for each in (ours, theirs))
        here, there = (each.groupby("Label")["Test Accuracy"].mean() for each in (own, others))
        n = len(labels)
        tau, p = stats.kendalltau(here, there.reindex(here.index)) if n >= MIN_POINTS else (np.nan, np.nan)
        orders = [", ".join(means.sort_values(ascending=False).index) for means in (here, there)]
        rows.append([_cell_name(own.iloc[0]), *orders, n, float(tau), float(p), verdict(tau, p, n)])
    return pd.DataFrame(rows, columns=["cell", "order here", "order there", "norms", "tau", "p", "verdict"])


def _cell_name(run: pd.Series) -> str:
    """Return the values of SHARED in words."""
    switches = [f"{words} {ON_OR_OFF[run[name]]}" for name, words in SWITCHES.items() if run[name] in ON_OR_OFF]
    return ", ".join([str(run["Model"]), str(run["Dataset"]), f"batch {run['Batch Size']:g}", *switches])


def _signs(ours: pd.DataFrame, theirs: pd.DataFrame, resamples: int, seed: int) -> pd.DataFrame:
    """Return Spearman's ρ between norms of each measure and outcome, for both tables, and whether the signs agree."""
    here, there = (_spearman_by_pair(each, resamples, seed) for each in (ours, theirs))
    rows = []
    for pair, own in here.items():
        other = there.get(pair)
        if other is not None and np.isfinite(own["value"]) and np.isfinite(other["value"]):
            numbers = [row[name] for row in (own, other) for name in ("value", "low", "high", "n")]
            rows.append([*pair, *numbers, _verdict_on_signs(_sure_sign(own), _sure_sign(other))])
    return pd.DataFrame(rows, columns=COLUMNS_OF_SIGNS)


def _spearman_by_pair(runs: pd.DataFrame, resamples: int, seed: int) -> dict[tuple[str, str], Row]:
    """Return {(measure, outcome): Spearman's ρ between norms} for the measures that enough settings have."""
    settings = average_over_seeds(runs)
    measures = [name for name in MEASURES if settings[name].notna().sum() >= MIN_POINTS]
    found = {}
    for measure in measures:
        for outcome in OUTCOMES:
            rho = between_norms(points_of(runs, measure, outcome), resamples, permutations=0, seed=seed)
            found[measure, outcome] = rho._asdict() | {"n": rho.n_norms}
    return found


def _sure_sign(row: Row) -> int:
    """Return the sign of a coefficient, or 0 if its interval includes zero."""
    return 0 if row["low"] <= 0 <= row["high"] else int(np.sign(row["value"]))


def _verdict_on_signs(own: int, other: int) -> str:
    if own * other == 0:
        return "inconclusive: an interval includes zero"
    return "agrees" if own == other else "does not agree"

"""Compare claims of other papers with the runs."""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from config import WEIGHT_NORMS
from normstudy.report.page import format_number, format_p_value, table_html
from normstudy.report.probe_statistics import ProbeStatistics
from normstudy.report.tables import MIN_POINTS, SIGNIFICANT, Row, in_largest_cells, largest_cells


class Comparison(NamedTuple):
    """A claim and the comparison that tests it.

    value is a difference or coefficient, positive if it is as claimed; n is the number of runs, p the p value.
    """

    claim: str
    compared: str
    value: float
    n: int
    p: float


def published_claims(table: pd.DataFrame, probed: Sequence[tuple[Row, ProbeStatistics]]) -> pd.DataFrame:
    """Compare claims of papers with these runs; return a frame of Comparison's fields, with a verdict on each claim."""
    found = [*_growth(probed), *_groupings(probed), *_outliers(table)]
    rows = [(*comparison, verdict(comparison.value, comparison.p, comparison.n)) for comparison in found]
    return pd.DataFrame(rows, columns=[*Comparison._fields, "verdict"])


def published_claims_html(frame: pd.DataFrame) -> str:
    """Return the HTML of the frame of published_claims."""
    columns = ["claim", "comparison", "value (positive: as claimed)", "n", "p", "verdict"]
    rows = [
        [row["claim"], row["compared"], format_number(row["value"]), row["n"], format_p_value(row["p"]), row["verdict"]]
        for row in frame.to_dict("records")
    ]
    if not rows:
        return ""
    said = (
        "<p>n counts runs. Differences of medians are tested by the Mann–Whitney test, Spearman's ρ by permutation "
        "(two-sided, not adjusted for the number of claims). p takes runs as independent, although seeds of one norm "
        "are not, so it says little about norms in general.</p>"
    )
    return said + table_html(columns, rows)


def verdict(value: float, p: float, n: int) -> str:
    """Say whether a difference or coefficient agrees with a claim that it is positive, or is inconclusive."""
    if not p < SIGNIFICANT:
        return f"inconclusive (n = {n})"
    return "agrees" if value > 0 else "does not agree"


def _difference(larger: np.ndarray, smaller: np.ndarray) -> tuple[float, int, float]:
    """Return (difference of medians, n, p) of two samples that are not empty.

    p is that of the Mann–Whitney test; it is NaN for fewer than MIN_POINTS values.
    """
    n = len(larger) + len(smaller)
    p = stats.mannwhitneyu(larger, smaller).pvalue if n >= MIN_POINTS else np.nan
    return float(np.median(larger) - np.median(smaller)), n, p


def _spearman(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return (ρ, p), with p from permutations: all of them for up to 7 pairs.

    scipy's own p is 0 for ranks that agree completely.
    """
    first, second = stats.rankdata(first), stats.rankdata(second)

    def rho(x: np.ndarray) -> float:
        return np.corrcoef(x, second)[0, 1]

    found = stats.permutation_test((first,), rho, permutation_type="pairings", n_resamples=9999, rng=0)
    return float(found.statistic), found.pvalue


def _growth(probed: Sequence[tuple[Row, ProbeStatistics]]) -> Iterator[Comparison]:
    """Compare how much the activation variance of ResNets grows from the first to the last block at initialization.

    Runs with SkipInit are left out, because it silences the branches. So are pre-activation networks, whose norms are
    not behind the sums of branches and shortcuts.
    """
    weight_based: list[float] = []
    activation_based: list[float] = []
    for row, part in probed:
        is_other = any(str(row.get(name)).lower() == "true" for name in ("preact", "SkipInit"))
        if row["Model"] != "resnet-56" or is_other or row["Norm"] == "Plain":
            continue
        is_output = [name.endswith("activation2") for name in part.sites["activation"]]
        values = part.values["activation_variance"]["first"][is_output]
        if len(values) > 1 and np.isfinite(values).all() and (values > 0).all():
            growths = weight_based if row["Norm"] in WEIGHT_NORMS else activation_based
            growths.append(np.log10(values[-1] / values[0]))
    if weight_based and activation_based:
        weight, activation = (
            f"× {format_number(float(10 ** np.median(growths)), 2)} in {len(growths)}"
            for growths in (weight_based, activation_based)
        )
        yield Comparison(
            "Activation-based norms keep the activation variance of ResNets from growing with depth; weight-based "
            "norms do not (Lubana et al. 2021)",
            "growth of the activation variance from the first block's output to the last block's, first iteration: "
            f"median {weight} runs with weight-based norms, {activation} with activation-based norms; value: "
            "difference of the medians of log10",
            *_difference(np.array(weight_based), np.array(activation_based)),
        )


def _groupings(probed: Sequence[tuple[Row, ProbeStatistics]]) -> Iterator[Comparison]:
    """Correlate the size of GroupNorm's groups with the stable rank and with early gradients at initialization."""
    grouped = [(row, part) for row, part in probed if row["Norm"] == "GroupNorm" and 0 < row["Grouping"] <= 1]
    comparable = in_largest_cells(grouped, "Grouping")
    for network in sorted({row["Model"] for row, _ in comparable}):
        own = [(row, part.values) for row, part in comparable if row["Model"] == network]
        groupings = np.array([row["Grouping"] for row, _ in own])
        for claim, words, values in (
            (
                "Smaller groups give higher stable rank",
                "mean stable rank over activations",
                [np.nanmean(statistics["stable_rank"]["first"]) for _, statistics in own],
            ),
            (
                "Smaller groups give larger early gradients",
                "gradient norm at the first convolution",
                [statistics["grad_norm"]["first"][0] for _, statistics in own],
            ),
        ):
            if len(own) >= MIN_POINTS and len(set(groupings)) > 1 and np.ptp(values) > 0:
                rho, p = _spearman(groupings, np.array(values))
                yield Comparison(
                    f"{claim} (Lubana et al. 2021)",
                    f"{network}, {len(set(groupings))} groupings: Spearman's ρ of 1 / channels per group and {words}, "
                    "first iteration",
                    rho,
                    len(own),
                    p,
                )


def _outliers(table: pd.DataFrame) -> Iterator[Comparison]:
    """Compare the largest eigenvalue with BatchNorm and with other norms, in the cell with the most norms."""
    needed = ["Trace", "Eigen Mean", "Eigen Variance", "Max Eigen"]
    measured = largest_cells(table[~table["has_failed"] & table[needed].notna().all(axis=1)], ["Model"])
    for network, runs in measured.groupby("Model"):
        is_batch = runs["Norm"] == "BatchNorm"
        if is_batch.all() or not is_batch.any():
            continue
        squares = runs["Trace"] / runs["Eigen Mean"] * (runs["Eigen Variance"] + runs["Eigen Mean"] ** 2)
        for words, values in (
            ("squared largest eigenvalue over the sum of all squared eigenvalues", runs["Max Eigen"] ** 2 / squares),
            ("largest eigenvalue", runs["Max Eigen"]),
        ):
            batch, others = values[is_batch], values[~is_batch]
            yield Comparison(
                "BatchNorm's spectrum has fewer and smaller outliers than other norms' (Ghorbani et al. 2019)",
                f"{network}, eval mode, cell with the most norms: {words}; median "
                f"{format_number(float(batch.median()), 3)} with BatchNorm (n = {len(batch)}), "
                f"{format_number(float(others.median()), 3)} with other norms (n = {len(others)}); value: "
                "difference of the medians",
                *_difference(others.to_numpy(), batch.to_numpy()),
            )

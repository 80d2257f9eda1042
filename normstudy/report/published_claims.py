"""Claims of other papers, set beside the runs."""

import numpy as np
import pandas as pd
from scipy import stats

from config import WEIGHT_NORMS
from normstudy.report.page import format_number, format_p_value, table_html
from normstudy.report.tables import MIN_POINTS, in_largest_cells, largest_cells

SURE = 0.05  # the p below which a claim is said to hold, or not to


# Other papers


def published_claims(table, probed):
    """Claims of papers beside these runs, a frame: claim, compared, value (positive as claimed), n, p, verdict.

    probed: [(row, statistics)] as report_figures reads them.
    """
    found = filter(None, [_growth(probed), *_groupings(probed), *_outliers(table)])
    rows = [(claim, compared, float(value), n, p, verdict(value, p, n)) for claim, compared, value, p, n in found]
    return pd.DataFrame(rows, columns=["claim", "compared", "value", "n", "p", "verdict"])


def published_claims_html(frame):
    """The same for the page."""
    columns = ["claim", "compared", "value (positive: as claimed)", "n", "p", "verdict"]
    rows = [
        [row["claim"], row["compared"], format_number(row["value"]), row["n"], format_p_value(row["p"]), row["verdict"]]
        for row in frame.to_dict("records")
    ]
    if not rows:
        return ""
    said = "<p>p is that of runs, of which seeds of one norm are several: it says less of norms in general.</p>"
    return said + table_html([(name, False) for name in columns], rows)


def verdict(value, p, n):
    """agrees, does not, or cannot be said: of a difference or coefficient that a claim says is positive."""
    if not p < SURE:
        return f"cannot be said with n = {n}"
    return "agrees" if value > 0 else "does not"


def _difference(larger, smaller):
    """(difference of medians, p, n): p by Mann and Whitney's test, NaN for fewer than LEAST values."""
    if not len(larger) or not len(smaller):
        return None
    n = len(larger) + len(smaller)
    p = stats.mannwhitneyu(larger, smaller).pvalue if n >= MIN_POINTS else np.nan
    return np.median(larger) - np.median(smaller), p, n


def _spearman(first, second):
    """(ρ, p): p by permutations, all of them for up to 7 pairs, where scipy's own is 0 for ranks that agree wholly."""
    first, second = stats.rankdata(first), stats.rankdata(second)

    def rho(x):
        return np.corrcoef(x, second)[0, 1]

    found = stats.permutation_test((first,), rho, permutation_type="pairings", n_resamples=9999, rng=0)
    return found.statistic, found.pvalue


def _growth(probed):
    """Activation variance of ResNets at initialization: that of the last block's output over that of the first's.
    Without SkipInit, which silences the branches, and with norms behind the sums of branches and shortcuts."""
    growths = {True: [], False: []}
    for row, part in probed:
        is_other = any(str(row.get(name)).lower() == "true" for name in ("preact", "SkipInit"))
        if row["Model"] != "resnet-56" or is_other:
            continue
        is_weight_based = row["Norm"] in WEIGHT_NORMS
        if not is_weight_based and row["Norm"] == "Plain":
            continue
        names = part["sites"]["activation"]
        values = part["activation_variance"]["first"][[name.endswith("activation2") for name in names]]
        if len(values) > 1 and np.isfinite(values).all() and (values > 0).all():
            growths[is_weight_based].append(np.log10(values[-1] / values[0]))
    found = _difference(growths[True], growths[False])
    if found is None:
        return None
    by = {kind: format_number(float(10 ** np.median(values)), 2) for kind, values in growths.items()}
    return (
        "Activation-based norms keep the activation variance of ResNets from growing with depth, weight-based ones do "
        "not (Lubana et al. 2021)",
        f"growth from the first block's output to the last's at the first iteration, median: × {by[True]} in "
        f"{len(growths[True])} runs with weight-based norms, × {by[False]} in {len(growths[False])} with "
        "activation-based ones; difference of log10",
        *found,
    )


def _groupings(probed):
    """Size of GroupNorm's groups against stable rank, and gradients near the input, at initialization."""
    own = [(row, part) for row, part in probed if row["Norm"] == "GroupNorm" and 0 < row["Grouping"] <= 1]
    whole = in_largest_cells(own, "Grouping")
    for network in sorted({row["Model"] for row, _ in whole}):
        own = [pair for pair in whole if pair[0]["Model"] == network]
        groupings = np.array([row["Grouping"] for row, _ in own])
        for claim, words, values in (
            (
                "Smaller groups give higher stable rank",
                "mean stable rank over activations",
                [np.nanmean(part["stable_rank"]["first"]) for _, part in own],
            ),
            (
                "Smaller groups give larger early gradients",
                "gradient norm at the first convolution",
                [part["grad_norm"]["first"][0] for _, part in own],
            ),
        ):
            if len(own) >= MIN_POINTS and len(set(groupings)) > 1 and np.ptp(values) > 0:
                value, p = _spearman(groupings, np.array(values))
                yield (
                    f"{claim} (Lubana et al. 2021)",
                    f"{network}, {len(set(groupings))} groupings: Spearman's ρ of 1/channels in a group and {words}, "
                    "first iteration",
                    value,
                    p,
                    len(own),
                )


def _outliers(table):
    """How far the largest eigenvalue stands out with BatchNorm and without it, in the cell with most norms."""
    needed = ["Trace", "Eigen Mean", "Eigen Variance", "Max Eigen"]
    measured = largest_cells(table[~table["has_failed"] & table[needed].notna().all(axis=1)], ["Model"])
    for network, runs in measured.groupby("Model"):
        squares = runs["Trace"] / runs["Eigen Mean"] * (runs["Eigen Variance"] + runs["Eigen Mean"] ** 2)
        is_batch = runs["Norm"] == "BatchNorm"
        counts = f"{is_batch.sum()} runs with BatchNorm", f"{(~is_batch).sum()} with other norms"
        for words, values in (
            ("largest eigenvalue squared over the sum of all squared", runs["Max Eigen"] ** 2 / squares),
            ("largest eigenvalue", runs["Max Eigen"]),
        ):
            found = _difference(values[~is_batch].to_numpy(), values[is_batch].to_numpy())
            if found is not None:
                medians = [format_number(float(values[which].median()), 3) for which in (is_batch, ~is_batch)]
                parts = [f"{median} in {count}" for median, count in zip(medians, counts, strict=True)]
                yield (
                    "BatchNorm's spectrum has fewer and smaller outliers than others (Ghorbani et al. 2019)",
                    f"{network}, eval mode: {words}, median {', '.join(parts)}",
                    *found,
                )

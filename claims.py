"""What was claimed before, beside these runs: the original study's and other papers' claims; another table's trends."""

import numpy as np
import pandas as pd
from scipy import stats

from config import CONV_OF_NORM
from findings import (
    LEAST,
    MEASURES,
    OUTCOMES,
    combinations,
    correlations,
    hyperparameters,
    in_largest_cells,
    largest_cells,
    over_seeds,
)
from report_page import Raw, interval, number, p_value, table_of

CLAIMED_BEST, CLAIMED_WORST = ("BatchNorm", "EvoNormBO"), ("InstanceNorm", "Plain")
CLAIMED_OUTCOMES = ("Train Accuracy", "Test Accuracy", "Gen. Ratio")
SURE = 0.05  # the p below which a claim is said to hold, or not to


def of_the_original(table, ranks, correlations, granulated, titles):
    """HTML that sets the original study's claims beside what these runs say. titles: {measure: its words}."""
    parts = []
    rows = []
    for outcome in CLAIMED_OUTCOMES:
        for way in ("pooled", "within cells", "granulated"):
            for coefficient in ("Pearson", "Spearman", "Kendall") if way != "granulated" else ("Ψ",):
                frame = granulated if way == "granulated" else correlations
                if way != "granulated":
                    frame = frame[(frame["way"] == way) & (frame["coefficient"] == coefficient)]
                frame = frame[(frame["outcome"] == outcome) & frame["value"].notna()]
                frame = frame.assign(size=frame["value"].abs()).sort_values("size", ascending=False)
                own = frame[frame["measure"] == "Class Similarity"]
                if len(frame) < 2 or own.empty:
                    continue
                place = int((frame["size"] > own["size"].iloc[0]).sum()) + 1
                first = frame.iloc[0]
                rows.append(
                    [
                        OUTCOMES[outcome],
                        way,
                        coefficient,
                        f"{own['value'].iloc[0]:.2f} ({interval(own['low'].iloc[0], own['high'].iloc[0], 2)})",
                        f"{place} of {len(frame)}",
                        f"{titles[first['measure']]}, {first['value']:.2f} "
                        f"({interval(first['low'], first['high'], 2)})",
                        "yes" if place == 1 else "no",
                    ]
                )
    if rows:
        columns = ["outcome", "way", "coefficient", "class similarity", "its place", "strongest", "holds"]
        held = sum(row[-1] == "yes" for row in rows)
        parts.append(
            "<p>“Class similarity is the strongest predictor of train accuracy, test accuracy and generalization "
            f"ratio.” By size of the coefficient, it is in {held} of {len(rows)} comparisons:</p>"
            + table_of([(name, False) for name in columns], rows)
        )
    rows = []
    for norm in (*CLAIMED_BEST, *CLAIMED_WORST):
        own = ranks[ranks["Norm"] == norm]
        if own.empty:
            continue
        row = own.iloc[0]
        is_best = norm in CLAIMED_BEST
        ends, cells = _ends(table, norm, is_best)
        last = len(ranks) - 1 if not is_best else 2
        holds = row["rank_high"] <= 2 if is_best else row["rank_low"] >= last
        where = "best" if is_best else "worst"
        rows.append(
            [
                norm,
                where,
                f"{own.index[0] + 1} of {len(ranks)}",
                interval(row["rank_low"], row["rank_high"]),
                f"{ends} of {cells}",
                _said(row, cells, holds, is_best, last),
            ]
        )
    if rows:
        columns = ["norm", "claimed among the", "rank here", "rank, 95 %", "cells where it is among the two", "holds"]
        parts.append(
            "<p>“BatchNorm and EvoNormBO did best, InstanceNorm and Plain worst” (test accuracy; a cell takes part "
            "where it has four norms; failed runs are left out, so look at the failures of Plain, too):</p>"
            + table_of([(name, False) for name in columns], rows)
        )
    return Raw("".join(parts)) or Raw("<p>These runs lack what the claims are about.</p>")


def _said(row, cells, holds, is_best, last):
    if not cells:
        return "cannot be said: no cell has four norms"
    if row["n"] < 2:
        return "cannot be said with n = 1"
    may_hold = row["rank_low"] <= 2 if is_best else row["rank_high"] >= last
    return "yes" if holds else "not surely" if may_hold else "no"


def _ends(table, norm, is_best):
    """(cells in which a norm's mean is among the two best, or worst, cells in which it takes part)."""
    usable = table[~table["has_failed"]]
    axes = hyperparameters(table)
    keys = combinations(usable, axes)
    means = usable.groupby([keys, "Norm"])["Test Accuracy"].mean().unstack()
    means = means[means.notna().sum(axis=1) >= 4]
    if norm not in means:
        return 0, 0
    means = means[means[norm].notna()]
    places = means.rank(axis=1, ascending=not is_best)[norm]
    return int((places <= 2).sum()), len(means)


# Other papers


def published(table, probed):
    """Claims of papers beside these runs, a frame: claim, compared, value (positive as claimed), n, p, verdict.

    probed: [(row, statistics)] as report_figures reads them.
    """
    found = filter(None, [_growth(probed), *_groupings(probed), *_outliers(table)])
    rows = [(claim, compared, float(value), n, p, verdict(value, p, n)) for claim, compared, value, p, n in found]
    return pd.DataFrame(rows, columns=["claim", "compared", "value", "n", "p", "verdict"])


def published_html(frame):
    """The same for the page."""
    columns = ["claim", "compared", "value (positive: as claimed)", "n", "p", "verdict"]
    rows = [
        [row["claim"], row["compared"], number(row["value"]), row["n"], p_value(row["p"]), row["verdict"]]
        for row in frame.to_dict("records")
    ]
    if not rows:
        return ""
    said = "<p>p is that of runs, of which seeds of one norm are several: it says less of norms in general.</p>"
    return said + table_of([(name, False) for name in columns], rows)


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
    p = stats.mannwhitneyu(larger, smaller).pvalue if n >= LEAST else np.nan
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
        is_weight_based = row["Norm"] in CONV_OF_NORM
        if not is_weight_based and row["Norm"] == "Plain":
            continue
        names = part["sites"]["activation"]
        values = part["activation_variance"]["first"][[name.endswith("activation2") for name in names]]
        if len(values) > 1 and np.isfinite(values).all() and (values > 0).all():
            growths[is_weight_based].append(np.log10(values[-1] / values[0]))
    found = _difference(growths[True], growths[False])
    if found is None:
        return None
    by = {kind: number(float(10 ** np.median(values)), 2) for kind, values in growths.items()}
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
            if len(own) >= LEAST and len(set(groupings)) > 1 and np.ptp(values) > 0:
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
                medians = [number(float(values[which].median()), 3) for which in (is_batch, ~is_batch)]
                parts = [f"{median} in {count}" for median, count in zip(medians, counts, strict=True)]
                yield (
                    "BatchNorm's spectrum has fewer and smaller outliers than others (Ghorbani et al. 2019)",
                    f"{network}, eval mode: {words}, median {', '.join(parts)}",
                    *found,
                )


# Another table


SHARED = ["Model", "Dataset", "Batch Size", "Mom & WD", "SkipInit"]


def beside(table, other, same_data=(), **options):
    """(orders, signs): frames that set the trends of another table beside these runs, for the cells and norms that
    both have; see _orders and _signs.

    same_data: names of data sets that are taken for one. options: resamples and seed of the intervals.
    """
    ours, theirs = (_comparable(each, same_data) for each in (table, other))
    ours = largest_cells(ours, SHARED, "Label")
    keys = [combinations(each, SHARED) for each in (ours, theirs)]
    kept = []
    for cell in sorted(set(keys[0]) & set(keys[1])):
        labels = set(ours[keys[0] == cell]["Label"]) & set(theirs[keys[1] == cell]["Label"])
        if len(labels) > 1:
            kept.append((cell, labels))
    if not kept:
        return tuple(pd.DataFrame() for _ in range(2))
    both = {(cell, label) for cell, labels in kept for label in labels}
    own, others = (
        each[[pair in both for pair in zip(key, each["Label"], strict=True)]]
        for each, key in zip((ours, theirs), keys, strict=True)
    )
    return _orders(ours, theirs, keys, kept), _signs(own, others, options)


def _comparable(table, same_data):
    usable = table[~table["has_failed"]].copy()
    if same_data:
        usable["Dataset"] = usable["Dataset"].where(~usable["Dataset"].isin(same_data), same_data[-1])
    for name in ("Mom & WD", "SkipInit"):
        usable[name] = usable[name].astype(str).str.lower()
    usable.loc[usable["Model"] != "resnet-56", "SkipInit"] = "false"  # which no other network has
    usable["Batch Size"] = usable["Batch Size"].astype(float)
    return usable


def _orders(ours, theirs, keys, kept):
    """Each cell's norms by mean test accuracy in both tables, best first, with Kendall's τ and its p."""
    rows = []
    for cell, labels in kept:
        means = [
            each[(key == cell) & each["Label"].isin(labels)].groupby("Label")["Test Accuracy"].mean()
            for each, key in ((ours, keys[0]), (theirs, keys[1]))
        ]
        n = len(labels)
        tau, p = stats.kendalltau(means[0], means[1].reindex(means[0].index)) if n >= LEAST else (np.nan, np.nan)
        orders = [", ".join(mean.sort_values(ascending=False).index) for mean in means]
        rows.append([cell.replace("|", ", "), *orders, n, float(tau), float(p), verdict(tau, p, n)])
    return pd.DataFrame(rows, columns=["cell", "order here", "order there", "norms", "tau", "p", "verdict"])


def _signs(ours, theirs, options):
    """Spearman's ρ of each measure and outcome over the settings of these cells, in both tables, and whether its sign
    agrees."""
    frames = []
    for each in map(over_seeds, (ours, theirs)):
        measures = [name for name in MEASURES if each[name].notna().sum() >= LEAST]
        frame = correlations(each, measures, **options)
        frame = frame[(frame["coefficient"] == "Spearman") & (frame["way"] == "within cells")]
        frames.append({(row["measure"], row["outcome"]): row for row in frame.to_dict("records")})
    rows = []
    for key, own in frames[0].items():
        other = frames[1].get(key)
        if other is not None and np.isfinite(own["value"]) and np.isfinite(other["value"]):
            signs = [0 if row["low"] <= 0 <= row["high"] else np.sign(row["value"]) for row in (own, other)]
            said = "agrees" if signs[0] == signs[1] != 0 else "does not" if signs[0] * signs[1] < 0 else ""
            numbers = [row[name] for row in (own, other) for name in ("value", "low", "high", "n")]
            rows.append([*key, *numbers, said or "cannot be said: an interval holds zero"])
    columns = [f"{name} {where}" for where in ("here", "there") for name in ("rho", "low", "high", "n")]
    return pd.DataFrame(rows, columns=["measure", "outcome", *columns, "verdict"])


def beside_html(orders, signs):
    """Both for the page."""
    if orders.empty:
        return "<p>No cell has two norms in both tables.</p>"
    columns = ["cell (network, data, batch, momentum & decay, SkipInit)", "order here", "order there", "norms"]
    columns += ["Kendall's τ", "p", "verdict"]
    rows = [
        [*line[:4], number(row["tau"]), p_value(row["p"]), row["verdict"]]
        for row in orders.to_dict("records")
        for line in [list(row.values())]
    ]
    shown = table_of([(name, False) for name in columns], rows)
    page = f"<p>Order of norms by mean test accuracy, best first:</p>{shown}"
    if signs.empty:
        return f"{page}<p>No measure is there for enough runs of both tables.</p>"
    rows = []
    for row in signs.to_dict("records"):
        cells = []
        for where in ("here", "there"):
            rho, low, high, n = (row[f"{name} {where}"] for name in ("rho", "low", "high", "n"))
            cells.append(f"{rho:.2f} ({interval(low, high, 2)}; n = {n})")
        rows.append([MEASURES[row["measure"]], OUTCOMES[row["outcome"]], *cells, row["verdict"]])
    columns = ["measure", "outcome", "ρ here (95 % interval; n)", "ρ there", "sign"]
    said = "Spearman's ρ over the settings of these cells; the intervals are not adjusted for their number:"
    return f"{page}<p>{said}</p>{table_of([(name, False) for name in columns], rows)}"

"""The original study's claims, set beside the runs."""

from normstudy.report.page import RawHTML, format_interval, table_html
from normstudy.report.tables import OUTCOMES, hyperparameters, setting_keys

CLAIMED_BEST, CLAIMED_WORST = ("BatchNorm", "EvoNormBO"), ("InstanceNorm", "Plain")
CLAIMED_OUTCOMES = ("Train Accuracy", "Test Accuracy", "Gen. Ratio")


def original_claims_html(table, ranks, correlations, granulated, titles):
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
                        f"{own['value'].iloc[0]:.2f} ({format_interval(own['low'].iloc[0], own['high'].iloc[0], 2)})",
                        f"{place} of {len(frame)}",
                        f"{titles[first['measure']]}, {first['value']:.2f} "
                        f"({format_interval(first['low'], first['high'], 2)})",
                        "yes" if place == 1 else "no",
                    ]
                )
    if rows:
        columns = ["outcome", "way", "coefficient", "class similarity", "its place", "strongest", "holds"]
        held = sum(row[-1] == "yes" for row in rows)
        parts.append(
            "<p>“Class similarity is the strongest predictor of train accuracy, test accuracy and generalization "
            f"ratio.” By size of the coefficient, it is in {held} of {len(rows)} comparisons:</p>"
            + table_html([(name, False) for name in columns], rows)
        )
    rows = []
    for norm in (*CLAIMED_BEST, *CLAIMED_WORST):
        own = ranks[ranks["Norm"] == norm]
        if own.empty:
            continue
        row = own.iloc[0]
        is_best = norm in CLAIMED_BEST
        ends, cells = _cells_among_two(table, norm, is_best)
        last = len(ranks) - 1 if not is_best else 2
        holds = row["rank_high"] <= 2 if is_best else row["rank_low"] >= last
        where = "best" if is_best else "worst"
        rows.append(
            [
                norm,
                where,
                f"{own.index[0] + 1} of {len(ranks)}",
                format_interval(row["rank_low"], row["rank_high"]),
                f"{ends} of {cells}",
                _verdict_on_norm(row, cells, holds, is_best, last),
            ]
        )
    if rows:
        columns = ["norm", "claimed among the", "rank here", "rank, 95 %", "cells where it is among the two", "holds"]
        parts.append(
            "<p>“BatchNorm and EvoNormBO did best, InstanceNorm and Plain worst” (test accuracy; a cell takes part "
            "where it has four norms; failed runs are left out, so look at the failures of Plain, too):</p>"
            + table_html([(name, False) for name in columns], rows)
        )
    return RawHTML("".join(parts)) or RawHTML("<p>These runs lack what the claims are about.</p>")


def _verdict_on_norm(row, cells, holds, is_best, last):
    if not cells:
        return "cannot be said: no cell has four norms"
    if row["n"] < 2:
        return "cannot be said with n = 1"
    may_hold = row["rank_low"] <= 2 if is_best else row["rank_high"] >= last
    return "yes" if holds else "not surely" if may_hold else "no"


def _cells_among_two(table, norm, is_best):
    """(cells in which a norm's mean is among the two best, or worst, cells in which it takes part)."""
    usable = table[~table["has_failed"]]
    axes = hyperparameters(table)
    keys = setting_keys(usable, axes)
    means = usable.groupby([keys, "Norm"])["Test Accuracy"].mean().unstack()
    means = means[means.notna().sum(axis=1) >= 4]
    if norm not in means:
        return 0, 0
    means = means[means[norm].notna()]
    places = means.rank(axis=1, ascending=not is_best)[norm]
    return int((places <= 2).sum()), len(means)

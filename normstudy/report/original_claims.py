"""Compare the original study's claims with the runs."""

from collections.abc import Mapping

import pandas as pd

from normstudy.report.correlation import COEFFICIENTS, select_coefficient
from normstudy.report.page import format_interval, table_html
from normstudy.report.tables import OUTCOMES, Row, hyperparameters, setting_keys

CLAIMED_BEST, CLAIMED_WORST = ("BatchNorm", "EvoNormBO"), ("InstanceNorm", "Plain")
CLAIMED_OUTCOMES = ("Train Accuracy", "Test Accuracy", "Gen. Ratio")
MIN_NORMS = 4  # minimum number of norms in a cell, so that the two best and the two worst are different norms


def original_claims_html(
    table: pd.DataFrame,
    ranks: pd.DataFrame,
    correlations: pd.DataFrame,
    granulated: pd.DataFrame,
    titles: Mapping[str, str],
) -> str:
    """Return HTML that compares the original study's claims with these runs. titles: {measure: title}."""
    page = _strongest_predictor_html(correlations, granulated, titles) + _best_and_worst_html(table, ranks)
    return page or "<p>These runs do not have the norms and measures of the claims.</p>"


def _strongest_predictor_html(correlations: pd.DataFrame, granulated: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Tabulate whether class similarity has the largest coefficient, by outcome and coefficient; empty without any."""
    frames = {
        (way, coefficient): select_coefficient(correlations, way, coefficient)
        for way in ("pooled", "within cells")
        for coefficient in COEFFICIENTS
    } | {("granulated", "Ψ"): granulated}
    rows = []
    for outcome in CLAIMED_OUTCOMES:
        for (way, coefficient), frame in frames.items():
            of_outcome = frame[(frame["outcome"] == outcome) & frame["value"].notna()]
            sized = of_outcome.assign(size=of_outcome["value"].abs()).sort_values("size", ascending=False)
            similarity = sized[sized["measure"] == "Class Similarity"]
            if len(sized) < 2 or similarity.empty:
                continue
            own, strongest = similarity.iloc[0], sized.iloc[0]
            place = int((sized["size"] > own["size"]).sum()) + 1
            values = [f"{row['value']:.2f} ({format_interval(row['low'], row['high'], 2)})" for row in (own, strongest)]
            strongest_words = f"{titles[strongest['measure']]}, {values[1]}"
            places = f"{place} of {len(sized)}"
            holds = "yes" if place == 1 else "no"
            rows.append([OUTCOMES[outcome], way, coefficient, values[0], places, strongest_words, holds])
    if not rows:
        return ""
    columns = ["outcome", "method", "coefficient", "class similarity", "its rank", "strongest measure", "holds"]
    held = sum(row[-1] == "yes" for row in rows)
    return (
        "<p>“Class similarity is the strongest predictor of train accuracy, test accuracy and generalization "
        "ratio.” Ranked by the absolute value of the coefficient, class similarity is the strongest measure in "
        f"{held} of {len(rows)} comparisons, which are not independent. Parentheses hold 95 % intervals; whether two "
        "measures differ is not tested.</p>" + table_html(columns, rows)
    )


def _best_and_worst_html(table: pd.DataFrame, ranks: pd.DataFrame) -> str:
    """Tabulate the ranks of the norms that are claimed best and worst; empty without any of them."""
    ranked = {row["Norm"]: (place, row) for place, row in enumerate(ranks.to_dict("records"), 1)}
    rows = []
    for norm in (*CLAIMED_BEST, *CLAIMED_WORST):
        if norm not in ranked:
            continue
        place, row = ranked[norm]
        is_best = norm in CLAIMED_BEST
        among_two, cells = _cells_among_two(table, norm, is_best)
        rows.append(
            [
                norm,
                "best" if is_best else "worst",
                f"{place} of {len(ranks)}",
                format_interval(row["rank_low"], row["rank_high"]),
                f"{among_two} of {cells}",
                _verdict_on_norm(row, cells, is_best, len(ranks)),
            ]
        )
    if not rows:
        return ""
    columns = ["norm", "claimed to be", "rank in these runs", "95 % interval", "cells among the two", "holds"]
    return (
        "<p>“BatchNorm and EvoNormBO did best, InstanceNorm and Plain worst” (test accuracy). Ranks and their "
        "95 % intervals are those of all networks together; a claim holds if the interval includes only the two best "
        "(worst) ranks. “Cells among the two” counts the cells with at least four norms in which the norm is one of "
        "the two best (worst). Failed runs are left out, so consider the failures of Plain as well.</p>"
        + table_html(columns, rows)
    )


def _verdict_on_norm(row: Row, cells: int, is_best: bool, norms: int) -> str:
    """Say whether the interval of a norm's rank lies within the two best (or two worst) of `norms` ranks."""
    if not cells:
        return "inconclusive: no cell has four norms"
    if row["n"] < 2:
        return "inconclusive: no interval from one run"
    if is_best:
        holds, may_hold = row["rank_high"] <= 2, row["rank_low"] <= 2
    else:
        holds, may_hold = row["rank_low"] >= norms - 1, row["rank_high"] >= norms - 1
    return "yes" if holds else "inconclusive: the interval includes other ranks" if may_hold else "no"


def _cells_among_two(table: pd.DataFrame, norm: str, is_best: bool) -> tuple[int, int]:
    """Return the number of cells in which the norm is one of the two best (worst), and of all cells that have it."""
    usable = table[~table["has_failed"]]
    keys = setting_keys(usable, hyperparameters(table))
    means = usable.groupby([keys, "Norm"])["Test Accuracy"].mean().unstack()
    means = means[means.notna().sum(axis=1) >= MIN_NORMS]
    if norm not in means:
        return 0, 0
    means = means[means[norm].notna()]
    places = means.rank(axis=1, ascending=not is_best)[norm]
    return int((places <= 2).sum()), len(means)

"""The original study's claims, set beside the runs."""

from collections.abc import Mapping

import pandas as pd

from normstudy.report.correlation import COEFFICIENTS, select_coefficient
from normstudy.report.page import format_interval, table_html
from normstudy.report.tables import OUTCOMES, Row, hyperparameters, setting_keys

CLAIMED_BEST, CLAIMED_WORST = ("BatchNorm", "EvoNormBO"), ("InstanceNorm", "Plain")
CLAIMED_OUTCOMES = ("Train Accuracy", "Test Accuracy", "Gen. Ratio")
MIN_NORMS = 4  # of a cell in which two are among the best, and two others among the worst


def original_claims_html(
    table: pd.DataFrame,
    ranks: pd.DataFrame,
    correlations: pd.DataFrame,
    granulated: pd.DataFrame,
    titles: Mapping[str, str],
) -> str:
    """HTML that sets the original study's claims beside what these runs say. titles: {measure: its words}."""
    page = _strongest_predictor_html(correlations, granulated, titles) + _best_and_worst_html(table, ranks)
    return page or "<p>These runs lack what the claims are about.</p>"


def _strongest_predictor_html(correlations: pd.DataFrame, granulated: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Whether class similarity has the largest coefficient, for each outcome and coefficient; nothing without any."""
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
    columns = ["outcome", "way", "coefficient", "class similarity", "its place", "strongest", "holds"]
    held = sum(row[-1] == "yes" for row in rows)
    return (
        "<p>“Class similarity is the strongest predictor of train accuracy, test accuracy and generalization "
        f"ratio.” By size of the coefficient, it is in {held} of {len(rows)} comparisons:</p>"
        + table_html(columns, rows)
    )


def _best_and_worst_html(table: pd.DataFrame, ranks: pd.DataFrame) -> str:
    """Where the norms that are claimed best and worst stand among these; nothing without any of them."""
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
    columns = ["norm", "claimed among the", "rank here", "rank, 95 %", "cells where it is among the two", "holds"]
    return (
        "<p>“BatchNorm and EvoNormBO did best, InstanceNorm and Plain worst” (test accuracy; a cell takes part "
        "where it has four norms; failed runs are left out, so look at the failures of Plain, too):</p>"
        + table_html(columns, rows)
    )


def _verdict_on_norm(row: Row, cells: int, is_best: bool, norms: int) -> str:
    """Whether the interval of a norm's rank, among so many, lies within the best, or the worst, two."""
    if not cells:
        return "cannot be said: no cell has four norms"
    if row["n"] < 2:
        return "cannot be said with n = 1"
    if is_best:
        holds, may_hold = row["rank_high"] <= 2, row["rank_low"] <= 2
    else:
        holds, may_hold = row["rank_low"] >= norms - 1, row["rank_high"] >= norms - 1
    return "yes" if holds else "not surely" if may_hold else "no"


def _cells_among_two(table: pd.DataFrame, norm: str, is_best: bool) -> tuple[int, int]:
    """(cells in which a norm's mean is among the two best, or worst, cells in which it takes part)."""
    usable = table[~table["has_failed"]]
    keys = setting_keys(usable, hyperparameters(table))
    means = usable.groupby([keys, "Norm"])["Test Accuracy"].mean().unstack()
    means = means[means.notna().sum(axis=1) >= MIN_NORMS]
    if norm not in means:
        return 0, 0
    means = means[means[norm].notna()]
    places = means.rank(axis=1, ascending=not is_best)[norm]
    return int((places <= 2).sum()), len(means)

"""The sentences of the report: findings, limits and methods."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import pandas as pd

from normstudy.report.correlation import select_coefficient, select_pair
from normstudy.report.page import format_interval, format_number, format_p_value
from normstudy.report.rankings import setting_effect
from normstudy.report.tables import (
    CELL,
    MEASURES,
    MIN_POINTS,
    OUTCOMES,
    SIGNIFICANT,
    average_over_seeds,
    hyperparameters,
)

SHORT_OUTCOMES = {
    "Test Accuracy": "test accuracy",
    "Train Accuracy": "train accuracy",
    "Gen. Ratio": "the ratio of test to train accuracy",
    "Gap": "the gap between train and test accuracy",
}
NAMED_IF_SHARED = (*CELL, "SkipInit", "epochs", "train_samples", "image_size", "init_lr", "precision")
EFFECTS = {  # column: its name, and words for its two settings unless these are numbers
    "Mom & WD": ("momentum and weight decay", "on", "off"),
    "SkipInit": ("SkipInit", "on", "off"),
    "Batch Size": ("batch size", "", ""),
}


class Finding(NamedTuple):
    """A sentence, with its effect size divided by the half-width of its interval: 0 if the interval includes zero."""

    kind: str
    support: float
    sentence: str


def summary_sentences(
    table: pd.DataFrame,
    by_network: Mapping[str, pd.DataFrame],
    correlations: pd.DataFrame,
    granulated: pd.DataFrame,
    titles: Mapping[str, str],
) -> list[str]:
    """Return the best supported findings: at most three of different kinds, each a sentence with its numbers.

    Only findings with support above 1 are included. titles: {measure: title}.
    """
    findings = [
        *(finding for network, ranks in by_network.items() for finding in _of_norms(network, ranks)),
        *_of_measures(correlations, granulated, titles),
        *_of_settings(table),
    ]
    best: dict[str, tuple[float, str]] = {}
    for kind, support, sentence in findings:
        if support > 1 and support > best.get(kind, (0.0, ""))[0]:
            best[kind] = support, sentence
    return [sentence for _, sentence in sorted(best.values(), reverse=True)[:3]]


def _support(value: float, low: float, high: float) -> float:
    width = (high - low) / 2
    return abs(value) / width if width > 0 and (low > 0 or high < 0) else 0.0


def _of_norms(network: str, ranks: pd.DataFrame) -> Iterator[Finding]:
    norms = f"{len(ranks)} norms"
    if ranks["low"].isna().any():
        ranks = ranks[ranks["low"].notna()]
        norms = f"the {len(ranks)} norms with several runs"
    if len(ranks) < 2:
        return
    for place, extreme, word in ((0, "highest", "above"), (-1, "lowest", "below")):
        row = ranks.iloc[place]
        yield Finding(
            f"norm {word}",
            _support(row["advantage"], row["low"], row["high"]),
            f"In {network}, {row['Norm']} had the {extreme} test accuracy of {norms}, relative to its cells: "
            f"{abs(row['advantage']):.1f} points {word} the mean over the norms in the same cell (95 % interval "
            f"{format_interval(row['low'], row['high'])}; n = {row['n']} runs; rank "
            f"{format_interval(row['rank_low'], row['rank_high'])} among all norms).",
        )


def _of_measures(correlations: pd.DataFrame, granulated: pd.DataFrame, titles: Mapping[str, str]) -> Iterator[Finding]:
    pooled = select_coefficient(correlations, "pooled", "Spearman")
    for row in select_coefficient(correlations, "within cells", "Spearman").to_dict("records"):
        if not row["p_holm"] < SIGNIFICANT:
            continue
        over_all = select_pair(pooled, row["measure"], row["outcome"])["value"].iloc[0]
        psi = select_pair(granulated, row["measure"], row["outcome"]).iloc[0]
        of_groups = f"; granulated, Ψ = {psi['value']:.2f} (95 % interval {format_interval(psi['low'], psi['high'])})"
        yield Finding(
            "measure",
            _support(row["value"], row["low"], row["high"]),
            f"Within cells, {titles[row['measure']]} correlates with "
            f"{SHORT_OUTCOMES[row['outcome']]}: Spearman's ρ = {row['value']:.2f} (95 % interval "
            f"{format_interval(row['low'], row['high'])}; n = {row['n']} settings; p {_equals(row['p_holm'])} after "
            f"Holm's adjustment). Pooled over all settings, ρ = {over_all:.2f}"
            f"{of_groups if psi['value'] == psi['value'] else ''}.",
        )


def _equals(p: float) -> str:
    return format_p_value(p) if p < 0.001 else f"= {format_p_value(p)}"


def _of_settings(table: pd.DataFrame) -> Iterator[Finding]:
    for axis, (name, on, off) in EFFECTS.items():
        for outcome in ("Test Accuracy", "Gap"):
            effect = setting_effect(table, axis, outcome)
            if effect is not None:
                before, after = (off, on) if on else map(format_number, map(float, effect.settings))
                yield Finding(
                    f"setting {axis}",
                    _support(effect.value, effect.low, effect.high),
                    f"{name[0].upper()}{name[1:]} {after} instead of {before} changed {SHORT_OUTCOMES[outcome]} by "
                    f"{effect.value:+.1f} points on average (95 % interval {format_interval(effect.low, effect.high)}; "
                    f"n = {effect.n} groups of runs that are equal in everything else but the seed).",
                )


def limitation_sentences(
    table: pd.DataFrame, by_network: Mapping[str, pd.DataFrame], correlations: pd.DataFrame
) -> list[str]:
    """Return the conclusions that these runs do not support."""
    has_coefficients = not table["has_failed"].all() and correlations["value"].notna().any()
    causes = (
        "Causes: changing a measure that correlates with an outcome need not change the outcome. The intervals of "
        "correlations take settings as independent, although many share a norm, so they are too narrow."
    )
    return [
        *_limits_of_repetition(table, by_network),
        *_limits_of_failures(table),
        *_limits_of_coverage(table),
        *([causes] if has_coefficients else []),
    ]


def _limits_of_repetition(table: pd.DataFrame, by_network: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Yield the limits due to few runs of a setting or of a norm."""
    usable = table[~table["has_failed"]]
    names = ["Label", *hyperparameters(table)]
    sizes = usable.groupby([usable[name].astype(str) for name in names]).size() if len(usable) else None
    if sizes is not None and sizes.median() < 3:
        yield (
            f"Differences between two single settings: at least half of the {len(sizes)} settings have no more than "
            f"{'1 run' if sizes.median() < 2 else '2 runs'}, so such a difference cannot be told from variation "
            "between seeds."
        )
    few = []
    for network, ranks in by_network.items():
        norms = [f"{row['Norm']} {row['n']}" for row in ranks.to_dict("records") if 1 < row["n"] < MIN_POINTS]
        few += [f"{network}: {', '.join(norms)}"] if norms else []
    if few:
        yield (
            f"The uncertainty of norms with fewer than {MIN_POINTS} runs ({'; '.join(few)}): intervals from so few "
            "runs are too narrow; an interval from two runs only spans their values."
        )


def _limits_of_failures(table: pd.DataFrame) -> Iterator[str]:
    failed = table[table["has_failed"]]
    if len(failed):
        by_norm = ", ".join(f"{name} {count}" for name, count in failed["Norm"].value_counts().items())
        yield (
            f"The accuracy of failed runs: {len(failed)} of {len(table)} failed ({by_norm}), and all rankings and "
            "correlations are computed from the remaining runs."
        )


def _limits_of_coverage(table: pd.DataFrame) -> Iterator[str]:
    """Yield the measures that too few settings have, and the settings that do not vary."""
    settings = average_over_seeds(table)
    missing = [title for name, title in MEASURES.items() if settings[name].notna().sum() < MIN_POINTS]
    if missing:
        yield f"Correlations of {'; '.join(missing)}: fewer than {MIN_POINTS} settings have a value."
    shared = [name for name in NAMED_IF_SHARED if name in table and table[name].notna().all()]
    shared = [name for name in shared if table[name].astype(str).nunique() == 1 and str(table[name].iloc[0])]
    if shared:
        values = ", ".join(f"{name}: {format_number(table[name].iloc[0])}" for name in shared)
        yield f"Results under other values of the settings that all runs share: {values}."


METHODS = [
    f"Outcomes: {', '.join(OUTCOMES.values())}. A run counts as failed if it ended without a finite result or has no "
    "test accuracy. Failed runs are counted, but rankings, effects and correlations leave them out.",
    "Summary: at most three findings of different kinds, those with the largest effect relative to the 95 % interval. "
    "The interval must exclude zero; a correlation within cells must also be significant after Holm's adjustment. The "
    "findings are selected from many, so their effects tend to be overestimated.",
    "Advantage of a norm: a run's test accuracy minus the mean over the norms in its cell (the mean of the norms' "
    "means), averaged over the norm's runs. Cells with one norm are left out. The 95 % intervals of the advantage and "
    "of its rank resample the cells, and within each cell every norm's runs; a norm with one run has no interval. A "
    "norm compared only with weak norms ranks too high: only cells that contain every norm give a fair ranking.",
    "Unscaled curvature (Hessian trace, eigenvalues) changes with the size of weights that a norm makes irrelevant, so "
    "a difference between two norms may only reflect that size. Element- and filter-scaled curvature does not. "
    "run_hessian.py --scale=element or --scale=filter measures it.",
    "Setting: norm, grouping and all hyperparameters but the seed. For correlations, a setting is one point, the mean "
    "over its runs, because seeds of one setting are not independent evidence of a trend over norms.",
    f"Coefficients: Pearson's r, Spearman's ρ and Kendall's τ-b, as scipy computes them; none for fewer than "
    f"{MIN_POINTS} settings or constant values.",
    "Pooled: one coefficient over all settings, so it includes differences between networks and hyperparameters. "
    "Within cells: the mean of the cells' coefficients, weighted by settings; only the norm and its grouping differ.",
    "Intervals: the central 95 % of bootstrap resamples (percentiles). Correlations resample settings, within cells "
    "those of each cell; Ψ resamples groups. Settings and groups are taken as independent.",
    "p: two-sided, for independence of measure and outcome; from scipy if pooled, from a normal approximation within "
    "cells. p (Holm) is adjusted for the number of measures and outcomes with the same method and coefficient (Holm "
    f"1979). Verdicts: a claim or order “agrees” or “does not agree” if p < {SIGNIFICANT}; otherwise, or with fewer "
    f"than {MIN_POINTS} values, the comparison is inconclusive.",
    "Granulated (Jiang et al. 2020): ψ of a hyperparameter (here also of the norm with its grouping) is the mean, over "
    f"groups of settings that differ only in it (n; no ψ for fewer than {MIN_POINTS}), of the sign agreement of "
    "measure and outcome over pairs of settings; Ψ is the mean of all ψ. The lowest and highest ψ are the worst cases "
    "that Dziugaite et al. 2020 ask for: for a predictive measure, both have the same sign.",
    "Measures: the Hessian is that of the mean cross-entropy of training images in eval mode. Rescaling the weights "
    "before most norms, together with the running statistics, leaves the function unchanged but not the Hessian, so a "
    "smaller trace or λ_max of one norm does not by itself mean a flatter minimum. Class similarity is the mean cosine "
    "between class means of the features before pooling. Measures at the first or last iteration are layer statistics, "
    "averaged over the layers where they are finite. In the table of runs, s.e. is the standard error over random "
    "probes, without the choice of images; an eigenvalue lies within the residual (in parentheses) of λ_max. The "
    "README.md next to a results.csv explains its columns. The table of the original study uses other definitions: its "
    "Trace is not the trace of the Hessian.",
]

"""The report's findings and limits in words, and its methods."""

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
EFFECTS = {  # column: its name, and the words for its two settings where numbers do not say them
    "Mom & WD": ("momentum and weight decay", "on", "off"),
    "SkipInit": ("SkipInit", "on", "off"),
    "Batch Size": ("batch size", "", ""),
}


class Finding(NamedTuple):
    """A sentence, and the size of its effect over the half-width of its interval: 0 where that holds zero."""

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
    """The findings best supported, at most three of different kinds, each a sentence with its numbers.

    titles: {measure: its words}. Support has to be above 1.
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
            f"In {network}, {row['Norm']} had the {extreme} test accuracy of {norms}: "
            f"{abs(row['advantage']):.1f} points {word} the mean of norms in cells of equal hyperparameters (95 % "
            f"interval {format_interval(row['low'], row['high'])}; n = {row['n']} runs; rank "
            f"{format_interval(row['rank_low'], row['rank_high'])}).",
        )


def _of_measures(correlations: pd.DataFrame, granulated: pd.DataFrame, titles: Mapping[str, str]) -> Iterator[Finding]:
    pooled = select_coefficient(correlations, "pooled", "Spearman")
    for row in select_coefficient(correlations, "within cells", "Spearman").to_dict("records"):
        if not row["p_holm"] < SIGNIFICANT:
            continue
        over_all = select_pair(pooled, row["measure"], row["outcome"])["value"].iloc[0]
        psi = select_pair(granulated, row["measure"], row["outcome"]).iloc[0]
        of_groups = f", granulated Ψ = {psi['value']:.2f} ({format_interval(psi['low'], psi['high'])})"
        yield Finding(
            "measure",
            _support(row["value"], row["low"], row["high"]),
            f"Where only the norm differs, {titles[row['measure']]} goes with "
            f"{SHORT_OUTCOMES[row['outcome']]}: Spearman's ρ = {row['value']:.2f} within cells (95 % interval "
            f"{format_interval(row['low'], row['high'])}; n = {row['n']} settings; p {_equals(row['p_holm'])} after "
            f"Holm); pooled over all settings ρ = {over_all:.2f}{of_groups if psi['value'] == psi['value'] else ''}.",
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
                    f"{effect.value:+.1f} points (95 % interval {format_interval(effect.low, effect.high)}; "
                    f"n = {effect.n} groups of runs alike in all else).",
                )


def limitation_sentences(
    table: pd.DataFrame, by_network: Mapping[str, pd.DataFrame], correlations: pd.DataFrame
) -> list[str]:
    """Conclusions that no reader should draw from these runs."""
    has_coefficients = not table["has_failed"].all() and correlations["value"].notna().any()
    causes = (
        "Causes: measures and outcomes come from the same networks. A measure that goes with an outcome need not "
        "move it, and intervals take settings for independent, though many share a norm."
    )
    return [
        *_limits_of_repetition(table, by_network),
        *_limits_of_failures(table),
        *_limits_of_coverage(table),
        *([causes] if has_coefficients else []),
    ]


def _limits_of_repetition(table: pd.DataFrame, by_network: Mapping[str, pd.DataFrame]) -> Iterator[str]:
    """Questions that too few runs of a setting, or of a norm, leave open."""
    usable = table[~table["has_failed"]]
    names = ["Label", *hyperparameters(table)]
    sizes = usable.groupby([usable[name].astype(str) for name in names]).size() if len(usable) else None
    if sizes is not None and sizes.median() < 3:
        yield (
            f"Chance between seeds: half of the {len(sizes)} combinations of settings have no more than "
            f"{'1 run' if sizes.median() < 2 else '2 runs'}, so differences between single combinations are not "
            "separated from it."
        )
    few = []
    for network, ranks in by_network.items():
        norms = [f"{row['Norm']} {row['n']}" for row in ranks.to_dict("records") if 1 < row["n"] < MIN_POINTS]
        few += [f"{network}: {', '.join(norms)}"] if norms else []
    if few:
        yield (
            f"How sure the intervals of norms with fewer than {MIN_POINTS} runs are ({'; '.join(few)}): resampling "
            "makes them too narrow; those of two runs only span both values."
        )


def _limits_of_failures(table: pd.DataFrame) -> Iterator[str]:
    failed = table[table["has_failed"]]
    if len(failed):
        by_norm = ", ".join(f"{name} {count}" for name, count in failed["Norm"].value_counts().items())
        yield (
            f"What failed runs would have reached: {len(failed)} of {len(table)} failed ({by_norm}); means are over "
            "the others."
        )


def _limits_of_coverage(table: pd.DataFrame) -> Iterator[str]:
    """Measures of too few settings, and settings that do not vary."""
    settings = average_over_seeds(table)
    missing = [title for name, title in MEASURES.items() if settings[name].notna().sum() < MIN_POINTS]
    if missing:
        yield f"Anything about {'; '.join(missing)}: measured for fewer than {MIN_POINTS} settings."
    shared = [name for name in NAMED_IF_SHARED if name in table and table[name].notna().all()]
    shared = [name for name in shared if table[name].astype(str).nunique() == 1 and str(table[name].iloc[0])]
    if shared:
        values = ", ".join(f"{name}: {format_number(table[name].iloc[0])}" for name in shared)
        yield f"Other settings than these, which all runs share: {values}."


METHODS = [
    f"Outcomes: {', '.join(OUTCOMES.values())}. A run counts as failed where it ended without a finite result or has "
    "no test accuracy; failed runs are counted and take part in nothing else.",
    "Cell: runs that are equal in all hyperparameters but the norm, its grouping and the seed.",
    "Above its cells: a run's test accuracy less the mean, over norms, of the norms' means in its cell; averaged over "
    "a norm's runs. Interval and ranks: 95 % of resamples of cells, and in each cell of every norm's runs, from which "
    "the means of cells are made anew; a norm with one run has none.",
    "Setting: norm, grouping and all hyperparameters but the seed. In what follows a setting is one point, the mean "
    "over its runs: seeds of one setting are no independent witnesses of what goes with what over norms.",
    f"Coefficients: Pearson's r, Spearman's ρ and Kendall's τ-b, as scipy computes them; none from fewer than "
    f"{MIN_POINTS} settings or of a constant.",
    "Pooled: all settings. Within cells: the mean over cells of the cell's coefficient, weighted by settings.",
    "Intervals: 95 % of resamples of settings (within their cells; of groups for Ψ), taken for independent.",
    "p: of independence, two-sided; pooled as scipy gives it, within cells by the normal approximation. Holm: adjusted "
    "for the number of measures and outcomes of the same way and coefficient (Holm 1979).",
    "Granulated (Jiang et al. 2020): ψ of a hyperparameter is the mean, over groups of settings that differ in it "
    f"alone (n; none for fewer than {MIN_POINTS}), of the sign agreement of measure and outcome over pairs; Ψ is the "
    "mean of all ψ. The lowest and highest ψ are the worst cases that Dziugaite et al. 2020 ask for: a measure that "
    "predicts has them on one side of zero.",
    "The Hessian is that of the mean cross-entropy; class similarity is the mean cosine between class means of the "
    "features that the classifier pools. README.md has the definitions of this program's measures; the table of the "
    "original study has other ones (its Trace is not the trace of the Hessian).",
]

"""The sentences of the report: findings, limits and methods."""

from collections.abc import Iterator, Mapping

import numpy as np
import pandas as pd

from normstudy.report.association import WITHOUT_RUNNING
from normstudy.report.correlation import FINDINGS, OVER_SEEDS, OVER_SETTINGS, select
from normstudy.report.page import format_count, format_interval, format_number, format_p_value
from normstudy.report.primary import Included
from normstudy.report.rankings import setting_effects
from normstudy.report.tables import (
    CELL,
    MEASURES,
    MIN_POINTS,
    OUTCOMES,
    SIGNIFICANT,
    Row,
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
LEFT_OUT_SHOWN = 5  # runs that are named at most for each reason


def primary_sentences(
    included: Included,
    correlations: pd.DataFrame,
    influences: Mapping[str, Mapping[str, float]],
    titles: Mapping[str, str],
) -> list[str]:
    """Return the result of the primary analysis: its findings, or that there is none, and what it rests on.

    correlations: the frame of correlate_measures. influences: {measure: {norm: ρ without it}} of the first findings.
    titles: {measure: title}.
    """
    family = correlations[(correlations["family"] == "primary") & correlations["p"].notna()].sort_values("p")
    if family.empty:
        found = [
            "There is no primary analysis: no measure that is defined alike for every norm has values for five norms "
            "in a cell."
        ]
    else:
        is_sure = (family["p_holm"] < SIGNIFICANT) & ((family["low"] > 0) | (family["high"] < 0))
        found = [
            _association_sentence(row, correlations, titles) + _influence_sentence(influences.get(row["measure"], {}))
            for row in family[is_sure].head(FINDINGS).to_dict("records")
        ]
        if is_sure.sum():
            found.append(f"Of the measures that were tested ({len(family)}), {is_sure.sum()} gave such a result.")
        if not found:
            row = family.iloc[0]
            found = [
                f"No measure goes with test accuracy from norm to norm (measures tested: {len(family)}). "
                f"The closest is {titles[row['measure']]}: ρ = {row['value']:.2f} (95 % interval "
                f"{format_interval(row['low'], row['high'], 2)}; {row['n_norms']} norms, "
                f"{format_count(int(row['n_cells']), 'cell')}; p {_equals(row['p_holm'])} after Holm's adjustment)."
            ]
    return [*found, *_basis_sentences(included)]


def _association_sentence(row: Row, correlations: pd.DataFrame, titles: Mapping[str, str]) -> str:
    direction = "higher" if row["value"] > 0 else "lower"
    words = (
        f"Between norms, higher {titles[row['measure']]} goes with {direction} test accuracy: ρ = {row['value']:.2f} "
        f"(95 % interval {format_interval(row['low'], row['high'], 2)}; {row['n_norms']} norms, "
        f"{format_count(int(row['n_cells']), 'cell')}; p {_equals(row['p_holm'])} after Holm's adjustment)."
    )
    for way in (OVER_SETTINGS, OVER_SEEDS):
        [within] = select(correlations, row["measure"], row["outcome"], way).to_dict("records")
        if np.isfinite(within["value"]):
            sign = " The sign is the opposite." if within["value"] * row["value"] < 0 else ""
            p = f" (p {_equals(within['p'])})" if np.isfinite(within["p"]) else ""
            words += f" {way[0].upper()}{way[1:]}: ρ = {within['value']:.2f}{p}.{sign}"
    return words


def _influence_sentence(influences: Mapping[str, float]) -> str:
    """Say how the coefficient depends on single norms: what would overturn the finding."""
    known = {norm: rho for norm, rho in influences.items() if np.isfinite(rho)}
    without_statistics = known.pop(WITHOUT_RUNNING, None)
    if not known:
        return ""
    weakest = min(known, key=lambda norm: abs(known[norm]))
    low, high = min(known.values()), max(known.values())
    words = f" Without any one norm, ρ is {low:.2f} to {high:.2f}; it depends most on {weakest}."
    words += " One norm decides about its sign." if low < 0 < high else ""
    if without_statistics is not None:
        words += f" Without the norms that keep running statistics, ρ is {without_statistics:.2f}."
    return words


def _basis_sentences(included: Included) -> Iterator[str]:
    """Yield which runs the primary analysis rests on, and at which training loss they are compared."""
    for reason, names in included.reasons.items():
        if names:
            shown = ", ".join(names[:LEFT_OUT_SHOWN]) + (", …" if len(names) > LEFT_OUT_SHOWN else "")
            yield f"Left out: {format_count(len(names), 'run')} that {reason} ({shown})."
    accuracies = included.runs["Train Accuracy"].dropna()
    if included.loss is not None:
        yield f"All runs stopped at a training loss of {included.loss}."
    elif len(accuracies):
        yield (
            "The runs did not stop at a common training loss: their training accuracies are "
            f"{accuracies.min():.0f} to {accuracies.max():.0f} %. So the measures are compared at different stages of "
            "training, and an association may show which norms train faster."
        )
    everywhere = set(included.runs["Model"]) <= set(included.tuned)
    if included.tuned:
        where = "" if everywhere else f"In {', '.join(included.tuned)}, each"
        yield f"{where or 'Each'} norm is at its best learning rate, chosen by validation accuracy."
    if included.edges:
        yield f"The best peak rate is the smallest or the largest that was tried for {'; '.join(included.edges)}."
    if not everywhere:
        cells = "In the other cells" if included.tuned else "In each cell"
        yield f"{cells}, all norms have the same learning rate, which may suit some better than others."


def _equals(p: float) -> str:
    return format_p_value(p) if p < 0.001 else f"= {format_p_value(p)}"


def _shown(setting: str) -> str:
    try:
        return format_number(float(setting))
    except ValueError:
        return {"True": "on", "False": "off"}.get(setting, setting)


def effect_sentences(table: pd.DataFrame) -> list[str]:
    """Return how test accuracy and gap differ between the two settings of each hyperparameter that has two."""
    return [
        f"{effect.axis}: {_shown(effect.settings[1])} instead of {_shown(effect.settings[0])} changed "
        f"{SHORT_OUTCOMES[outcome]} by "
        f"{effect.value:+.1f} points on average over norms (95 % interval {format_interval(effect.low, effect.high)}; "
        f"{effect.n} groups of runs that are equal in everything else but the seed)."
        for outcome in ("Test Accuracy", "Gap")
        for effect in setting_effects(table, outcome)
    ]


def limitation_sentences(table: pd.DataFrame, correlations: pd.DataFrame) -> list[str]:
    """Return the conclusions that these runs do not support."""
    has_coefficients = not table["has_failed"].all() and correlations["value"].notna().any()
    causes = "Causes: changing a measure that goes with an outcome need not change the outcome."
    return [
        *_limits_of_repetition(table),
        *_limits_of_failures(table),
        *_limits_of_coverage(table),
        *([causes] if has_coefficients else []),
    ]


def _limits_of_repetition(table: pd.DataFrame) -> Iterator[str]:
    """Yield the limits due to few runs of a setting."""
    usable = table[~table["has_failed"]]
    names = ["Label", *hyperparameters(table)]
    sizes = usable.groupby([usable[name].astype(str) for name in names]).size() if len(usable) else None
    if sizes is not None and sizes.median() < 3:
        yield (
            f"Differences between two single settings: at least half of the {len(sizes)} settings have no more than "
            f"{'1 run' if sizes.median() < 2 else '2 runs'}, so such a difference cannot be told from variation "
            "between seeds."
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
    "Primary analysis: see docs/report.md, which defined it in advance. Spearman's ρ between norms in the cells with "
    "at least five norms, averaged over cells. p permutes whole norms, jointly over cells; p (Holm) is adjusted for "
    "the other measures of the primary analysis. The interval is a t-interval on the scale of Fisher's z, with the "
    "standard error of resampled norms and cells. Sharpness, weight noise and curvature are those of eval mode, where "
    "moved weights meet running statistics that no longer fit: a difference between norms with and without such "
    "statistics may come from that. Everything else is exploratory: it was not chosen in advance.",
    "Advantage of a norm: the mean over cells of its mean test accuracy minus the mean of the norms' means in the "
    "cell; a norm's mean in a cell averages its groupings. Cells with one norm are left out. The interval is a "
    "t-interval: over cells if there are at least five, else over seeds for these cells, with each norm's own variance "
    "(Welch). The interval of a rank holds the ranks that pairwise comparisons with all other norms leave open "
    "(Bonferroni). The error from the choice of test images is not in these intervals, since all norms are tested on "
    "the same images; the table of cells gives it for single accuracies.",
    "Best rate: each norm at the learning rate with the highest validation accuracy; test images play no part.",
    "Same network: InstanceNorm is GroupNorm with p = 1, and LayerNorm on feature maps is GroupNorm with one group. "
    "They count as one norm, and are listed under both names among the groupings.",
    "Unscaled curvature (Hessian trace, eigenvalues) changes with the size of weights that a norm makes irrelevant, so "
    "a difference between two norms may only reflect that size. Element- and filter-scaled curvature does not. "
    "run_hessian.py --scale=element or --scale=filter measures it.",
    "Setting: norm, grouping and all hyperparameters but the seed. For correlations, a setting is one point, the mean "
    "over its runs, because seeds of one setting are not independent evidence of a trend over norms.",
    "Within norms: the mean of Spearman's ρ over the settings of a norm in a cell (groupings and rates, permuted "
    "jointly over cells), or over the seeds of a setting. Pooled: one coefficient over all settings, which includes "
    "differences between networks; it has no p value because settings of a norm are not independent.",
    "Intervals of Ψ: the central 95 % of resampled groups. p (Holm): adjusted for all rows of the same family and way "
    f"(Holm 1979). Verdicts: “agrees” or “does not agree” if an interval excludes zero or p < {SIGNIFICANT}; otherwise "
    "the comparison is inconclusive.",
    "Granulated (Jiang et al. 2020): ψ of a hyperparameter (here also of the norm with its grouping) is the mean, over "
    f"groups of settings that differ only in it, and in what follows from it (n; no ψ for fewer than {MIN_POINTS}), of "
    "the sign agreement of measure and outcome over pairs of settings; Ψ is the mean of all ψ. The lowest and highest "
    "ψ are the worst cases that Dziugaite et al. 2020 ask for: for a predictive measure, both have the same sign.",
    "Measures: the Hessian is that of the mean cross-entropy of training images in eval mode. Rescaling the weights "
    "before most norms, together with the running statistics, leaves the function unchanged but not the Hessian, so a "
    "smaller trace or λ_max of one norm does not by itself mean a flatter minimum. Class similarity is the mean cosine "
    "between class means of the features before pooling. Measures at the first or last iteration are layer statistics, "
    "averaged over the layers where they are finite. In the table of runs, s.e. is the standard error over random "
    "probes, without the choice of images; an eigenvalue lies within the residual (in parentheses) of λ_max. The "
    "README.md next to a results.csv explains its columns. The table of the original study uses other definitions: its "
    "Trace is not the trace of the Hessian.",
]

"""The sentences of the report that depend on its runs: findings, effects and limits."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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
LEFT_OUT_SHOWN = 5  # names of runs that are shown at most for each reason


class Finding(NamedTuple):
    """A result of the primary analysis: what was found, how sure it is, and what would overturn it.

    measure: the measure that it is about, whose picture belongs to it.
    """

    measure: str
    claim: str
    evidence: str
    overturn: str


def primary_findings(
    correlations: pd.DataFrame, influences: Mapping[str, Mapping[str, float]], titles: Mapping[str, str]
) -> list[Finding]:
    """Return the findings of the primary analysis, or that there is none.

    correlations: the frame of correlate_measures. influences: {measure: {norm: ρ without it}} of the first findings.
    titles: {measure: title}.
    """
    family = correlations[(correlations["family"] == "primary") & correlations["p"].notna()].sort_values("p")
    if family.empty:
        reason = "No measure that is defined alike for every norm has values for five norms in a cell."
        return [Finding("", "There is no primary analysis.", reason, "")]
    is_sure = (family["p_holm"] < SIGNIFICANT) & ((family["low"] > 0) | (family["high"] < 0))
    if not is_sure.any():
        row = family.iloc[0]
        closest = f"The closest is {titles[row['measure']]}: {_coefficient(row)}. Measures tested: {len(family)}."
        more = "More norms, more cells or a measure that is missing here could still show one."
        claim = "No measure goes with test accuracy from norm to norm."
        return [Finding(row["measure"], claim, closest, more)]
    findings = []
    for row in family[is_sure].head(FINDINGS).to_dict("records"):
        direction = "higher" if row["value"] > 0 else "lower"
        claim = f"Between norms, higher {titles[row['measure']]} goes with {direction} test accuracy."
        evidence = f"{_coefficient(row)}. {_within_sentences(row, correlations)}".strip()
        evidence += f" Measures tested: {len(family)}; {is_sure.sum()} gave such a result."
        findings.append(Finding(row["measure"], claim, evidence, _overturn(influences.get(row["measure"], {}))))
    return findings


def _coefficient(row: Mapping[str, Any]) -> str:
    return (
        f"ρ = {row['value']:.2f} (95 % interval {format_interval(row['low'], row['high'], 2)}; {row['n_norms']} norms, "
        f"{format_count(int(row['n_cells']), 'cell')}; p {_equals(row['p_holm'])} after Holm's adjustment)"
    )


def _within_sentences(row: Row, correlations: pd.DataFrame) -> str:
    """Say whether the measure and the outcome also go together within norms."""
    words = []
    for way in (OVER_SETTINGS, OVER_SEEDS):
        [within] = select(correlations, row["measure"], row["outcome"], way).to_dict("records")
        if np.isfinite(within["value"]):
            sign = " The sign is the opposite." if within["value"] * row["value"] < 0 else ""
            p = f" (p {_equals(within['p'])})" if np.isfinite(within["p"]) else ""
            words.append(f"{way[0].upper()}{way[1:]}: ρ = {within['value']:.2f}{p}.{sign}")
    return " ".join(words)


def _overturn(influences: Mapping[str, float]) -> str:
    """Say how the coefficient depends on single norms."""
    known = {norm: rho for norm, rho in influences.items() if np.isfinite(rho)}
    without_statistics = known.pop(WITHOUT_RUNNING, None)
    if not known:
        return "Any one norm: without it, too few are left for a coefficient."
    weakest = min(known, key=lambda norm: abs(known[norm]))
    low, high = min(known.values()), max(known.values())
    words = f"Without {weakest}, ρ is {known[weakest]:.2f}. Without any one norm, it is {low:.2f} to {high:.2f}."
    words += " One norm decides about its sign." if low < 0 < high else ""
    if without_statistics is not None:
        words += f" Without the norms that keep running statistics, ρ is {without_statistics:.2f}."
    return words


def basis_sentences(included: Included) -> Iterator[str]:
    """Yield which runs the primary analysis rests on, and at which training loss they are compared."""
    for reason, names in included.reasons.items():
        if names:
            counts = Counter(names)
            distinct = [name if count == 1 else f"{name} ×{count}" for name, count in counts.items()]
            shown = ", ".join(distinct[:LEFT_OUT_SHOWN]) + (", …" if len(distinct) > LEFT_OUT_SHOWN else "")
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


def other_table_sentence(runs: int, names: Sequence[str], same_data: Sequence[str]) -> str:
    """Name the other table, and the data sets that count as one."""
    same = f"; {' and '.join(same_data)} count as one data set" if same_data else ""
    return f"The other table: {runs} runs of {','.join(names)}{same}."


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

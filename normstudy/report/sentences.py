"""The sentences of the report that depend on its runs: findings, effects and limits."""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from normstudy.cli import format_count
from normstudy.report import primary
from normstudy.report.association import LEAST_BETWEEN, WITHOUT_RUNNING, WITHOUT_TUNING, Association
from normstudy.report.correlation import BETWEEN, FINDINGS, OVER_SEEDS, OVER_SETTINGS, runs_behind, select
from normstudy.report.page import format_fixed, format_interval, format_number, format_p_value
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
from normstudy.report.tuning import is_late
from normstudy.storage import OF_CLASS_SIMILARITY

SHORT_OUTCOMES = {
    "Test Accuracy": "test accuracy",
    "Train Accuracy": "train accuracy",
    "Gen. Ratio": "the ratio of test to train accuracy",
    "Gap": "the gap between train and test accuracy",
}
MISSING_SHOWN = 6  # measures without values that are named at most
UNSCALED = ("Trace", "Eigen Mean", "Eigen Variance", "Max Eigen")
SHARPNESS = (*UNSCALED, *(name for name in MEASURES if name.startswith(("hessian-", "adaptive_sharpness"))))
NAMED_IF_SHARED = (*CELL, "SkipInit", "epochs", "train_samples", "image_size", "init_lr", "precision")
LEFT_OUT_SHOWN = 5  # names of runs that are shown at most for each reason


class Finding(NamedTuple):
    """A result of the primary analysis: what was found, how sure it is, and what would overturn it.

    measure: the measure that it is about, whose picture and runs belong to it.
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
        closest = f"The closest is {titles[row['measure']]}: {_coefficient(row)}. {_tested(len(family))}"
        more = "More norms, more cells or a measure that is missing here could still show one. The coefficients below"
        more += " are exploratory: the largest of many is large by chance as well."
        claim = "No measure of the primary analysis is shown to go with test accuracy from norm to norm."
        return [Finding(row["measure"], claim, closest, more)]
    findings = []
    for row in family[is_sure].head(FINDINGS).to_dict("records"):
        direction = "higher" if row["value"] > 0 else "lower"
        claim = f"Between norms, higher {titles[row['measure']]} goes with {direction} test accuracy."
        evidence = f"{_coefficient(row)}. {_within_sentences(row, correlations)}".strip()
        evidence += f" {_tested(len(family), int(is_sure.sum()))}"
        findings.append(Finding(row["measure"], claim, evidence, _overturn(influences.get(row["measure"], {}))))
    return findings


def _tested(count: int, sure: int | None = None) -> str:
    if count == 1:
        return "It is the only measure of the primary analysis that these runs have."
    return f"Measures tested: {count}" + ("." if sure is None else f"; {sure} gave such a result.")


def _coefficient(row: Mapping[str, Any], is_short: bool = False) -> str:
    rho, limits = format_fixed(row["value"]), format_interval(row["low"], row["high"], 2)
    if is_short:
        return f"ρ = {rho} ({limits}; p {_equals(row['p_holm'])})"
    return (
        f"ρ = {rho} (95 % interval {limits}; {row['n_norms']} norms, "
        f"{format_count(int(row['n_cells']), 'cell')}; p {_equals(row['p_holm'])} after Holm's adjustment)"
    )


def _within_sentences(row: Row, correlations: pd.DataFrame) -> str:
    """Say whether the measure and the outcome also go together within norms."""
    words = []
    for way in (OVER_SETTINGS, OVER_SEEDS):
        [within] = select(correlations, row["measure"], row["outcome"], way).to_dict("records")
        if np.isfinite(within["value"]):
            is_opposite = within["value"] * row["value"] < 0 and within["p_holm"] < SIGNIFICANT
            sign = " The sign is the opposite." if is_opposite else ""
            p = f" (p {_equals(within['p_holm'])} after Holm's adjustment)" if np.isfinite(within["p_holm"]) else ""
            words.append(f"{way[0].upper()}{way[1:]}: ρ = {format_fixed(within['value'])}{p}.{sign}")
    return " ".join(words)


def _overturn(influences: Mapping[str, float]) -> str:
    """Say how the coefficient depends on single norms."""
    known = {norm: rho for norm, rho in influences.items() if np.isfinite(rho)}
    without_statistics, without_tuning = known.pop(WITHOUT_RUNNING, None), known.pop(WITHOUT_TUNING, None)
    if not known:
        return "Any one norm: without it, too few are left for a coefficient."
    weakest = min(known, key=lambda norm: abs(known[norm]))
    low, high = min(known.values()), max(known.values())
    words = f"Without {weakest}, ρ is {format_fixed(known[weakest])}. " if low < high else ""
    words += f"Without any one norm, ρ is {format_fixed(low)} to {format_fixed(high)}."
    words += " One norm decides about its sign." if low < 0 < high else ""
    if without_statistics is not None:
        words += f" Without the norms that keep running statistics, ρ is {format_fixed(without_statistics)}."
    if without_tuning is not None:
        words += f" Without the seed that chose the learning rates, ρ is {format_fixed(without_tuning)}."
    return words


def behind_sentence(runs: pd.DataFrame, points: pd.DataFrame) -> str:
    """Return how many runs a finding rests on. runs: all included ones. points: of runs_behind."""
    cells = format_count(points["cell"].nunique(), "cell")
    rest = len(runs) - len(points)
    others = f"; the other {rest} are in cells of fewer than {LEAST_BETWEEN} norms, or lack the measure" if rest else ""
    return f"It rests on {format_count(len(points), 'run')} in {cells}{others}."


def basis_sentences(included: Included, rates: Association) -> Iterator[str]:
    """Yield which runs are left out of the primary analysis, and at which loss and which rates the others are compared.

    rates: the association of the chosen rates with the outcome.
    """
    for reason, names in included.reasons.items():
        if names:
            counts = Counter(names)
            distinct = [name if count == 1 else f"{name} ×{count}" for name, count in counts.items()]
            shown = ", ".join(distinct[:LEFT_OUT_SHOWN]) + (", …" if len(distinct) > LEFT_OUT_SHOWN else "")
            yield f"Left out: {format_count(len(names), 'run')} that {reason} ({shown})."
    yield from _missing_measures(included.runs)
    accuracies = included.runs["Train Accuracy"].dropna()
    span = f"{accuracies.min():.0f} to {accuracies.max():.0f} %" if len(accuracies) else ""
    if included.loss is not None:
        yield (
            f"The runs stopped at the first epoch with a training loss of at most {included.loss}: some trained longer "
            "than others."
        )
        if span:
            yield (
                f"Their training accuracies are {span}. The closer they are, the more the gap and the ratio merely "
                "repeat test accuracy."
            )
    elif span:
        yield (
            f"The runs did not stop at a common training loss: their training accuracies are {span}. So the measures "
            "are compared at different stages of training, and an association may show which norms train faster."
        )
    yield from _tuning_sentences(included, rates)
    yield from rate_sentences(included)


def _missing_measures(runs: pd.DataFrame) -> Iterator[str]:
    """Yield which measures of the primary analysis too few norms have, and the commands that measure them."""
    missing = [name for name in primary.MEASURES if runs_behind(runs, name, primary.OUTCOME).empty]
    if missing:
        commands = ", ".join(dict.fromkeys(map(_command_of, missing)))
        yield (
            f"Left out: {len(missing)} of {len(primary.MEASURES)} measures, because no cell has them for "
            f"{LEAST_BETWEEN} norms (measured by {commands})."
        )


def _command_of(measure: str) -> str:
    """Return the command that measures a measure of the primary analysis."""
    if measure.startswith("hessian-element:"):
        return "run_hessian.py --scale=element"
    is_of_classes = measure == "Class Similarity" or measure in OF_CLASS_SIMILARITY
    return "run_class_similarity.py" if is_of_classes else "run_measures.py"


def _tuning_sentences(included: Included, rates: Association) -> Iterator[str]:
    """Yield how learning rates were chosen, which they are, and how they go with the outcome."""
    if not included.tuned:
        return
    everywhere = set(included.runs["Model"]) <= set(included.tuned)
    where = "Each" if everywhere else f"In {', '.join(included.tuned)}, each"
    yield (
        f"{where} norm is at its best learning rate: that with the highest validation accuracy of one seed, among the "
        "rates at which training reached its loss, if it had one."
    )
    others = included.other_rates
    late, failed = int(is_late(others[~others["has_failed"]]).sum()), int(others["has_failed"].sum())
    yield (
        f"Left out: {format_count(len(others), 'run')} at other rates ({late} did not reach the training loss, "
        f"{failed} failed)."
    )
    for network in included.tuned:
        own = included.runs[included.runs["Model"] == network]
        chosen = own.groupby("Label", sort=False)["peak_rate"].unique()
        named = ", ".join(f"{label} {' and '.join(f'{r:g}' for r in sorted(each))}" for label, each in chosen.items())
        yield f"Best peak rates in {network}: {named}."
    if np.isfinite(rates.value):
        yield (
            f"Between norms, ρ of the best rate and test accuracy is {format_fixed(rates.value)}: the stronger it is, "
            "the less the other associations can be told apart from an effect of the rate."
        )
    if included.edges:
        yield f"The best peak rate is the smallest or the largest that was tried for {'; '.join(included.edges)}."


def rate_sentences(included: Included) -> Iterator[str]:
    """Yield in which networks the norms are not at their best learning rates."""
    if not set(included.runs["Model"]) <= set(included.tuned):
        cells = "In the other cells" if included.tuned else "In each cell"
        yield f"{cells}, all norms have the same learning rate, which may suit some better than others."


def ranking_sentences(ranking: pd.DataFrame, included: Included) -> Iterator[str]:
    """Yield which norm is best in each network, if one is, and whether it was compared at its best learning rate.

    ranking: the frame of rank_norms.
    """
    for (network, at), ranks in ranking.groupby(["network", "at"], sort=False):
        first = ranks.iloc[0]
        place = f"{network}, at {at}: "
        if np.isfinite(first["rank_high"]) and first["rank_high"] == 1:
            yield f"{place}{first['norm']} is best."
        else:
            ranks_left = format_interval(first["rank_low"], first["rank_high"])
            doubt = f"its rank may be {ranks_left}" if ranks_left else "it has no interval"
            yield f"{place}no norm is shown to be best. {first['norm']} comes first, but {doubt}."
    untuned = sorted(set(included.runs["Model"]) - set(included.tuned))
    if untuned:
        yield (
            f"These runs do not show which norm is best at its own best learning rate in {', '.join(untuned)}: the "
            "norms were compared at one rate. run_sweep.py --tune finds each norm's best rate."
        )


def sharpness_sentences(correlations: pd.DataFrame, titles: Mapping[str, str]) -> Iterator[str]:
    """Yield whether sharpness goes with test accuracy and with the gap, between norms."""
    between = correlations[(correlations["way"] == BETWEEN) & np.isfinite(correlations["value"].astype(float))]
    sharpness = between[between["measure"].isin(SHARPNESS)]
    for outcome in ("Test Accuracy", "Gap"):
        rows = sharpness[sharpness["outcome"] == outcome].to_dict("records")
        if rows:
            each = "; ".join(f"{titles[row['measure']]} {_coefficient(row, is_short=True)}" for row in rows)
            sure = [titles[row["measure"]] for row in rows if row["p_holm"] < SIGNIFICANT]
            verdict = f"significant: {', '.join(sure)}" if sure else "none is significant"
            families = (
                "p is adjusted within the primary analysis or, for the other measures, within all of this section"
            )
            yield f"Sharpness and {SHORT_OUTCOMES[outcome]}, between norms: {verdict}. {each}. {families}."
    if len(sharpness) and not set(sharpness["measure"]) - set(UNSCALED):
        yield "All of this curvature is unscaled: its size depends on the norm, so it cannot be compared between norms."


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
        f"{format_fixed(effect.value, 1, '+')} points on average over norms (95 % interval "
        f"{format_interval(effect.low, effect.high)}; "
        f"{effect.n} groups of runs that are equal in everything else but the seed)."
        for outcome in ("Test Accuracy", "Gap")
        for effect in setting_effects(table, outcome)
    ]


def other_table_sentence(runs: int, names: Sequence[str], same_data: Sequence[str]) -> str:
    """Name the other table, and the data sets that count as one."""
    same = f"; {' and '.join(same_data)} count as one data set" if same_data else ""
    return f"The other table: {runs} runs of {','.join(names)}{same}."


def limitation_sentences(table: pd.DataFrame, included: pd.DataFrame, correlations: pd.DataFrame) -> list[str]:
    """Return the conclusions that these runs do not support. included: those of the primary analysis."""
    has_coefficients = not table["has_failed"].all() and correlations["value"].notna().any()
    causes = "Causes: changing a measure that goes with an outcome need not change the outcome."
    return [
        *_limits_of_repetition(included),
        *_limits_of_failures(table),
        *_limits_of_coverage(table),
        *([causes] if has_coefficients else []),
    ]


def _limits_of_repetition(included: pd.DataFrame) -> Iterator[str]:
    """Yield the limits due to few runs of a setting."""
    names = ["Label", *hyperparameters(included)]
    sizes = included.groupby([included[name].astype(str) for name in names]).size() if len(included) else None
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
        named = "; ".join(missing[:MISSING_SHOWN])
        others = f" and {len(missing) - MISSING_SHOWN} other measures" if len(missing) > MISSING_SHOWN else ""
        yield f"Correlations of {named}{others}: fewer than {MIN_POINTS} settings have a value."
    shared = [name for name in NAMED_IF_SHARED if name in table and table[name].notna().all()]
    shared = [name for name in shared if table[name].astype(str).nunique() == 1 and str(table[name].iloc[0])]
    if shared:
        values = ", ".join(f"{name}: {format_number(table[name].iloc[0])}" for name in shared)
        yield f"Results under other values of the settings that all runs share: {values}."

"""What the report says in words: its summary, what the data cannot say, its methods."""

from normstudy.report.page import format_interval, format_number, format_p_value
from normstudy.report.rankings import setting_effect
from normstudy.report.tables import CELL, MEASURES, MIN_POINTS, OUTCOMES, average_over_seeds, hyperparameters

SHORT = {
    "Test Accuracy": "test accuracy",
    "Train Accuracy": "train accuracy",
    "Gen. Ratio": "the ratio of test to train accuracy",
    "Gap": "the gap between train and test accuracy",
}
SHARED = (*CELL, "SkipInit", "epochs", "train_samples", "image_size", "init_lr", "precision")
EFFECTS = {
    "Mom & WD": ("momentum and weight decay", "on", "off"),
    "SkipInit": ("SkipInit", "on", "off"),
    "Batch Size": ("batch size", "", ""),
}


def summary_sentences(table, by_network, correlations, granulated, titles):
    """The findings best supported, at most three of different kinds, each a sentence with its numbers.

    titles: {measure: its words}. Support is the size of an effect over the half-width of its interval, which has to
    leave out zero.
    """
    found = [
        *(found for network, ranks in by_network.items() for found in _of_norms(network, ranks)),
        *_of_measures(correlations, granulated, titles),
        *_of_settings(table),
    ]
    best = {}
    for kind, support, words in found:
        if support > 1 and support > best.get(kind, (0, ""))[0]:
            best[kind] = support, words
    return [words for _, words in sorted(best.values(), reverse=True)[:3]]


def _support(value, low, high):
    width = (high - low) / 2
    return abs(value) / width if width > 0 and (low > 0 or high < 0) else 0.0


def _of_norms(network, ranks):
    norms = f"{len(ranks)} norms"
    if ranks["low"].isna().any():
        ranks = ranks[ranks["low"].notna()]
        norms = f"the {len(ranks)} norms with several runs"
    if len(ranks) < 2:
        return
    for place, word in ((0, "above"), (-1, "below")):
        row = ranks.iloc[place]
        yield (
            f"norm {word}",
            _support(row["advantage"], row["low"], row["high"]),
            f"In {network}, {row['Norm']} had the {'highest' if place == 0 else 'lowest'} test accuracy of {norms}: "
            f"{abs(row['advantage']):.1f} points {word} the mean of norms in cells of equal hyperparameters (95 % "
            f"interval {format_interval(row['low'], row['high'])}; n = {row['n']} runs; rank "
            f"{format_interval(row['rank_low'], row['rank_high'])}).",
        )


def _of_measures(correlations, granulated, titles):
    frame = correlations[(correlations["coefficient"] == "Spearman") & (correlations["way"] == "within cells")]
    for row in frame.to_dict("records"):
        if row["p_holm"] < 0.05:
            pooled = correlations[
                (correlations["coefficient"] == "Spearman")
                & (correlations["way"] == "pooled")
                & (correlations["measure"] == row["measure"])
                & (correlations["outcome"] == row["outcome"])
            ]["value"].iloc[0]
            [psi] = granulated[
                (granulated["measure"] == row["measure"]) & (granulated["outcome"] == row["outcome"])
            ].to_dict("records")
            of_groups = f", granulated Ψ = {psi['value']:.2f} ({format_interval(psi['low'], psi['high'])})"
            yield (
                "measure",
                _support(row["value"], row["low"], row["high"]),
                f"Where only the norm differs, {titles[row['measure']]} goes with "
                f"{SHORT[row['outcome']]}: Spearman's ρ = {row['value']:.2f} within cells (95 % interval "
                f"{format_interval(row['low'], row['high'])}; n = {row['n']} settings; p {_equals(row['p_holm'])} "
                f"after Holm); pooled over all settings ρ = {pooled:.2f}{of_groups if psi['value'] == psi['value'] else ''}.",
            )


def _equals(p):
    return format_p_value(p) if p < 0.001 else f"= {format_p_value(p)}"


def _of_settings(table):
    for axis, (name, on, off) in EFFECTS.items():
        for outcome in ("Test Accuracy", "Gap"):
            found = setting_effect(table, axis, outcome)
            if found is not None:
                value, low, high, n, (first, second) = found
                to, base = (on, off) if on else (format_number(float(second)), format_number(float(first)))
                yield (
                    f"setting {axis}",
                    _support(value, low, high),
                    f"{name[0].upper()}{name[1:]} {to} instead of {base} changed {SHORT[outcome]} by "
                    f"{value:+.1f} points (95 % interval {format_interval(low, high)}; n = {n} groups of runs "
                    f"alike in all else).",
                )


def limitation_sentences(table, by_network, correlations):
    """What no reader should take from these runs: sentences."""
    usable = table[~table["has_failed"]]
    words = []
    axes = ["Label", *hyperparameters(table)]
    sizes = usable.groupby([usable[name].astype(str) for name in axes]).size() if len(usable) else None
    if sizes is not None and sizes.median() < 3:
        words.append(
            f"Chance between seeds: half of the {len(sizes)} combinations of settings have no more than "
            f"{'1 run' if sizes.median() < 2 else '2 runs'}, so differences between single combinations are not "
            "separated from it."
        )
    few = []
    for network, ranks in by_network.items():
        names = [f"{row['Norm']} {row['n']}" for row in ranks.to_dict("records") if 1 < row["n"] < MIN_POINTS]
        few += [f"{network}: {', '.join(names)}"] if names else []
    if few:
        words.append(
            f"How sure the intervals of norms with fewer than {MIN_POINTS} runs are ({'; '.join(few)}): resampling "
            "makes them too narrow; those of two runs only span both values."
        )
    failed = int(table["has_failed"].sum())
    if failed:
        by_norm = table[table["has_failed"]]["Norm"].value_counts()
        words.append(
            f"What failed runs would have reached: {failed} of {len(table)} failed "
            f"({', '.join(f'{name} {count}' for name, count in by_norm.items())}); means are over the others."
        )
    settings = average_over_seeds(table)
    missing = [MEASURES[name] for name in MEASURES if settings[name].notna().sum() < MIN_POINTS]
    if missing:
        words.append(f"Anything about {'; '.join(missing)}: measured for fewer than {MIN_POINTS} settings.")
    constant = [name for name in SHARED if name in table and table[name].notna().all()]
    constant = [name for name in constant if table[name].astype(str).nunique() == 1 and str(table[name].iloc[0])]
    if constant:
        values = ", ".join(f"{name}: {format_number(table[name].iloc[0])}" for name in constant)
        words.append(f"Other settings than these, which all runs share: {values}.")
    if len(usable) and correlations["value"].notna().any():
        words.append(
            "Causes: measures and outcomes come from the same networks. A measure that goes with an outcome need not "
            "move it, and intervals take settings for independent, though many share a norm."
        )
    return words


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

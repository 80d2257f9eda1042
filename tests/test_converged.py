"""Every number in the findings of the converged study, recomputed from its file, and most claims without numbers."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
from numbers_helpers import (
    CONVERGED,
    RIVALS,
    check,
    converged_study,
    interval,
    lead_at_best_rates,
    lead_at_equal_rates,
    mean_and_interval,
    mean_and_spread,
    minus,
    minus_batchnorm,
    smaller_lead,
)
from scipy import stats


def rows_of_accuracies(study: SimpleNamespace) -> list[str]:
    """Return the rows of the table of norms at their best rates, best first."""
    ranking = study.tables["ranking"]
    ranking = ranking[ranking["at"] == "best rate"].set_index("norm")
    accuracies = dict(iter(study.chosen.groupby("Norm")["Test Accuracy"]))
    rows = []
    for norm, own in sorted(accuracies.items(), key=lambda pair: -pair[1].mean()):
        difference = mean_and_interval(minus_batchnorm(study.chosen, norm), 1)
        beside = f" {difference}" if norm != "BatchNorm" else ""
        rank = f"{ranking.loc[norm, 'rank_low']:.0f} to {ranking.loc[norm, 'rank_high']:.0f}"
        name = norm + (" (32 groups)" if norm == "GroupNorm" else "")
        rows.append(f"| {name} | {study.rates[norm]:g} | {len(own)} | {mean_and_spread(own, 1)} |{beside} | {rank} |")
    return rows


def rows_of_eigenvalues(study: SimpleNamespace) -> list[str]:
    """Return the rows of the table of filter-scaled Hessians: means over seeds, in the order of test accuracy."""
    means = study.chosen.groupby("Norm").mean(numeric_only=True).sort_values("Test Accuracy", ascending=False)
    rows = []
    for norm, own in means.iterrows():
        largest, fitted, trace = (own[f"hessian-filter:{name}"] for name in EIGENVALUES)
        similarity, flat = own["Class Similarity"], own["hessian-element:trace"]
        rows.append(f"| {norm} | {largest:.0f} | {fitted:.1f} | {trace:,.0f} | {flat:.1f} | {similarity:.2f} |")
    return rows


EIGENVALUES = ("max_eigen", "max_eigen_cross_fitted", "trace")


def rho(means: pd.DataFrame, measure: str, other: str = "Test Accuracy") -> float:
    """Return Spearman's ρ of a measure and test accuracy, or another measure, over norms."""
    return float(stats.spearmanr(means[measure], means[other]).statistic)


def all_rhos(n: int) -> np.ndarray:
    """Return |ρ| of n norms in each of their orders."""
    ranks = np.arange(n)
    squares = np.array([((ranks - np.array(order)) ** 2).sum() for order in itertools.permutations(range(n))])
    return np.abs(1 - 6 * squares / (n * (n**2 - 1))).round(9)


def p_of_rho(n: int, rho: float) -> float:
    """Return the exact two-sided p of a coefficient of n norms."""
    return float((all_rhos(n) >= round(abs(rho), 9)).mean())


def smallest_significant_rho(n: int, level: float) -> float:
    """Return the smallest |ρ| of n norms whose exact two-sided p is below a level."""
    values, counts = np.unique(all_rhos(n), return_counts=True)
    p = counts[::-1].cumsum()[::-1] / counts.sum()
    return float(values[p < level].min())


def epochs_of(run: str) -> int:
    return int(json.loads((CONVERGED / run / "summary.json").read_text())["epochs_done"])


def said_of_norms(study: SimpleNamespace) -> list[str]:
    """Return the sentences of the first finding, after checking those without numbers."""
    chosen, [late] = study.chosen, study.late.to_dict("records")
    accuracy = {norm: mean_and_spread(own["Test Accuracy"], 1) for norm, own in chosen.groupby("Norm")}
    differences = study.tables["baseline"].query("at == 'best rate'").set_index("norm")
    assert set(differences.index[differences["high"] > 0]) == {"EvoNormBO"}
    assert late["Norm"] == "EvoNormBO"
    assert late["Test Accuracy"] > chosen.loc[chosen["Norm"] == "EvoNormBO", "Test Accuracy"].max()
    means = chosen.groupby("Norm")[["Test Accuracy", "test_loss"]].mean()
    others = chosen[chosen["seed"] > 0].groupby("Norm")["Test Accuracy"].mean()
    assert list(others.sort_values().index) == list(means["Test Accuracy"].sort_values().index)
    by_loss = list(means["test_loss"].sort_values().index)
    assert by_loss[:2] == ["BatchNorm", "InstanceNorm"]
    assert by_loss[6] == "EvoNormBO"
    pairs = {norm: minus_batchnorm(chosen, norm) for norm in means.index.drop("BatchNorm")}
    p = pd.Series({norm: stats.ttest_1samp(own, 0).pvalue for norm, own in pairs.items()}).sort_values()
    adjusted = (p * np.arange(len(p), 0, -1)).cummax()
    with_late = minus_batchnorm(pd.concat([chosen, study.late]), "EvoNormBO")
    p_late = stats.ttest_1samp(with_late, 0).pvalue
    losses = minus_batchnorm(chosen, "InstanceNorm", "test_loss")
    worst = study.tables["ranking"].query("at == 'best rate' and norm == 'Plain'").iloc[0]
    error = study.tables["by_cell"]["Test Accuracy image error"].dropna()
    assert error.between(0.45, 0.55).all()
    return [
        *rows_of_accuracies(study),
        f"BatchNorm does best ({accuracy['BatchNorm']} % of the test images), but its lead over EvoNormBO "
        f"({accuracy['EvoNormBO']} %) is not established",
        f"({accuracy['Plain']} %, rank {worst['rank_low']:.0f} to {worst['rank_high']:.0f})",
        f"adjustment for seven norms (p ≤ {adjusted.drop('EvoNormBO').max():.2g}).",
        f"EvoNormBO's difference is that of four pairs (p = {p['EvoNormBO']:.2g}).",
        f"did not reach the training loss in {late['epochs']} epochs",
        f"it had {late['Test Accuracy']:.1f} %, more than the other four,",
        f"at a training loss of {late['train_loss']:.2f}.",
        f"With this run, the difference is {mean_and_interval(with_late, 1)[:-1]}, p = {p_late:.3f}).",
        f"BatchNorm has {others['BatchNorm']:.1f} % and EvoNormBO {others['EvoNormBO']:.1f} %, and the order is",
        f"({losses.mean():.2f} below InstanceNorm, {mean_and_interval(losses, 2).partition('(')[2]}",
    ]


def by_rate(study: SimpleNamespace) -> pd.DataFrame:
    """Return the test accuracies of seed 0, (norms, rates), NaN where the run did not reach the loss."""
    first = study.runs[(study.runs["seed"] == 0) & (study.runs["reached_loss"] == True)]  # noqa: E712
    return first.pivot(index="Norm", columns="lr", values="Test Accuracy")


def common_rates(study: SimpleNamespace) -> list[float]:
    """Return the rates at which every norm reaches the loss."""
    return list(by_rate(study).dropna(axis=1).columns)


def said_of_rates(study: SimpleNamespace) -> list[str]:
    """Return the sentences of the second finding, after checking those without numbers."""
    accuracies, common = by_rate(study), common_rates(study)
    assert len(common) == 3
    large, middle = study.rates["BatchNorm"], accuracies[common].mean(axis=1)
    assert set(accuracies.index[accuracies[large].isna()]) == {"GroupNorm", "LayerNorm", "Plain"}
    assert accuracies.loc["Plain"].dropna().is_monotonic_decreasing
    near = [abs(round(middle["BatchNorm"] - middle[norm], 1)) for norm in RIVALS]
    equal, best = ([lead(study, norm) for norm in RIVALS] for lead in (lead_at_equal_rates, lead_at_best_rates))
    assert equal[0].mean() + half_width(equal[0]) < best[0].mean()
    assert equal[0].mean() - half_width(equal[0]) > 0
    assert equal[1].mean() - half_width(equal[1]) < 0 < best[1].mean() < equal[1].mean() + half_width(equal[1])
    groups = study.chosen.groupby("Norm")["Test Accuracy"]
    freedom = (groups.size() - 1).sum()
    spread = np.sqrt((groups.var() * (groups.size() - 1)).sum() / freedom)  # pooled over norms
    first = common[0]
    gain = (accuracies[large] - accuracies[first]).dropna()
    others = gain.drop("BatchNorm")
    more = gain["BatchNorm"] - others.mean()
    half = stats.t.ppf(0.975, freedom) * spread * np.sqrt(2 * (1 + 1 / len(others)))
    own = study.runs[study.runs["seed"] == 0]
    epochs = {norm: runs.set_index("lr")["run"].map(epochs_of)[[0.02, large]] for norm, runs in own.groupby("Norm")}
    times = {norm: each.tolist() for norm, each in epochs.items()}
    return [
        f"reach the loss ({first:g} to {common[-1]:g})",
        f"ScaledWeightStandardization ({near[0]:.1f} points above it) and EvoNormBO ({near[1]:.1f}).",
        "equal rates of 0.02 and 0.04, seeds 1 to 4",
        "Seeds 1 to 4 of the three norms at 0.02 and 0.04 tested it.",
        "ScaledWeightStandardization at 0.04 existed:",
        *(
            f"| {norm} | {mean_and_interval(at_equal, 2)} | {mean_and_interval(at_best, 2)} |"
            for norm, at_equal, at_best in zip(RIVALS, equal, best, strict=True)
        ),
        f"{smaller_lead(study)[0]} at the best rates ({smaller_lead(study)[1]})",
        f"do not reach the loss at {large:g}, BatchNorm's best rate",
        f"({times['BatchNorm'][0]} epochs at 0.02, {times['BatchNorm'][1]} at {large:g}), but so does EvoNormBO "
        f"({times['EvoNormBO'][0]} and {times['EvoNormBO'][1]}), while InstanceNorm trains about as long "
        f"({times['InstanceNorm'][0]} and {times['InstanceNorm'][1]})",
        f"What BatchNorm gains from {first:g} to {large:g} ({gain['BatchNorm']:.1f} points, seed 0)",
        f"({more:.1f} more than their mean, {minus(more - half, 1)} to {more + half:.1f}, if runs",
    ]


def half_width(values: pd.Series) -> float:
    """Return half of the width of the 95 % t-interval of a mean."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std() / np.sqrt(len(values)))


def said_of_properties(study: SimpleNamespace) -> list[str]:
    """Return the sentences of the third finding, after checking those without numbers."""
    of_outcome = study.tables["correlations"].query("outcome == 'Test Accuracy'")
    between = of_outcome[of_outcome["way"] == "between norms"].set_index("measure")
    over_seeds = of_outcome[of_outcome["way"] == "within norms over seeds"].set_index("measure")
    primary, within = between[between["family"] == "primary"], over_seeds[over_seeds["family"] == "within norms"]
    assert min(primary["p_holm"].min(), within["p_holm"].min()) > 0.05
    assert primary["p"].idxmin() == "Class Similarity"
    assert within["p"].idxmin() == "adaptive_sharpness_linf"
    similarity, trace, sharp = (
        primary.loc[name] for name in ("Class Similarity", "hessian-element:trace", "adaptive_sharpness_linf")
    )
    sharp_within, centred = within.loc["adaptive_sharpness_linf"], between.loc["class_similarity_centred"]
    means = study.chosen.groupby("Norm").mean(numeric_only=True)
    fitted, rate = (rho(means, name) for name in ("hessian-filter:max_eigen_cross_fitted", "lr"))
    assert means["hessian-element:trace"].sort_values().index[1] == means["hessian-filter:trace"].idxmax() == "Plain"
    left_out = pd.Series({norm: rho(means.drop(norm), "Class Similarity") for norm in means.index}).sort_values()
    assert left_out.index[0] == "EvoNormSO"
    without, alone = left_out.iloc[0], p_of_rho(len(means) - 1, left_out.iloc[0])
    assert (primary["value"].abs() > 0.55).sum() == 1 + 3
    entropy, angles, loss = (
        primary.loc["output_entropy"],
        primary.loc["nc2_equiangularity"],
        within.loc["cross_entropy"],
    )
    smallest = smallest_significant_rho(len(means), 0.05 / len(primary))
    return [
        f"{len(primary)} measures and {similarity['n_norms']} norms",
        f"ρ is {minus(similarity['value'], 2)} ({interval(similarity, 2)}), p = {similarity['p']:.2g} alone and "
        f"{similarity['p_holm']:.2g} after Holm's adjustment",
        f"(ρ = {minus(similarity['value'], 2)}, p = {similarity['p_holm']:.2g} after Holm's adjustment), hardly",
        f"entropy of the outputs ({minus(entropy['value'], 2)}), the equal angles of neural collapse "
        f"({minus(angles['value'], 2)}) and the element-scaled trace ({trace['value']:.2f}) are close",
        f"class similarity has ρ between {minus(without, 2)} (without EvoNormSO) and {minus(left_out.iloc[-1], 2)}.",
        f"had {minus(without, 2)} (p = {alone:.2g} alone, {len(primary) * alone:.2g} after the adjustment)",
        f"(ρ of best rate and class similarity is {minus(rho(means, 'lr', 'Class Similarity'), 2)})",
        f"measured images has ρ = {minus(loss['value'], 2)} ({interval(loss, 2)})",
        f"(ρ = {minus(within.loc['Class Similarity', 'value'], 2)}, {interval(within.loc['Class Similarity'], 2)})",
        f"(ρ = {minus(centred['value'], 2)}, {interval(centred, 2)})",
        f"ρ of the element-scaled trace is {minus(trace['value'], 2)} ({interval(trace, 2)})",
        f"that of adaptive sharpness (L∞) {minus(sharp['value'], 2)} ({interval(sharp, 2)})",
        f"λ_max has ρ = {minus(between.loc['hessian-filter:max_eigen', 'value'], 2)} "
        f"(p = {between.loc['hessian-filter:max_eigen', 'p']:.2g} alone), its cross-fitted value {fitted:.2f}.",
        f"adaptive sharpness (L∞) has ρ = {minus(sharp_within['value'], 2)} ({interval(sharp_within, 2)}) with test "
        f"accuracy (p = {sharp_within['p']:.2g}, {sharp_within['p_holm']:.2g} after the adjustment; "
        f"{sharp_within['n_settings']} runs)",
        f"ρ of the best rate and test accuracy is {rate:.2f}",
        f"a single measure needs |ρ| of at least {smallest:.2f} to be",
    ]


def said_of_curvature(study: SimpleNamespace) -> list[str]:
    """Return the sentences on how sharpness is measured."""
    chosen = study.chosen
    assert (chosen["class_similarity_samples"] == chosen["train_samples"]).all()
    groups = chosen.groupby("Norm")
    means = groups.mean(numeric_only=True)
    part = means["hessian-filter:max_eigen_cross_fitted"] / means["hessian-filter:max_eigen"]
    assert (part.drop("BatchNorm") < 0.05).all()
    factors = (1 / part).drop("BatchNorm")
    spreads = [groups[name].std() / means[name] for name in ("hessian-filter:trace", EIGENVALUE)]
    assert [each.idxmax() for each in spreads] == ["InstanceNorm", "InstanceNorm"]
    own = means.loc["BatchNorm"]
    in_batch, in_eval = ({name: own[f"{kind}:{name}"] for name in EIGENVALUES} for kind in KINDS)
    samples = chosen["hessian_samples"].max()
    return [
        *rows_of_eigenvalues(study),
        f"The Hessians are those of {samples:.0f} training images in eval mode",
        f"λ_max of {samples:.0f} images",
        f"up to {100 * spreads[0].max():.0f} % of the mean for the filter-scaled trace and "
        f"{100 * spreads[1].max():.0f} % for the cross-fitted λ_max (both InstanceNorm)",
        f"class similarity is that of all {chosen['train_samples'].max():,}",
        f"a factor of {1 / part['BatchNorm']:.0f} for BatchNorm, and of {factors.min():.0f} to "
        f"{round(factors.max(), -1):.0f} for the others",
        f"is {100 * part['BatchNorm']:.0f} % of λ_max for BatchNorm and at most 5 % for the others",
        f"λ_max is {in_batch['max_eigen']:.0f} instead of {in_eval['max_eigen']:.0f},",
        f"the trace {in_batch['trace']:.0f} instead of {in_eval['trace']:.0f}",
    ]


EIGENVALUE = "hessian-filter:max_eigen_cross_fitted"
KINDS = ("hessian-train-filter", "hessian-filter")


def said_of_claims(study: SimpleNamespace) -> list[str]:
    """Return the sentences on class similarity as a predictor."""
    claims = study.tables["claims"]
    claims = claims[claims["compared"].str.contains("class similarity")]
    assert set(claims["n"]) == {study.chosen["Norm"].nunique()}
    of_training, of_test, of_ratio = (claims.iloc[place : place + 4] for place in (0, 4, 8))
    for part, name in ((of_training, "train accuracy (%)"), (of_test, "test accuracy (%)"), (of_ratio, "ratio")):
        assert part["compared"].str.contains(name, regex=False).all()
        assert part["value"].iloc[0] == part["value"].iloc[1]  # trace and mean eigenvalue order the norms alike
    assert of_test["value"].tolist() == of_ratio["value"].tolist()
    assert ((of_test["low"] < 0) & (of_test["high"] > 0)).all()
    assert (of_training["low"] > 0).tolist() == [True, True, False, False]
    trace, _, variance, largest = of_test["value"]
    of_trace = of_training.iloc[0]
    return [
        f"largest eigenvalue of the Hessian by {trace:.2f}, {variance:.2f} and {largest:.2f}, and each interval",
        f"is above zero ({of_trace['value']:.2f}, {interval(of_trace, 2)})",
    ]


def hours_on_two_cores() -> float:
    """Return half of the time that training and measurements took, one thread each."""
    files = [path for path in CONVERGED.glob("vgg_*/*.json") if path.name not in ("config.json", "probes.json")]
    return sum(json.loads(path.read_text())["seconds"] for path in files) / 7200


def test_the_numbers_of_the_findings_of_the_converged_study():
    converged = converged_study()
    runs = converged.runs
    [loss], [images], [epochs] = (runs[name].unique() for name in ("stop_at_loss", "train_samples", "epochs"))
    check(
        CONVERGED / "FINDINGS.md",
        [
            *said_of_norms(converged),
            *said_of_rates(converged),
            *said_of_properties(converged),
            *said_of_curvature(converged),
            *said_of_claims(converged),
            f"on {images:,} images to a training loss of at most {loss}",
            f"All runs have the same {images:,} training images",
            f"training loss of at most {loss} in eval mode. If it does not reach it in {epochs} epochs",
            f"{images // 10} training and {images // 10} validation images of each class",
            f"all {runs['test_samples'].max():,} test images",
            f"batch size {runs['Batch Size'].max()}, SGD",
            f"All {len(runs)} took {hours_on_two_cores():.1f} hours on two cores",
            "(seeds 1 to 4 of three norms at 0.02 and 0.04, by",
        ],
        [
            "ρ is −0.35 by the same statistics (9 norms, 32 cells, p = 0.022;",  # docs/report.png
            "At about 50 %",
            "adjustment for 14 tests",
            "another batch size than 64",
            "(95 % interval)",
            "95 % interval of the rank",
            "EvoNormBO's goes to rank 4",
            "but inconclusive: their intervals begin at ranks 5 and 6 of eight",
            "(0.5 points for one accuracy)",
            "(seed 0)",
            "validation accuracy of seed 0",
            *(f"## {place}. " for place in (1, 2, 3)),
            *(f" {place}. " for place in (1, 2, 3)),
        ],
    )

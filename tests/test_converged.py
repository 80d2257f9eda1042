"""Every number in the findings of the converged study, recomputed from its file, and most claims without numbers."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
from numbers_helpers import (
    CONVERGED,
    batchnorm_minus_others,
    by_rate,
    check,
    converged_study,
    gains,
    interval,
    mean_and_spread,
    minus,
)
from scipy import stats


def rows_of_accuracies(study: SimpleNamespace) -> list[str]:
    """Return the rows of the table of norms at their best rates, best first."""
    ranking = study.tables["ranking"]
    ranking = ranking[ranking["at"] == "best rate"].set_index("norm")
    accuracies = {norm: own.set_index("seed")["Test Accuracy"] for norm, own in study.chosen.groupby("Norm")}
    rows = []
    for norm, own in sorted(accuracies.items(), key=lambda pair: -pair[1].mean()):
        differences = (own - accuracies["BatchNorm"]).dropna()
        low, high = stats.ttest_1samp(differences, 0).confidence_interval()
        beside = f" {minus(differences.mean(), 1)} ({minus(low, 1)} to {minus(high, 1)})" if norm != "BatchNorm" else ""
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
    return [
        *rows_of_accuracies(study),
        f"BatchNorm does best ({accuracy['BatchNorm']} % of the test images), but its lead over EvoNormBO "
        f"({accuracy['EvoNormBO']} %) is within chance",
        f"without a norm does worst ({accuracy['Plain']} %)",
        f"did not reach the training loss in {late['epochs']} epochs",
        f"it had {late['Test Accuracy']:.1f} %, more than the other four,",
        f"at a training loss of {late['train_loss']:.2f}.",
        f"BatchNorm has {others['BatchNorm']:.1f} % and EvoNormBO {others['EvoNormBO']:.1f} %, and the order is",
    ]


def said_of_rates(study: SimpleNamespace) -> list[str]:
    """Return the sentences of the second finding, after checking those without numbers."""
    accuracies, gain = by_rate(study), gains(study)
    small, large = accuracies.columns[0], study.rates["BatchNorm"]
    assert gain.idxmax() == "BatchNorm"
    assert set(gain.dropna().index) == {"BatchNorm", "EvoNormBO", "EvoNormSO", "ScaledWeightStandardization"}
    late = accuracies.index[accuracies[large].isna()]
    assert set(late) == {"GroupNorm", "LayerNorm", "Plain"}
    assert (accuracies.max(axis=1) - accuracies[small])[["GroupNorm", "LayerNorm"]].max().round(1) <= 2
    assert round(accuracies.loc["Plain"].dropna().iloc[-1] - accuracies.loc["Plain", small]) == -3
    leads = accuracies.loc["BatchNorm"] - accuracies.drop("BatchNorm").max()
    assert leads[leads > 1].index.min() == large
    assert leads[leads.index >= large].min() > 1
    difference, low, high, others = batchnorm_minus_others(study, accuracies[small], runs=1)
    more, least, most, gaining = batchnorm_minus_others(study, gain, runs=2)
    own = study.runs[(study.runs["seed"] == 0) & (study.runs["Norm"] == "BatchNorm")]
    epochs = own.set_index("lr")["run"].map(epochs_of)
    return [
        f"{gain['BatchNorm']:.1f} points from the smallest rate to its best one, {NUMBERS[gaining]} others "
        f"{gain['BatchNorm'] - more:.1f} on average (one run each)",
        f"From {small:g} to {large:g}, BatchNorm gains {gain['BatchNorm']:.1f} points. The {NUMBERS[gaining]} others",
        f"gain {gain['BatchNorm'] - more:.1f} on average, {more:.1f} less (95 % interval {least:.1f} to {most:.1f}, if",
        f"At {small:g}, BatchNorm is {-difference:.1f} points below the mean of the {NUMBERS[others]} others "
        f"({minus(low, 1)} to {minus(high, 1)}), so",
        f"gain at most two points over {small:g}, the network without a norm loses three; at {large:g}, these three",
        f"is clearly ahead at {large:g} and above only",
        f"seed 0 also chose the rate of {large:g}, at which "
        f"BatchNorm has {accuracies.loc['BatchNorm', large]:.1f} % with this seed and "
        f"{study.chosen.groupby('Norm')['Test Accuracy'].mean()['BatchNorm']:.1f} % on average.",
        f"BatchNorm took {epochs[small]} epochs at {small:g} and {epochs[large]} at {large:g}",
    ]


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
    fitted, rate = (
        stats.spearmanr(means[name], means["Test Accuracy"]).statistic
        for name in ("hessian-filter:max_eigen_cross_fitted", "lr")
    )
    assert means["hessian-element:trace"].sort_values().index[1] == means["hessian-filter:trace"].idxmax() == "Plain"
    before = means.drop("EvoNormSO")
    without = stats.spearmanr(before["Class Similarity"], before["Test Accuracy"]).statistic
    assert means["Class Similarity"].sort_values().index[1] == "EvoNormSO"
    assert means["Test Accuracy"].sort_values().index[-6] == "EvoNormSO"
    losses = study.chosen["train_loss"]
    smallest = smallest_significant_rho(len(means), 0.05 / len(primary))
    return [
        f"{len(primary)} measures and {similarity['n_norms']} norms",
        f"ρ is {minus(similarity['value'], 2)} ({interval(similarity, 2)}), p = {similarity['p']:.2g} alone and "
        f"{similarity['p_holm']:.2g} after Holm's adjustment",
        f"ρ was {minus(without, 2)} and p = {p_of_rho(len(before), without):.2g} alone",
        f"EvoNormSO, ρ is {minus(without, 2)}, with it {minus(similarity['value'], 2)}",
        f"(ρ = {minus(within.loc['Class Similarity', 'value'], 2)}, {interval(within.loc['Class Similarity'], 2)})",
        f"(ρ = {minus(centred['value'], 2)}, {interval(centred, 2)})",
        f"ρ of the element-scaled trace is {minus(trace['value'], 2)} ({interval(trace, 2)})",
        f"that of adaptive sharpness (L∞) {minus(sharp['value'], 2)} ({interval(sharp, 2)})",
        f"λ_max has ρ = {minus(between.loc['hessian-filter:max_eigen', 'value'], 2)} "
        f"(p = {between.loc['hessian-filter:max_eigen', 'p']:.2g} alone), its cross-fitted value {fitted:.2f}.",
        f"adaptive sharpness (L∞) has ρ = {minus(sharp_within['value'], 2)} ({interval(sharp_within, 2)}) with test "
        f"accuracy (p = {sharp_within['p']:.2g}, {sharp_within['p_holm']:.2g} after the adjustment; "
        f"{sharp_within['n_settings']} runs)",
        f"stop also varies ({losses.min():.2f} to {losses.max():.2f})",
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
    assert 1 / part.max() > 9
    spread = (groups["hessian-filter:trace"].std() / means["hessian-filter:trace"]).max()
    own = means.loc["BatchNorm"]
    in_batch, in_eval = ({name: own[f"{kind}:{name}"] for name in EIGENVALUES} for kind in KINDS)
    samples = chosen["hessian_samples"].max()
    return [
        *rows_of_eigenvalues(study),
        f"The Hessians are those of {samples:.0f} training images in eval mode",
        f"λ_max of {samples:.0f} images",
        f"is up to {100 * spread:.0f} % of the mean",
        f"is {100 * part['BatchNorm']:.0f} % of λ_max for BatchNorm and at most 5 % for the others",
        f"λ_max is {in_batch['max_eigen']:.0f} instead of {in_eval['max_eigen']:.0f},",
        f"the trace {in_batch['trace']:.0f} instead of {in_eval['trace']:.0f}",
    ]


KINDS = ("hessian-train-filter", "hessian-filter")


def said_of_claims(study: SimpleNamespace) -> list[str]:
    """Return the sentences on class similarity as a predictor."""
    claims = study.tables["claims"]
    claims = claims[claims["compared"].str.contains("class similarity")]
    of_training = claims["compared"].str.contains("train accuracy (%)", regex=False)
    assert (claims["low"] > 0)[of_training].tolist() == [True, True, False, False]
    others = claims[~of_training]
    assert ((others["low"] < 0) & (others["high"] > 0)).tolist() == [True] * 8
    assert set(claims["n"]) == {study.chosen["Norm"].nunique()}
    return [f"lies between {others['value'].min():.2f} and {others['value'].max():.2f}, and each of the eight"]


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
            f"training loss of at most {loss} in eval mode. If it does not reach it in {epochs} epochs",
            f"{images // 10} training and {images // 10} validation images of each class",
            f"all {runs['test_samples'].max():,} test images",
            f"batch size {runs['Batch Size'].max()}, SGD",
            f"The {len(runs)} runs took {hours_on_two_cores():.1f} hours on two cores",
        ],
        [
            "ρ is −0.35 by the same statistics (9 norms, 32 cells, p = 0.022;",  # docs/report.png
            "At about 50 %",
            "adjustment for 14 tests",
            "another batch size than 64",
            "(95 % interval)",
            "95 % interval of the rank",
            "EvoNormBO's goes to rank 4",
            "Their intervals begin at ranks 5 and 6 of eight",
            "(seed 0)",
            "validation accuracy of seed 0",
            *(f"## {place}. " for place in (1, 2, 3)),
            *(f" {place}. " for place in (1, 2, 3)),
        ],
    )


NUMBERS = {3: "three", 6: "six"}

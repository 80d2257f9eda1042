"""Claims of papers and of the original study, declared one by one, and how these runs compare with them.

To add a claim, write a function that yields its Comparisons, and a line in CLAIMS.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from config import WEIGHT_NORMS
from normstudy.cli import format_count
from normstudy.report.association import compare_between
from normstudy.report.correlation import conditions_of, points_of
from normstudy.report.primary import included_runs
from normstudy.report.probe_statistics import ProbeStatistics
from normstudy.report.tables import (
    MIN_POINTS,
    OUTCOMES,
    SIGNIFICANT,
    Row,
    in_largest_cells,
    largest_cells,
    pairs_with_groupings,
)
from normstudy.report.tuning import EQUAL_SETTINGS

ORIGINAL, LUBANA, GHORBANI = "the original study", "Lubana et al. 2021", "Ghorbani et al. 2019"
RIVALS = {"Trace": "trace", "Eigen Mean": "mean", "Eigen Variance": "variance", "Max Eigen": "largest eigenvalue"}
SYNTHETIC = "Synthetic"  # made-up images say nothing about claims


class Runs(NamedTuple):
    """What claims are compared with: the runs, their ranking (rank_norms) and their probe statistics."""

    table: pd.DataFrame
    ranking: pd.DataFrame
    probed: Sequence[tuple[Row, ProbeStatistics]]
    resamples: int
    seed: int


class Comparison(NamedTuple):
    """One comparison with a claim.

    value is positive if it is as claimed, with its 95 % interval or its p value (NaN if it has none). n is the number
    of norms, or of groupings.
    """

    where: str
    compared: str
    value: float
    low: float
    high: float
    n: int
    p: float


@dataclass(frozen=True)
class Claim:
    """A claim: what it says, who says it, under which conditions it was made, and the function that compares it."""

    says: str
    source: str
    conditions: str
    compare: Callable[[Runs], Iterator[Comparison]]


def compare_claims(runs: Runs) -> pd.DataFrame:
    """Return a row for each Comparison of CLAIMS, with the claim, its source and conditions, and a verdict.

    Runs on synthetic images are left out.
    """
    is_real = runs.table["Dataset"] != SYNTHETIC
    probed = [(row, part) for row, part in runs.probed if row["Dataset"] != SYNTHETIC]
    real = runs._replace(table=runs.table[is_real], probed=probed)
    rows = []
    for claim in CLAIMS if is_real.any() else ():
        for found in claim.compare(real):
            said = _verdict(found)
            rows.append((claim.says, claim.source, claim.conditions, *found, said))
    return pd.DataFrame(rows, columns=["claim", "source", "conditions", *Comparison._fields, "verdict"])


def verdict(value: float, p: float, n: int) -> str:
    """Say whether a value agrees with a claim that it is positive, by its p value."""
    if not p < SIGNIFICANT:
        return f"inconclusive (n = {n})"
    return "agrees" if value > 0 else "does not agree"


def _verdict(found: Comparison) -> str:
    if np.isfinite(found.low):
        return "agrees" if found.low > 0 else "does not agree" if found.high < 0 else f"inconclusive (n = {found.n})"
    return verdict(found.value, found.p, found.n)


def _class_similarity(runs: Runs) -> Iterator[Comparison]:
    usable = included_runs(runs.table).runs
    for outcome in ("Train Accuracy", "Test Accuracy", "Gen. Ratio"):
        for rival, words in RIVALS.items():
            both = usable.dropna(subset=["Class Similarity", rival, outcome])
            equal = conditions_of(both, rival)
            points, others = (points_of(both, "Class Similarity", column, equal=equal) for column in (outcome, rival))
            found = compare_between(points.assign(rival=others["y"]), runs.resamples, runs.seed)
            if np.isfinite(found.value):
                compared = f"|ρ| of class similarity minus |ρ| of {words} (Hessian), with {OUTCOMES[outcome]}"
                where = f"between norms, {format_count(found.n_cells, 'cell')}"
                yield Comparison(where, compared, found.value, found.low, found.high, found.n_norms, np.nan)


def _best_and_worst(runs: Runs) -> Iterator[Comparison]:
    for network, own in runs.ranking.groupby("network", sort=False):
        at = own["at"].iloc[0]  # the best rate, if rates were tuned
        own = own[own["at"] == at]
        count = len(own)
        for norm, is_best in (("BatchNorm", True), ("EvoNormBO", True), ("InstanceNorm", False), ("Plain", False)):
            row = own[own["norm"] == norm]
            if count < MIN_POINTS or row.empty or row["rank_low"].isna().any():
                continue
            low, high = float(row["rank_low"].iloc[0]), float(row["rank_high"].iloc[0])
            place = float(own["advantage"].rank(ascending=False)[row.index[0]])
            if is_best:  # positive where the rank is 1 or 2
                bounds, value = (2.5 - high, 2.5 - low), 2.5 - place
            else:
                bounds, value = (low - count + 1.5, high - count + 1.5), place - count + 1.5
            extreme = "the two best" if is_best else "the two worst"
            words = f"rank {place:g} of {count} ({low:g} to {high:g}); value: ranks inside {extreme}"
            where = f"{network}, {norm}" if at == EQUAL_SETTINGS else f"{network}, {norm}, {at}"
            yield Comparison(where, words, value, *bounds, count, np.nan)


def _outliers(runs: Runs) -> Iterator[Comparison]:
    modes = {"batch statistics": "hessian-train:", "eval mode": ""}
    for mode, prefix in modes.items():
        names = {name: prefix + name for name in ("trace", "max_eigen", "eigen_variance")}
        if not prefix:
            names = {"trace": "Trace", "max_eigen": "Max Eigen", "eigen_variance": "Eigen Variance"}
        table = included_runs(runs.table).runs
        if not all(name in table for name in names.values()):
            continue
        values = {key: pd.to_numeric(table[name], errors="coerce") for key, name in names.items()}
        dimension = (table["Trace"] / table["Eigen Mean"]).groupby(table["Model"]).transform("median")
        squares = dimension * (values["eigen_variance"] + (values["trace"] / dimension) ** 2)
        share = values["max_eigen"] ** 2 / squares
        is_share = (share > 0) & (share <= 1)  # not so in tables whose trace is not that of the same matrix
        usable = table.assign(share=share)[is_share]
        for network, measured in largest_cells(usable, ["Model"]).groupby("Model"):
            by_norm = measured.groupby("Norm")["share"].mean()
            if len(by_norm) < MIN_POINTS or "BatchNorm" not in by_norm:
                continue
            others = by_norm.drop("BatchNorm")
            value = float(others.median() - by_norm["BatchNorm"])
            extreme = int((np.abs(by_norm - by_norm.median()) >= abs(by_norm["BatchNorm"] - by_norm.median())).sum())
            words = (
                f"largest eigenvalue squared over the sum of all squares: {by_norm['BatchNorm']:.2g} with BatchNorm, "
                f"median {others.median():.2g} of {len(others)} other norms; value: the difference"
            )
            yield Comparison(f"{network}, {mode}", words, value, np.nan, np.nan, len(by_norm), extreme / len(by_norm))


def _growth(runs: Runs) -> Iterator[Comparison]:
    """Compare how much the activation variance of ResNets grows with weight-based and with activation-based norms.

    Runs with SkipInit are left out, because it silences the branches. So are pre-activation networks, whose norms are
    not behind the sums of branches and shortcuts.
    """
    growths: dict[str, list[float]] = {}
    for row, part in runs.probed:
        is_other = any(str(row.get(name)).lower() == "true" for name in ("preact", "SkipInit"))
        if row["Model"] != "resnet-56" or is_other or row["Norm"] == "Plain":
            continue
        is_output = [name.endswith("activation2") for name in part.sites["activation"]]
        values = part.values["activation_variance"]["first"][is_output]
        if len(values) > 1 and np.isfinite(values).all() and (values > 0).all():
            growths.setdefault(row["Norm"], []).append(float(np.log10(values[-1] / values[0])))
    weight = [np.mean(found) for norm, found in growths.items() if norm in WEIGHT_NORMS]
    activation = [np.mean(found) for norm, found in growths.items() if norm not in WEIGHT_NORMS]
    if weight and activation:
        n = len(weight) + len(activation)
        p = stats.mannwhitneyu(weight, activation).pvalue if n >= MIN_POINTS else np.nan
        words = (
            f"growth of the activation variance from the first block to the last at the first iteration: "
            f"× {10 ** np.median(weight):.2g} with weight-based norms, × {10 ** np.median(activation):.2g} with "
            "activation-based norms (medians over norms); value: difference of log10"
        )
        value = float(np.median(weight) - np.median(activation))
        yield Comparison("resnet-56", words, value, np.nan, np.nan, n, float(p))


def _groupings(runs: Runs, words: str, value_of: Callable[[ProbeStatistics], float]) -> Iterator[Comparison]:
    grouped = [
        (row, part)
        for row, part in pairs_with_groupings(runs.probed)
        if row["Norm"] == "GroupNorm" and 0 < row["Grouping"] <= 1
    ]
    comparable = in_largest_cells(grouped, "Grouping")
    for network in sorted({row["Model"] for row, _ in comparable}):
        own = [(row["Grouping"], value_of(part)) for row, part in comparable if row["Model"] == network]
        means = pd.DataFrame(own, columns=["grouping", "value"]).groupby("grouping")["value"].mean()
        if len(means) >= MIN_POINTS and np.ptp(means.to_numpy()) > 0:
            rho, p = _spearman(means.index.to_numpy(float), means.to_numpy())
            compared = f"Spearman's ρ of 1 / channels per group and {words}, first iteration"
            yield Comparison(f"{network}, {len(means)} groupings", compared, rho, np.nan, np.nan, len(means), p)


def _spearman(first: np.ndarray, second: np.ndarray) -> tuple[float, float]:
    """Return (ρ, p), with p from permutations: scipy's own p is 0 for ranks that agree completely."""
    first, second = stats.rankdata(first), stats.rankdata(second)

    def rho(x: np.ndarray) -> float:
        return np.corrcoef(x, second)[0, 1]

    found = stats.permutation_test((first,), rho, permutation_type="pairings", n_resamples=9999, rng=0)
    return float(found.statistic), found.pvalue


def _stable_rank(runs: Runs) -> Iterator[Comparison]:
    yield from _groupings(
        runs, "mean stable rank over activations", lambda part: np.nanmean(part.values["stable_rank"]["first"])
    )


def _early_gradients(runs: Runs) -> Iterator[Comparison]:
    yield from _groupings(
        runs, "gradient norm at the first convolution", lambda part: part.values["grad_norm"]["first"][0]
    )


CLAIMS = (
    Claim(
        "Class similarity is the strongest predictor of train accuracy, test accuracy and generalization ratio",
        ORIGINAL,
        "compared with trace, mean, variance and largest eigenvalue, at one learning rate, runs pooled",
        _class_similarity,
    ),
    Claim(
        "BatchNorm and EvoNormBO do best, InstanceNorm and Plain worst",
        ORIGINAL,
        "test accuracy at one learning rate",
        _best_and_worst,
    ),
    Claim(
        "With BatchNorm, the Hessian has no outliers of the size that other networks have",
        GHORBANI,
        "batch statistics during training; the paper reports that outliers are there with population statistics",
        _outliers,
    ),
    Claim(
        "Activation-based norms keep the activation variance of ResNets from growing with depth; weight-based do not",
        LUBANA,
        "at initialization, without SkipInit",
        _growth,
    ),
    Claim("Smaller groups give higher stable rank", LUBANA, "GroupNorm at initialization", _stable_rank),
    Claim("Smaller groups give larger early gradients", LUBANA, "GroupNorm at initialization", _early_gradients),
)

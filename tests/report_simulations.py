"""Simulated studies with a known truth: how often intervals cover it, and how often p values reject a true null.

    python tests/report_simulations.py [REPETITIONS]

prints the table of docs/report.md. The tests use fewer repetitions.
"""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd

sys.path.insert(0, str(Path(__file__).parents[1]))  # so that it also runs by itself

from normstudy.report.association import between_norms, compare_between, within_norms
from normstudy.report.baseline import differences_to
from normstudy.report.rankings import rank_labels, setting_effects
from normstudy.report.tables import tidy_table


class Rates(NamedTuple):
    """The share of intervals that cover the truth, and of p values below 0.05."""

    coverage: float
    rejected: float


def rates(covered: Sequence[object], rejected: Sequence[object]) -> Rates:
    shares = [sum(map(bool, found)) / len(found) if found else np.nan for found in (covered, rejected)]
    return Rates(*shares)


def norm_values(generator: np.random.Generator, norms: int, cells: int, correlation: float) -> np.ndarray:
    """Return x and y (cells, norms, 2): 80 % of their variance is the norm's in all cells, 20 % its own in each."""
    covariance = [[1, correlation], [correlation, 1]]
    shared = generator.multivariate_normal([0, 0], covariance, norms)
    own = generator.multivariate_normal([0, 0], covariance, (cells, norms))
    of_cells = 3 * generator.normal(size=(cells, 1, 2))
    values: np.ndarray = np.sqrt(0.8) * shared + np.sqrt(0.2) * own + of_cells
    return values


def points(
    values: np.ndarray, groupings: dict[int, int] | None = None, noise: float = 0.0, seed: int = 0
) -> pd.DataFrame:
    """Return a point for each norm and cell, or for each grouping of a norm, {norm: number of its groupings}."""
    generator, rows = np.random.default_rng(seed), []
    for cell in range(len(values)):
        for norm in range(values.shape[1]):
            for grouping in range((groupings or {}).get(norm, 1)):
                x, y = values[cell, norm] + noise * generator.normal(size=2)
                rows.append((f"norm {norm}", f"cell {cell}", f"grouping {grouping}", x, y))
    return pd.DataFrame(rows, columns=["norm", "cell", "entity", "x", "y"])


def between(
    norms: int, cells: int, correlation: float, repetitions: int, groupings: dict[int, int] | None = None
) -> Rates:
    """Simulate between_norms. With the `groupings`, one norm has many more settings than the others."""
    generator = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(correlation / 2)  # Spearman's ρ of a normal distribution
    covered, rejected = [], []
    for seed in range(repetitions):
        study = points(norm_values(generator, norms, cells, correlation), groupings, 0.1, seed)
        found = between_norms(study, resamples=300, permutations=299, seed=seed)
        covered.append(found.low <= truth <= found.high)
        rejected.append(found.p < 0.05)
    return rates(covered, rejected)


def rotating(correlation: float, repetitions: int) -> Rates:
    """Simulate between_norms over six cells. Each has five of ten norms, and no two cells have the same five."""
    generator = np.random.default_rng(0)
    truth = 6 / np.pi * np.arcsin(correlation / 2)
    covered, rejected = [], []
    for seed in range(repetitions):
        values = norm_values(generator, 10, 6, correlation)
        for cell in range(6):
            values[cell, [norm for norm in range(10) if (norm - cell) % 10 >= 5]] = np.nan
        found = between_norms(points(values), resamples=300, permutations=299, seed=seed)
        covered.append(found.low <= truth <= found.high)
        rejected.append(found.p < 0.05)
    return rates(covered, rejected)


def within(groups: int, size: int, slope: float, repetitions: int, cells: int = 1) -> Rates:
    """Simulate within_norms: y = slope · x + noise among `size` runs of each of `groups` norms, whose means differ."""
    generator = np.random.default_rng(0)
    covered, rejected, values = [], [], []
    for seed in range(repetitions):
        x = generator.normal(size=(groups, cells, size))
        y = slope * x + np.sqrt(1 - slope**2) * generator.normal(size=(groups, cells, size))
        x, y = (each + 5 * generator.normal(size=(groups, cells, 1)) for each in (x, y))
        places = np.ndindex(groups, cells, size)
        rows = [(f"norm {g}", f"cell {c}", str(i), x[g, c, i], y[g, c, i]) for g, c, i in places]
        study = pd.DataFrame(rows, columns=["norm", "cell", "entity", "x", "y"])
        found = within_norms(study, True, resamples=300, permutations=299, seed=seed)
        values.append(found)
        rejected.append(found.p < 0.05)
    truth = np.mean([found.value for found in values])  # of samples of this size
    covered = [found.low <= truth <= found.high for found in values]
    return rates(covered, rejected)


def study_of(accuracies: dict[str, np.ndarray]) -> pd.DataFrame:
    """Return a tidy table of runs, {norm: accuracies (cells, seeds)}."""
    rows = [
        {"Model": "VGG", "Dataset": "CIFAR-10", "Batch Size": 2**cell, "Norm": norm, "Mom & WD": "True", "seed": seed}
        | {"SkipInit": "False", "Success": "True", "Train Accuracy": 90.0, "Test Accuracy": values[cell, seed]}
        for norm, values in accuracies.items()
        for cell in range(len(values))
        for seed in range(values.shape[1])
    ]
    return tidy_table(pd.DataFrame(rows))


NAMES = ("BatchNorm", "LayerNorm", "InstanceNorm", "EvoNormBO", "Plain", "RMSNorm", "VarianceNorm", "EvoNormSO")


def ranking(seeds: int, cells: int, ratio: float, repetitions: int, of_cells: float = 0.0) -> dict[str, Rates]:
    """Simulate rankings of 8 norms, half a point apart, the first of which has `ratio` times the s.d. of the others.

    of_cells: s.d. of a norm's differences between cells. Return the coverage of the advantage and of the rank of the
    first norm and of the others, and of the difference to it; "ranks" is that of all norms' ranks.
    """
    generator = np.random.default_rng(0)
    truth = 70 - 0.5 * np.arange(len(NAMES))
    spread = np.where(np.arange(len(NAMES)) == 0, ratio, 1.0)
    covered: dict[str, list[bool]] = {"first": [], "others": [], "ranks": [], "difference": []}
    for _ in range(repetitions):
        runs = {}
        for index, name in enumerate(NAMES):
            own = of_cells * generator.normal(size=(cells, 1))
            runs[name] = truth[index] + own + spread[index] * generator.normal(size=(cells, seeds))
        table = study_of(runs)
        ranks = rank_labels(table).set_index("Norm")
        for index, name in enumerate(NAMES):
            row = ranks.loc[name]
            covered["others" if index else "first"].append(row["low"] <= truth[index] - truth.mean() <= row["high"])
            covered["ranks"].append(row["rank_low"] <= index + 1 <= row["rank_high"])
        found = differences_to(table, NAMES[0]).set_index("norm").loc[NAMES[1]]
        covered["difference"].append(found["low"] <= -0.5 <= found["high"])
    return {name: rates(found, []) for name, found in covered.items()}


def effect(norms: int, repetitions: int) -> Rates:
    """Simulate the effect of a hyperparameter, 1 point on average, with a s.d. of 1 over norms."""
    generator = np.random.default_rng(0)
    covered = []
    for _ in range(repetitions):
        size = 1 + generator.normal(size=norms)
        means = 70 + generator.normal(size=norms)
        runs = {
            NAMES[index]: np.array([[means[index]], [means[index] + size[index]]]) + 0.5 * generator.normal(size=(2, 3))
            for index in range(norms)
        }
        [found] = setting_effects(study_of(runs), "Test Accuracy")
        covered.append(found.low <= 1 <= found.high)
    return rates(covered, [])


def comparison(norms: int, cells: int, repetitions: int) -> Rates:
    """Simulate compare_between: two measures that are equally strong."""
    generator = np.random.default_rng(0)
    covered = []
    covariance = [[1, 0.3, 0.6], [0.3, 1, 0.6], [0.6, 0.6, 1]]
    for seed in range(repetitions):
        shared = generator.multivariate_normal([0, 0, 0], covariance, norms)
        own = generator.multivariate_normal([0, 0, 0], covariance, (cells, norms))
        values = np.sqrt(0.8) * shared + np.sqrt(0.2) * own
        rows = [(f"n{n}", f"c{c}", *values[c, n]) for c in range(cells) for n in range(norms)]
        study = pd.DataFrame(rows, columns=["norm", "cell", "x", "rival", "y"])
        found = compare_between(study, resamples=300, seed=seed)
        covered.append(found.low <= 0 <= found.high)
    return rates(covered, [])


def main(repetitions: int) -> None:
    """Print the table of docs/report.md."""
    many = {0: 10}
    for words, found in (
        ("9 norms, 1 cell, ρ = 0", between(9, 1, 0, repetitions)),
        ("9 norms, 24 cells, ρ = 0", between(9, 24, 0, repetitions)),
        ("9 norms, 24 cells, ρ = 0, one norm with 10 groupings", between(9, 24, 0, repetitions, many)),
        ("9 norms, 1 cell, ρ = 0.9", between(9, 1, 0.9, repetitions)),
        ("14 norms, 1 cell, ρ = 0.6", between(14, 1, 0.6, repetitions)),
        ("9 norms, 24 cells, ρ = 0.6", between(9, 24, 0.6, repetitions)),
        ("8 norms × 5 seeds, no slope", within(8, 5, 0, repetitions)),
        ("8 norms × 5 seeds, slope 0.7", within(8, 5, 0.7, repetitions)),
        ("6 norms × 3 cells × 5 seeds, no slope", within(6, 5, 0, repetitions, 3)),
        ("6 norms × 3 cells × 5 seeds, slope 0.5", within(6, 5, 0.5, repetitions, 3)),
        ("6 cells with 5 of 10 norms each, ρ = 0", rotating(0, repetitions)),
        ("6 cells with 5 of 10 norms each, ρ = 0.8", rotating(0.8, repetitions)),
    ):
        print(f"| {words} | {100 * found.coverage:.0f} % | {100 * found.rejected:.0f} % |")
    for seeds, cells, ratio, of_cells in (
        (2, 1, 1, 0),
        (3, 1, 1, 0),
        (5, 1, 1, 0),
        (3, 1, 4, 0),
        (5, 1, 4, 0),
        (1, 8, 4, 1),
    ):
        ranks = ranking(seeds, cells, ratio, repetitions, of_cells)
        print(
            f"| {seeds} seeds, {cells} cells, s.d. ratio {ratio} |",
            *(f"{name} {100 * part.coverage:.0f} %" for name, part in ranks.items()),
        )
    print("| effect, 8 norms |", effect(8, repetitions))
    print("| difference of two coefficients, 9 norms, 24 cells |", comparison(9, 24, repetitions))
    print("| difference of two coefficients, 14 norms, 1 cell |", comparison(14, 1, repetitions))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 300)

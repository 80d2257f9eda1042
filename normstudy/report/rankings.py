"""Rankings of norms at equal settings and at each norm's best learning rate, with t-intervals.

A cell is a set of runs with equal hyperparameters (all but norm, grouping and seed). A setting is a norm with its
grouping in a cell, with one run per seed.
"""

import math
from typing import NamedTuple

import numpy as np
import pandas as pd
from scipy import stats

from config import ARCHS
from normstudy.report.orders import in_order
from normstudy.report.primary import OUTCOME
from normstudy.report.tables import CELL, axes_of, hyperparameters, setting_keys
from normstudy.report.tuning import is_late, ways_to_compare

COLUMNS = ["network", "norm", "at", "n", "failed", "mean", "advantage", "low", "high", "rank_low", "rank_high"]
LEAST_CELLS = 5  # from this number on, an interval shows the variation over cells, else that over seeds alone
LEVEL = 0.95


class SettingEffect(NamedTuple):
    """The mean difference of an outcome between two settings (second minus first), over n groups of runs."""

    axis: str
    value: float
    low: float
    high: float
    n: int
    settings: list[str]


class Contrast(NamedTuple):
    """An estimate with its standard error and degrees of freedom; both are NaN if they cannot be estimated.

    A standard error of 0 counts as unknown: a few runs that happen to agree are no certainty.
    """

    value: float
    error: float
    freedom: float

    def interval(self, level: float = LEVEL) -> tuple[float, float]:
        """Return the t-interval, or NaN."""
        if not (self.freedom > 0 and self.error > 1e-9):
            return math.nan, math.nan
        half = stats.t.ppf((1 + level) / 2, self.freedom) * self.error
        return self.value - half, self.value + half


def summarize_cells(table: pd.DataFrame) -> pd.DataFrame:
    """Compute mean, s.d. and n of each outcome for each norm (and grouping) in each cell, and count the failed runs.

    If runs did not reach their training loss, they are counted as "late", and are in no mean.
    The columns that define a cell are those of CELL and all other hyperparameters that differ within the table.
    "Test Accuracy image error" is the standard error of a test accuracy due to the choice of test images, in points.
    """
    keys = ["Label", *dict.fromkeys([*CELL, *hyperparameters(table)])]
    outcomes = ["Test Accuracy", "Train Accuracy", "Gen. Ratio"]
    late = is_late(table) & ~table["has_failed"]
    texts = {name: table[name].astype(str) for name in keys[1:]}
    shown = {name: table[name].where(~late) for name in outcomes}
    groups = table.assign(**texts, **shown, late=late).groupby(keys, sort=True)
    counts = pd.DataFrame({"n": groups.size(), "failed": groups["has_failed"].sum()})
    if late.any():
        counts["late"] = groups["late"].sum()
    parts = [counts]
    for name in outcomes:
        parts.append(groups[name].agg(["mean", "std"]).rename(columns={"mean": f"{name} mean", "std": f"{name} s.d."}))
    if "test_samples" in table:
        share = parts[1]["Test Accuracy mean"] / 100
        images = groups["test_samples"].agg(lambda values: pd.to_numeric(values, errors="coerce").min())
        parts.insert(2, (100 * np.sqrt(share * (1 - share) / images)).rename("Test Accuracy image error").to_frame())
    return pd.concat(parts, axis=1).reset_index()


def rank_norms(table: pd.DataFrame) -> pd.DataFrame:
    """Rank the norms of each network by test accuracy; return a frame with COLUMNS, best first.

    At "equal settings", norms are compared within cells. At the "best rate", each norm is taken at the learning rate
    with the highest validation accuracy, and cells do not distinguish rates; these rows come first, and exist if rates
    were tuned. See ways_to_compare for the runs that are left out.

    `advantage` is the mean over cells of a norm's mean minus the mean of the norms' means in the cell. A norm's mean in
    a cell is the mean over its settings. Cells with one norm are left out. low and high are the t-interval of the
    advantage, rank_low and rank_high those ranks that pairwise comparisons with all other norms at the level
    1 − 0.05/(norms − 1) leave open, which holds for each norm (Bonferroni). See Cells for the errors. `n`
    and `failed` count runs.
    """
    parts = []
    for network in in_order(table["Model"], ARCHS):
        for at, runs in ways_to_compare(table[table["Model"] == network]):
            parts.append(rank_labels(runs, "Norm").assign(network=network, at=at))
    parts = [part for part in parts if len(part)]
    if not parts:
        return pd.DataFrame(columns=COLUMNS)
    return pd.concat(parts, ignore_index=True).rename(columns={"Norm": "norm"})[COLUMNS]


def rank_labels(table: pd.DataFrame, label: str = "Norm") -> pd.DataFrame:
    """Rank the norms, or other labels, of one set of runs; see rank_norms."""
    names = [label, "n", "failed", "mean", "advantage", "low", "high", "rank_low", "rank_high"]
    data = Cells.of(table, label)
    if data is None:
        return pd.DataFrame(columns=names)
    count = len(data.labels)
    contrasts = [data.advantage(index) for index in range(count)]
    rows = []
    for index, name in enumerate(data.labels):
        own = data.usable[data.usable[label] == name]
        low, high = contrasts[index].interval() if data.has_interval(index) else (math.nan, math.nan)
        rank_low = rank_high = math.nan
        if not math.isnan(low):
            level = 1 - (1 - LEVEL) / max(1, count - 1)
            others = [data.difference(other, index).interval(level) for other in range(count) if other != index]
            rank_low = 1 + sum(bounds[0] > 0 for bounds in others)
            rank_high = count - sum(bounds[1] < 0 for bounds in others)
        failed = int(table.loc[table[label] == name, "has_failed"].sum())
        value = round(contrasts[index].value, 9)
        bounds = round(low, 9), round(high, 9)
        rows.append((name, len(own), failed, own[OUTCOME].mean(), value, *bounds, rank_low, rank_high))
    return pd.DataFrame(rows, columns=names).sort_values("advantage", ascending=False, ignore_index=True)


class Cells:
    """The means of labels in cells, and the variances of their runs.

    means: (cells, labels), NaN where a label has no run. variances: how much each of these means varies with the seed,
    from the label's own variance of runs, pooled over its settings. A label whose settings have one run each gets the
    variance pooled over all labels, for comparisons with others; has_own_variance is False for it. freedoms: (labels,)
    of these variances.
    """

    def __init__(self, usable: pd.DataFrame, label: str) -> None:
        self.usable = usable
        usable = usable.assign(setting=usable["Label"])
        settings = usable.groupby(["cell", label, "setting"])[OUTCOME].agg(["mean", "size", "var"]).reset_index()
        settings["squares"] = settings["var"].fillna(0) * (settings["size"] - 1)
        by_label = settings.groupby(label)
        freedom = by_label["size"].sum() - by_label.size()
        pooled = by_label["squares"].sum().sum() / freedom.sum() if freedom.sum() else np.nan
        variance = (by_label["squares"].sum() / freedom.where(freedom > 0)).fillna(pooled)
        settings["of_mean"] = settings[label].map(variance) / settings["size"]
        grouped = settings.groupby(["cell", label])
        means = grouped["mean"].mean().unstack()
        self.labels = list(means.columns)
        self.means = means.to_numpy(float)
        self.variances = (grouped["of_mean"].sum(min_count=1) / grouped.size() ** 2).unstack().to_numpy(float)
        self.has_own_variance = (freedom > 0).reindex(self.labels).to_numpy()
        self.freedoms = freedom.where(freedom > 0, freedom.sum()).reindex(self.labels).to_numpy(float)

    @classmethod
    def of(cls, table: pd.DataFrame, label: str) -> "Cells | None":
        """Return the cells with at least two labels, or all if there is none; None without a usable run."""
        usable = table[~table["has_failed"] & table[OUTCOME].notna() & table[label].notna()]
        usable = usable.assign(cell=setting_keys(usable, hyperparameters(table)))
        is_shared = usable.groupby("cell")[label].transform("nunique") > 1
        usable = usable[is_shared] if is_shared.any() else usable
        return None if usable.empty else cls(usable, label)

    def has_interval(self, index: int) -> bool:
        """Return whether a label has an interval of its own: from five cells, or from several runs of a setting."""
        return bool(self.has_own_variance[index]) or int(np.isfinite(self.means[:, index]).sum()) >= LEAST_CELLS

    def advantage(self, index: int) -> Contrast:
        """Return the mean over cells of a label's mean minus the mean of all labels in the cell."""
        own = np.isfinite(self.means[:, index])
        there = np.isfinite(self.means[own]).astype(float)
        weights = -there / there.sum(1, keepdims=True)
        weights[:, index] += 1
        return self._contrast(self.means[own], weights, own)

    def difference(self, first: int, second: int) -> Contrast:
        """Return the mean over common cells of the difference of two labels; all NaN without a common cell."""
        both = np.isfinite(self.means[:, [first, second]]).all(1)
        weights = np.zeros((both.sum(), len(self.labels)))
        weights[:, first], weights[:, second] = 1, -1
        return self._contrast(self.means[both], weights, both) if both.any() else Contrast(*[math.nan] * 3)

    def _contrast(self, means: np.ndarray, weights: np.ndarray, cells: np.ndarray) -> Contrast:
        """Return the mean over cells of Σ weights · means.

        With LEAST_CELLS or more cells, its error is that of the cells' values, which vary with seeds and with cells.
        With fewer, it is that of seeds alone, for these cells (Welch 1947): every label has its own variance, so that a
        label with a larger one is not given too narrow an interval. Satterthwaite's degrees of freedom (1946) are too
        many for two or three seeds; their geometric mean with those of the largest part holds (see docs/report.md).
        """
        values = (weights * np.nan_to_num(means)).sum(1)
        n = len(values)
        if n >= LEAST_CELLS:
            return Contrast(values.mean(), values.std(ddof=1) / math.sqrt(n), n - 1)
        used = weights != 0
        parts = np.where(used, weights**2 * self.variances[cells], 0).sum(0) / n**2  # of each label
        variance = parts.sum()
        if not np.isfinite(variance) or not used.any():
            return Contrast(values.mean(), math.nan, math.nan)
        if variance == 0:
            return Contrast(values.mean(), 0.0, math.nan)
        satterthwaite = variance**2 / (parts[parts > 0] ** 2 / self.freedoms[parts > 0]).sum()
        freedom = math.sqrt(satterthwaite * self.freedoms[parts.argmax()])
        return Contrast(values.mean(), math.sqrt(variance), freedom)


def setting_effects(table: pd.DataFrame, outcome: str) -> list[SettingEffect]:
    """Compute how an outcome differs between the two settings of each axis of axes_of that has two.

    A difference is that of the means within a group of runs that are equal in norm, grouping and all other
    hyperparameters; the differences of a norm's groups are averaged first, because they are not independent. The
    interval is a t-interval over norms. Axes with fewer than LEAST_CELLS norms, or without an interval, are left out.
    """
    usable = table[~table["has_failed"] & table[outcome].notna()]
    found = []
    for axis, columns in axes_of(usable).items():
        values = setting_keys(usable, columns[:1])
        others = ["Label", *(name for name in hyperparameters(usable) if name not in columns)]
        means = usable.groupby([usable["Norm"], setting_keys(usable, others), values])[outcome].mean().unstack()
        settings = sorted(means.columns, key=_as_number)
        if len(settings) != 2:
            continue
        differences = (means[settings[1]] - means[settings[0]]).dropna()
        by_norm = differences.groupby(level=0).mean()
        n = len(by_norm)
        if n >= LEAST_CELLS:
            contrast = Contrast(by_norm.mean(), by_norm.std(ddof=1) / math.sqrt(n), n - 1)
            low, high = contrast.interval()
            if not math.isnan(low):
                found.append(SettingEffect(axis, contrast.value, low, high, len(differences), settings))
    return found


def _as_number(text: str) -> tuple[float, str]:
    try:
        return float(text), text
    except ValueError:
        return math.inf, text

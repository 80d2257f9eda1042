"""What a table of runs says: what its columns are, what a cell is, and which measure goes with which outcome.

Tables are pandas frames with the columns of results.csv; scipy gives the coefficients, resampling their intervals.
"""

import csv
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from scipy import stats

from config import ARCHS, GROUPED_NORMS, NORM_TYPES
from errors import RunError
from flags import canonical_name

OUTCOMES = {
    "Test Accuracy": "test accuracy (%)",
    "Train Accuracy": "train accuracy (%)",
    "Gen. Ratio": "generalization ratio (test / train accuracy)",
    "Gap": "gap (train − test accuracy, points)",
}
MEASURES = {
    "Trace": "Hessian trace",
    "Eigen Mean": "mean eigenvalue",
    "Eigen Variance": "variance of eigenvalues",
    "Max Eigen": "largest eigenvalue",
    "Class Similarity": "class similarity",
    "class_similarity_pooled": "class similarity, pooled features",
    "class_similarity_centred": "class similarity, centred",
    "within_over_between": "within- / between-class variance",
}
COEFFICIENTS = ("Pearson", "Spearman", "Kendall")
CELL = ["Model", "Dataset", "Batch Size", "Mom & WD"]
# What else can differ between runs; the norm and its grouping are what is compared.
HYPERPARAMETERS = [*CELL, "SkipInit", "epochs", "conv_type", "cfg", "preact", "image_size", "patch_size", "init_lr"]
HYPERPARAMETERS += [
    "lr_warmup",
    "momentum",
    "weight_decay",
    "precision",
    "val_fraction",
    "train_samples",
    "batch_shares",
]
REQUIRED = ["Model", "Norm", "Dataset", "Batch Size", "Test Accuracy"]
LEAST = 5  # points of a correlation
RESAMPLES = 1000
MOST_PAIRWISE = 3000  # runs of which Kendall's interval is made from all pairs


def read_tables(paths):
    """The runs of several tables, stacked, as one frame: see tidy. Raises RunError for what is no table of runs."""
    frames = []
    for path in map(Path, paths):
        try:
            frame = pd.read_csv(path, dtype=str, keep_default_na=False, quoting=csv.QUOTE_MINIMAL)
        except (OSError, UnicodeDecodeError, pd.errors.ParserError, pd.errors.EmptyDataError) as error:
            reason = getattr(error, "strerror", None) or (str(error).splitlines() or [""])[0]
            raise RunError(f"{path} cannot be read as a table: {reason}") from None
        missing = [name for name in REQUIRED if name not in frame.columns]
        if missing:
            raise RunError(f"{path} has no column {missing[0]!r}: is it a table of runs?")
        frames.append(frame.assign(table=str(path)))
    return without_copies(tidy(pd.concat(frames, ignore_index=True)))


def without_copies(table):
    """The runs, each once: of those that agree in everything but measurements, to the last digit of the seconds that
    they took, the one with most measures. What is left out is said on stderr."""
    if "seconds" not in table or "run" not in table:
        return table
    same = {*REQUIRED, *HYPERPARAMETERS, "P Grouping", "seed", "data", "seconds", "test_loss", "train_loss"}
    same = [name for name in table if name in same]
    is_timed = pd.to_numeric(table["seconds"], errors="coerce").notna()
    measured = table[list(MEASURES)].notna().sum(axis=1).sort_values(ascending=False, kind="stable").index
    is_copy = table.loc[measured, same].duplicated().sort_index() & is_timed
    for row in table[is_copy].to_dict("records"):
        print(f"left out: {row['run']} of {row['table']} is the copy of another run", file=sys.stderr)
    return table[~is_copy].reset_index(drop=True)


def tidy(table):
    """The frame with today's spellings, numbers as numbers, and Norm and Grouping that say what differs.

    Grouping is P Grouping where the norm takes it, else NaN; Label is the norm with it; Gap is train − test
    accuracy; has_failed says which runs ended without a finite result.
    """
    table = table.copy()
    names = (*MEASURES, *OUTCOMES, "P Grouping", "Batch Size", "seed")
    for name in names:
        table[name] = pd.to_numeric(table[name], errors="coerce") if name in table else np.nan
        table.loc[~np.isfinite(table[name].astype(float)), name] = np.nan
    for name in ("Mom & WD", "SkipInit", "Success"):
        words = table[name].astype(str).str.lower() if name in table else pd.Series("", index=table.index)
        table[name] = words.map({"true": True, "false": False})
    table["Model"] = [_spelled(name, ARCHS) for name in table["Model"]]
    table["Norm"] = [_spelled(name, NORM_TYPES) for name in table["Norm"]]
    table["Grouping"] = table["P Grouping"].where(table["Norm"].isin(GROUPED_NORMS))
    grouped = [f"{norm} p={p:g}" if p == p else norm for norm, p in zip(table["Norm"], table["Grouping"], strict=True)]
    table["Label"] = grouped
    table["Gap"] = table["Train Accuracy"] - table["Test Accuracy"]
    ratio = table["Test Accuracy"] / table["Train Accuracy"].where(table["Train Accuracy"] > 0)
    table["Gen. Ratio"] = table["Gen. Ratio"].where(table["Gen. Ratio"].notna(), ratio)
    table["has_failed"] = (table["Success"] == False) | table["Test Accuracy"].isna()  # noqa: E712 - of three values
    return table


def _spelled(name, choices):
    try:
        return canonical_name(str(name), choices)
    except ValueError:
        return str(name)


def hyperparameters(table):
    """The columns, beside the norm and its grouping, in which the runs differ."""
    there = [name for name in HYPERPARAMETERS if name in table and table[name].astype(str).nunique() > 1]
    return there


def combinations(table, names):
    """For each run, its settings of these columns, as one text."""
    texts = ["|".join(map(str, values)) for values in table[names].astype(str).to_numpy()]
    return pd.Series(texts, index=table.index, dtype=str)


def largest_cells(table, within, label="Norm"):
    """Of the runs that are equal in the columns `within`, those of the combination of all other hyperparameters that
    has the most norms (or other labels), and of these the most runs: what can be averaged and compared."""
    table = table[table[label].notna()]
    axes = [name for name in hyperparameters(table) if name not in within]
    kept = []
    for _, runs in table.groupby(combinations(table, within), sort=False):
        groups = [group for _, group in runs.groupby(combinations(runs, axes))] if axes else [runs]
        kept += list(max(groups, key=lambda group: (group[label].nunique(), len(group))).index)
    return table.loc[sorted(kept)]


def in_largest_cells(pairs, label="Norm"):
    """Those of [(row, anything)] that lie in the largest cell of their network."""
    if not pairs:
        return []
    return [pairs[index] for index in largest_cells(pd.DataFrame([row for row, _ in pairs]), ["Model"], label).index]


# What predicts an outcome


def over_seeds(table):
    """Each setting once: the runs that did not fail, averaged over those that are equal in norm, grouping and all
    hyperparameters, which differ in their seeds alone.

    What goes with what over norms is said of settings: runs of one setting are no independent witnesses of it.
    """
    usable = table[~table["has_failed"]]
    settings = combinations(usable, ["Label", *hyperparameters(table)])
    is_number = {name: pd.api.types.is_numeric_dtype(usable[name]) and usable[name].dtype != bool for name in usable}
    how = {name: "mean" if is_number[name] else "first" for name in usable}
    return usable.groupby(settings, sort=False).agg(how).reset_index(drop=True)


def coefficients(x, y):
    """{"Pearson", "Spearman", "Kendall": (value, p)} by scipy; NaN for fewer than LEAST points or a constant."""
    if len(x) < LEAST or np.ptp(x) == 0 or np.ptp(y) == 0:
        return dict.fromkeys(COEFFICIENTS, (np.nan, np.nan))
    functions = {"Pearson": stats.pearsonr, "Spearman": stats.spearmanr, "Kendall": stats.kendalltau}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return {name: tuple(map(float, function(x, y)))[:2] for name, function in functions.items()}


def resampled(x, y, counts):
    """{coefficient: (B,)} of resamples in which each of n points stands counts (B, n) times; Kendall's is τ-b.

    The same as repeating the points; ranks and pairs are weighted instead.
    """
    counts = counts.astype(float)
    found = {
        "Pearson": _weighted_pearson(x[None], y[None], counts),
        "Spearman": _weighted_pearson(_weighted_ranks(x, counts), _weighted_ranks(y, counts), counts),
    }
    if len(x) <= MOST_PAIRWISE:
        signs = [np.sign(values[:, None] - values[None]).astype(np.float32) for values in (x, y)]
        weights = counts.astype(np.float32)
        agreement, untied_x, untied_y = (
            ((weights @ matrix) * weights).sum(1, dtype=float)
            for matrix in (signs[0] * signs[1], np.abs(signs[0]), np.abs(signs[1]))
        )
        with np.errstate(divide="ignore", invalid="ignore"):
            found["Kendall"] = agreement / np.sqrt(untied_x * untied_y)
    else:
        found["Kendall"] = np.full(len(counts), np.nan)
    return found


def _weighted_pearson(x, y, counts):
    total = counts.sum(1, keepdims=True)
    x = x - (x * counts).sum(1, keepdims=True) / total
    y = y - (y * counts).sum(1, keepdims=True) / total
    covariance, x_variance, y_variance = ((counts * product).sum(1) for product in (x * y, x * x, y * y))
    with np.errstate(divide="ignore", invalid="ignore"):
        return covariance / np.sqrt(x_variance * y_variance)


def _weighted_ranks(values, counts):
    """The mean rank of each value among repeated ones: (B, n)."""
    distinct, place = np.unique(values, return_inverse=True)
    per_value = np.zeros((len(counts), len(distinct)))
    for index in range(len(distinct)):
        per_value[:, index] = counts[:, place == index].sum(1)
    below = np.cumsum(per_value, axis=1) - per_value
    return (below + (per_value + 1) / 2)[:, place]


@dataclass(frozen=True)
class Correlation:
    """One coefficient of a measure and an outcome; NaN where there are too few points. p is adjusted by Holm."""

    measure: str
    outcome: str
    way: str
    coefficient: str
    value: float
    low: float
    high: float
    n: int
    p: float
    p_holm: float = np.nan


def correlations(table, measures=MEASURES, outcomes=OUTCOMES, resamples=RESAMPLES, seed=0):
    """Every measure against every outcome, pooled and within cells, as a frame of Correlation's fields.

    A row is a point; where each is to be a setting, over_seeds gives the table. pooled: all rows. within cells: the
    mean, weighted by rows, of the coefficients in each cell of equal hyperparameters (all but norm, grouping and seed)
    that has LEAST rows. low and high are the 95 % interval of resampling rows (within their cells). p is that of
    independence, two-sided (pooled: scipy's; within cells: normal, with each cell's variance under independence);
    p_holm is adjusted over all measures and outcomes of a way and coefficient (Holm 1979).
    """
    usable = table[~table["has_failed"]]
    axes = hyperparameters(table)
    cells = combinations(usable, axes)
    generator = np.random.default_rng(seed)
    found = []
    for measure in measures:
        for outcome in outcomes:
            pair = usable[[measure, outcome]].dropna()
            x, y = pair[measure].to_numpy(float), pair[outcome].to_numpy(float)
            found += _pooled(measure, outcome, x, y, resamples, generator)
            found += _within(measure, outcome, x, y, cells[pair.index].to_numpy(), resamples, generator)
    frame = pd.DataFrame(found, columns=list(Correlation.__dataclass_fields__))
    for _, family in frame.groupby(["way", "coefficient"]):
        frame.loc[family.index, "p_holm"] = holm(family["p"].to_numpy())
    return frame


def resample_counts(generator, n, resamples):
    """(resamples, n): how often each of n things is drawn in n draws with replacement."""
    return generator.multinomial(n, np.full(n, 1 / n), size=resamples)


def _interval(samples):
    samples = samples[np.isfinite(samples)]
    return tuple(np.quantile(samples, [0.025, 0.975])) if len(samples) >= 100 else (np.nan, np.nan)


def _pooled(measure, outcome, x, y, resamples, generator):
    values = coefficients(x, y)
    has_value = np.isfinite(values["Pearson"][0])
    samples = resampled(x, y, resample_counts(generator, len(x), resamples)) if has_value else {}
    for name, (value, p) in values.items():
        low, high = _interval(samples[name]) if has_value else (np.nan, np.nan)
        yield Correlation(measure, outcome, "pooled", name, value, low, high, len(x), p)


def _within(measure, outcome, x, y, cells, resamples, generator):
    parts = [np.flatnonzero(cells == cell) for cell in np.unique(cells)]
    parts = [part for part in parts if np.isfinite(coefficients(x[part], y[part])["Pearson"][0])]
    n = sum(map(len, parts))
    values, variances = (dict.fromkeys(COEFFICIENTS, 0.0) for _ in range(2))
    samples = {name: np.zeros(resamples) for name in COEFFICIENTS}
    for part in parts:
        size, weight = len(part), len(part) / n
        drawn = resampled(x[part], y[part], resample_counts(generator, size, resamples))
        for name, (value, _) in coefficients(x[part], y[part]).items():
            variance = 2 * (2 * size + 5) / (9 * size * (size - 1)) if name == "Kendall" else 1 / (size - 1)
            values[name] += weight * value
            variances[name] += weight**2 * variance
            samples[name] += weight * np.nan_to_num(drawn[name], nan=value)
    for name in COEFFICIENTS:
        if not parts:
            yield Correlation(measure, outcome, "within cells", name, np.nan, np.nan, np.nan, 0, np.nan)
            continue
        low, high = _interval(samples[name])
        p = 2 * stats.norm.sf(abs(values[name]) / np.sqrt(variances[name]))
        yield Correlation(measure, outcome, "within cells", name, values[name], low, high, n, float(p))


def holm(p):
    """p values adjusted for their number (Holm 1979); NaN stays, and is not counted."""
    p = np.asarray(p, float)
    adjusted = np.full(len(p), np.nan)
    order = [index for index in np.argsort(p) if np.isfinite(p[index])]
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p[index]))
        adjusted[index] = largest
    return adjusted


def alike(table):
    """{hyperparameter: [(positions of runs, their settings)]}: groups of runs that differ in it alone."""
    axes = ["Label", *hyperparameters(table)]
    found = {}
    for axis in axes:
        keys = combinations(table, [name for name in axes if name != axis]).to_numpy()
        settings = table[axis].astype(str).to_numpy()
        _, inverse, sizes = np.unique(keys, return_inverse=True, return_counts=True)
        groups = np.split(np.argsort(inverse, kind="stable"), np.cumsum(sizes)[:-1])
        found[axis] = [(group, settings[group]) for group in groups if len(set(settings[group])) > 1]
    return found


def granulated(table, measure, outcome, resamples=RESAMPLES, seed=0, groups=None):
    """Ψ of Jiang et al. 2020, section 3: ({hyperparameter: (ψ, groups of runs)}, Ψ, low, high).

    ψ of a hyperparameter is the mean, over groups of runs that differ in it alone, of the sign agreement of measure
    and outcome over the group's pairs (ties count 0); a hyperparameter with fewer than LEAST groups has none, for one
    pair would weigh as much as all others. Ψ is the mean of all ψ, with the 95 % interval of resampling groups. The
    smallest and largest ψ are its worst cases (after Dziugaite et al. 2020). `groups` are alike(table) of the runs that
    did not fail, where they are known already.
    """
    usable = table[~table["has_failed"]]
    x, y = usable[measure].to_numpy(float), usable[outcome].to_numpy(float)
    is_there = np.isfinite(x) & np.isfinite(y)
    generator = np.random.default_rng(seed)
    found, samples = {}, []
    for axis, members in (groups or alike(usable)).items():
        taus = []
        for positions, settings in members:
            kept = is_there[positions]
            tau = sign_agreement(x[positions[kept]], y[positions[kept]], settings[kept])
            if np.isfinite(tau):
                taus.append(tau)
        if len(taus) >= LEAST:
            taus = np.array(taus)
            found[axis] = (float(taus.mean()), len(taus))
            samples.append(taus[generator.integers(0, len(taus), (resamples, len(taus)))].mean(1))
    if not found:
        return {}, np.nan, np.nan, np.nan
    low, high = np.quantile(np.mean(samples, axis=0), [0.025, 0.975])
    return found, float(np.mean([psi for psi, _ in found.values()])), float(low), float(high)


def granulated_table(table, measures=MEASURES, outcomes=OUTCOMES, resamples=RESAMPLES, seed=0):
    """granulated() of every measure and outcome: a frame with Ψ as value, its interval, worst cases, and every ψ with
    its number of groups."""
    rows, groups = [], alike(table[~table["has_failed"]])
    for measure in measures:
        for outcome in outcomes:
            found, value, low, high = granulated(table, measure, outcome, resamples, seed, groups)
            row = {"measure": measure, "outcome": outcome, "value": value, "low": low, "high": high}
            psis = {axis: psi for axis, (psi, _) in found.items()}
            row["lowest"] = min(psis, key=psis.get) if psis else ""
            row["highest"] = max(psis, key=psis.get) if psis else ""
            for axis, (psi, n) in found.items():
                row |= {f"ψ {axis}": psi, f"groups {axis}": n}
            rows.append(row)
    return pd.DataFrame(rows, columns=None if rows else ["measure", "outcome", "value", "low", "high"])


def sign_agreement(x, y, setting):
    """The mean of sign(xᵢ−xⱼ)·sign(yᵢ−yⱼ) over pairs whose setting differs; NaN where there is none."""
    signs = np.sign(x[:, None] - x) * np.sign(y[:, None] - y)
    pairs = setting[:, None] != setting
    return float(signs[pairs].mean()) if pairs.any() else np.nan

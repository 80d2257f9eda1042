"""The associations of measures with outcomes: the primary analysis, and the exploratory one of everything else."""

from collections.abc import Iterable, Iterator

import numpy as np
import pandas as pd
from scipy import stats

from normstudy.report import primary
from normstudy.report.association import LEAST_BETWEEN, PERMUTATIONS, Association, between_norms, within_norms
from normstudy.report.resampling import RESAMPLES
from normstudy.report.tables import OUTCOMES, hyperparameters, setting_keys
from normstudy.report.tuning import RATES, in_time, of_tuning_seeds
from normstudy.storage import MEASURE_COLUMNS, OF_CLASS_SIMILARITY

BETWEEN, OVER_SETTINGS, OVER_SEEDS, POOLED = (
    "between norms",
    "within norms over settings",
    "within norms over seeds",
    "pooled over settings",
)
COLUMNS = ["measure", "outcome", "way", "coefficient", *Association._fields[:-1], "p", "p_holm", "family"]
FINDINGS = 3  # at most, on the first screen
FEW_PERMUTATIONS = 999  # of exploratory associations within norms


def correlate_measures(
    table: pd.DataFrame, measures: Iterable[str], resamples: int = RESAMPLES, seed: int = 0
) -> pd.DataFrame:
    """Associate every measure with every outcome; return a frame with COLUMNS. table: runs, not averaged over seeds.

    The ways are defined in docs/report.md; "pooled over settings" has neither interval nor p, since settings are not
    independent, and "within norms over settings" has none if rates vary, since a rate is the same one for all norms.
    Rates are compared by the runs of the seed that chose among them.

    family is "primary", "within norms" (the measures and the outcome of the primary analysis within norms), or
    "exploratory" (all others). p_holm adjusts p for the other rows of its family with the same way (Holm 1979).
    """
    included = primary.included_runs(table)
    everything = in_time(table[~table["has_failed"]])
    over_rates = in_time(of_tuning_seeds(table).loc[lambda runs: ~runs["has_failed"]])
    rows = []
    for measure in measures:
        for outcome in OUTCOMES:
            is_primary = measure in primary.MEASURES and outcome == primary.OUTCOME
            permutations = PERMUTATIONS if is_primary else FEW_PERMUTATIONS
            runs = included.runs, over_rates, everything
            for way, found in _ways(*runs, measure, outcome, resamples, permutations, seed):
                family = "primary" if way == BETWEEN else "within norms" if way != POOLED else "exploratory"
                family = family if is_primary else "exploratory"
                rows.append([measure, outcome, way, "Spearman", *found, np.nan, family])
    frame = pd.DataFrame(rows, columns=COLUMNS)
    for _, family in frame.groupby(["family", "way"]):
        frame.loc[family.index, "p_holm"] = holm_adjusted(family["p"].to_numpy(float))
    return frame


def _ways(
    included: pd.DataFrame,
    over_rates: pd.DataFrame,
    everything: pd.DataFrame,
    measure: str,
    outcome: str,
    resamples: int,
    permutations: int,
    seed: int,
) -> Iterator[tuple[str, Association]]:
    settings = points_of(included, measure, outcome)
    yield BETWEEN, between_norms(settings, resamples, PERMUTATIONS, seed)
    of_rates = points_of(over_rates, measure, outcome, ignored=RATES)
    over_settings = within_norms(of_rates, False, resamples, permutations, seed)
    if any(over_rates[name].astype(str).nunique() > 1 for name in RATES if name in over_rates):
        over_settings = over_settings._replace(low=np.nan, high=np.nan, p=np.nan)  # rates are common to all norms
    yield OVER_SETTINGS, over_settings
    runs = points_of(everything, measure, outcome, by_seed=True)
    yield OVER_SEEDS, within_norms(runs, True, resamples, permutations, seed)
    x, y = settings["x"].to_numpy(float), settings["y"].to_numpy(float)
    has_spread = len(x) > 2 and np.ptp(x) > 0 and np.ptp(y) > 0
    value = float(stats.spearmanr(x, y).statistic) if has_spread else np.nan
    counts = len(x), settings["norm"].nunique(), settings["cell"].nunique()
    yield POOLED, Association(value, np.nan, np.nan, *counts, np.nan)


def points_of(
    runs: pd.DataFrame,
    measure: str,
    outcome: str,
    ignored: Iterable[str] = (),
    by_seed: bool = False,
    equal: Iterable[str] = (),
) -> pd.DataFrame:
    """Return the points of an association, with the columns network, norm, cell, entity, x, y.

    A point is the mean over the seeds of a setting, or a run if `by_seed`. A cell is equal in all hyperparameters but
    those in `ignored`, in the samples and precision of the measurement, and in the columns `equal`. An entity is what
    differs within a norm and a cell: grouping and ignored hyperparameters, or the seed, which then belongs to a cell of
    its setting.
    """
    points = run_points(runs, measure, outcome, ignored, equal)
    if by_seed:
        points = points.assign(cell=points["cell"] + "|" + points["entity"])
        return points.assign(entity=points.groupby(["norm", "cell"]).cumcount().astype(str))
    return points.groupby(["network", "norm", "cell", "entity"], sort=False)[["x", "y"]].mean().reset_index()


def run_points(
    runs: pd.DataFrame, measure: str, outcome: str, ignored: Iterable[str] = (), equal: Iterable[str] = ()
) -> pd.DataFrame:
    """Return the runs that have a measure and an outcome, with the columns of points_of."""
    runs = runs[runs[measure].notna() & runs[outcome].notna()]
    ignored = [name for name in ignored if name in runs]
    names = [name for name in hyperparameters(runs) if name not in ignored]
    return pd.DataFrame(
        {
            "network": runs["Model"].astype(str),
            "norm": runs["Norm"].astype(str),
            "cell": setting_keys(runs, [*names, *conditions_of(runs, measure), *equal]),
            "entity": setting_keys(runs, ["Label", *ignored]),
            "x": runs[measure].astype(float),
            "y": runs[outcome].astype(float),
        }
    )


def runs_behind(runs: pd.DataFrame, measure: str, outcome: str) -> pd.DataFrame:
    """Return the runs that the coefficient between norms rests on, as run_points: those in cells of enough norms."""
    points = run_points(runs, measure, outcome)
    return points[points.groupby("cell")["norm"].transform("nunique") >= LEAST_BETWEEN]


def conditions_of(runs: pd.DataFrame, measure: str) -> list[str]:
    """Return the columns that say how a measure was measured, and that must be equal for values to compare."""
    kind = measure.partition(":")[0] if ":" in measure else None
    if kind is not None:
        names = [f"{kind}:num_samples", f"{kind}:dtype"]
    elif measure in ("Trace", "Eigen Mean", "Eigen Variance", "Max Eigen", "effective_dimension"):
        names = ["hessian_samples", "hessian_dtype"]
    elif measure == "Class Similarity" or measure in OF_CLASS_SIMILARITY:
        names = ["class_similarity_samples", "class_similarity_dtype"]
    elif measure in MEASURE_COLUMNS:
        names = ["measures_samples", "measures_dtype"]
    else:  # a layer statistic
        names = []
    return [name for name in names if name in runs]


def closest_measures(correlations: pd.DataFrame) -> list[str]:
    """Return the FINDINGS measures of the primary analysis with the smallest p between norms."""
    family = correlations[(correlations["family"] == "primary") & correlations["p"].notna()]
    return list(family.sort_values("p", kind="stable")["measure"].head(FINDINGS))


def select(frame: pd.DataFrame, measure: str, outcome: str, way: str | None = None) -> pd.DataFrame:
    """Return the rows of a frame of correlate_measures, or of granulated_table, for a measure, an outcome and a way."""
    is_chosen = (frame["measure"] == measure) & (frame["outcome"] == outcome)
    return frame[is_chosen & (frame["way"] == way)] if way is not None else frame[is_chosen]


def holm_adjusted(p: np.ndarray) -> np.ndarray:
    """Return p values (n,) adjusted for their number (Holm 1979); NaN stays NaN and is not counted."""
    adjusted = np.full(len(p), np.nan)
    order = [index for index in np.argsort(p) if np.isfinite(p[index])]
    largest = 0.0
    for place, index in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - place) * p[index]))
        adjusted[index] = largest
    return adjusted

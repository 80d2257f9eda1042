"""Tables of runs as pandas frames: columns, spellings, and cells (sets of runs with equal hyperparameters)."""

import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from config import ARCHS, GROUPED_NORMS, NORM_TYPES, canonical_norm
from normstudy.cli import RunError, UsageError, canonical_name
from normstudy.storage import MEASURE_COLUMNS, SETTING_COLUMNS, read_table

Row = dict[str, Any]  # one run: {column: value}
T = TypeVar("T")

OUTCOMES = {
    "Test Accuracy": "test accuracy (%)",
    "Train Accuracy": "train accuracy (%)",
    "Gen. Ratio": "generalization ratio (test / train accuracy)",
    "Gap": "gap (train − test accuracy, points)",
}
MEASURES = {  # scaled curvature first: unscaled curvature changes with weights that a norm makes irrelevant
    "hessian-element:trace": "Hessian trace, element-scaled",
    "hessian-element:max_eigen": "largest eigenvalue, element-scaled",
    "hessian-filter:trace": "Hessian trace, filter-scaled",
    "hessian-filter:max_eigen": "largest eigenvalue, filter-scaled",
    "Trace": "Hessian trace, unscaled",
    "Eigen Mean": "mean eigenvalue, unscaled",
    "Eigen Variance": "variance of eigenvalues, unscaled",
    "Max Eigen": "largest eigenvalue, unscaled",
    "Class Similarity": "class similarity",
    **{name: measure.title for name, measure in MEASURE_COLUMNS.items()},
}
CELL = ["Model", "Dataset", "Batch Size", "Mom & WD"]
# All columns in which settings can differ, without the norm and its grouping, which the report compares.
HYPERPARAMETERS = [
    *(*CELL, "SkipInit"),
    *(name for name in SETTING_COLUMNS if name != "seed"),
    *("val_fraction", "train_samples"),
]
NETWORKS_WITH = {"SkipInit": ("resnet-56",), "preact": ("resnet-56",), "cfg": ("vgg",), "patch_size": ("vit",)}
PARTS = {"Mom & WD": ("momentum", "weight_decay")}  # columns that are computed from others
SAME_AS_GROUPING = {
    "InstanceNorm": 1.0,
    "LayerNorm": 1e-7,
}  # the GroupNorm that builds the same network (see as_groupings)
REQUIRED = ["Model", "Norm", "Dataset", "Batch Size", "Test Accuracy"]
MIN_POINTS = 5  # minimum number of points for a coefficient, a test or a mean over groups
SIGNIFICANT = 0.05  # an effect with a smaller p value counts as significant


def read_tables(paths: Iterable[Path | str]) -> pd.DataFrame:
    """Read several tables of runs, stack them and tidy them; the column `table` holds the path of each run's table.

    Raises RunError if a file is not a table of runs, or if a number in it is not clear.
    """
    frames = []
    for path in {path.resolve(): path for path in map(Path, paths)}.values():
        table = read_table(path)
        frame = pd.DataFrame(table.rows, columns=table.header, dtype=str)
        missing = [name for name in REQUIRED if name not in frame.columns]
        if missing:
            raise RunError(f"{path} has no column {missing[0]!r}; give a table of runs such as results/results.csv")
        frames.append(frame.assign(table=str(path)))
    return _counted_once(_without_copies(tidy_table(pd.concat(frames, ignore_index=True))))


def filtered(table: pd.DataFrame, filters: Mapping[str, str]) -> pd.DataFrame:
    """Return the runs with these values, {column: value}; numbers are compared as numbers.

    Raises UsageError for an unknown column, or if no run is left.
    """
    by_name = {name.lower(): name for name in table}
    for name, value in filters.items():
        column = by_name.get(name.lower())
        if column is None:
            raise UsageError(f"--filter: the table has no column {name!r}")
        texts, numbers = table[column].astype(str), pd.to_numeric(table[column], errors="coerce")
        wanted = pd.to_numeric(pd.Series([value]), errors="coerce")[0]
        kept = table[(texts.str.lower() == value.lower()) | (numbers == wanted)]
        if kept.empty:
            known = ", ".join(sorted(map(str, texts.unique()))[:8])
            raise UsageError(f"--filter: no run has {column}={value} (there is {known})")
        table = kept
    return table.reset_index(drop=True)


def _counted_once(table: pd.DataFrame) -> pd.DataFrame:
    """Return each network once, and name on stderr the runs that are left out.

    Runs with equal settings, seed and images are the same network, also if they have two names (see canonical_norm).
    """
    if "run" not in table or "data" not in table:
        return table
    by_measures = table[list(MEASURES)].notna().sum(axis=1).sort_values(ascending=False, kind="stable").index
    names = [name for name in ("Label", *HYPERPARAMETERS, "seed", "data") if name in table]
    is_twin = table.loc[by_measures, names].astype(str).duplicated().sort_index() & table["seed"].notna()
    is_twin &= table["run"].map(table["run"].value_counts()) == 1
    for row in table[is_twin].to_dict("records"):
        print(f"counted once: {row['run']} is the same network as another run of {row['Label']}", file=sys.stderr)
    return table[~is_twin].reset_index(drop=True)


def _without_copies(table: pd.DataFrame) -> pd.DataFrame:
    """Return each run once; name the copies that are left out on stderr.

    Runs are copies if they agree in everything but the measurements, including every digit of their run time in
    seconds. The copy with the most measures is kept.
    """
    if "seconds" not in table or "run" not in table:
        return table
    compared = {*REQUIRED, *HYPERPARAMETERS, "P Grouping", "seed", "data", "seconds", "test_loss", "train_loss"}
    is_timed = pd.to_numeric(table["seconds"], errors="coerce").notna()
    by_measures = table[list(MEASURES)].notna().sum(axis=1).sort_values(ascending=False, kind="stable").index
    identity = table.loc[by_measures, [name for name in table if name in compared]]
    is_copy = identity.duplicated().sort_index() & is_timed
    for row in table[is_copy].to_dict("records"):
        print(f"left out: {row['run']} in {row['table']} is a copy of another run", file=sys.stderr)
    return table[~is_copy].reset_index(drop=True)


def tidy_table(table: pd.DataFrame) -> pd.DataFrame:
    """Return the frame with current spellings, numeric columns, and the columns Grouping, Label, Gap and has_failed.

    Grouping is P Grouping if the norm has groups, else NaN. Label is the norm with its grouping. Settings that build
    the same network have the same norm and grouping (see canonical_norm), and the settings of NETWORKS_WITH are empty
    for networks that do not have them. Gap is train accuracy minus test accuracy. has_failed marks the runs that ended
    without a finite result or have no test accuracy.
    """
    table = table.copy()
    for name in (*MEASURES, *OUTCOMES, "P Grouping", "Batch Size", "seed"):
        table[name] = pd.to_numeric(table[name], errors="coerce") if name in table else np.nan
        table.loc[~np.isfinite(table[name].astype(float)), name] = np.nan
    for name in ("Mom & WD", "SkipInit", "Success"):
        words = table[name].astype(str).str.lower() if name in table else pd.Series("", index=table.index)
        table[name] = words.map({"true": True, "false": False})
    table["Model"] = [_spelled(name, ARCHS) for name in table["Model"]]
    table["Norm"] = [_spelled(name, NORM_TYPES) for name in table["Norm"]]
    _make_canonical(table)
    table["Grouping"] = table["P Grouping"].where(table["Norm"].isin(GROUPED_NORMS))
    grouped = [f"{norm} p={p:g}" if p == p else norm for norm, p in zip(table["Norm"], table["Grouping"], strict=True)]
    table["Label"] = grouped
    table["Gap"] = table["Train Accuracy"] - table["Test Accuracy"]
    ratio = table["Test Accuracy"] / table["Train Accuracy"].where(table["Train Accuracy"] > 0)
    table["Gen. Ratio"] = table["Gen. Ratio"].where(table["Gen. Ratio"].notna(), ratio)
    table["has_failed"] = (table["Success"] == False) | table["Test Accuracy"].isna()  # noqa: E712 - of three values
    return table


def _make_canonical(table: pd.DataFrame) -> None:
    """Give settings that build the same network the same values."""
    for name, networks in NETWORKS_WITH.items():
        if name in table:
            is_without = table["Model"].isin(set(ARCHS) - set(networks))
            table[name] = table[name].astype(object).mask(is_without, False if name == "SkipInit" else "")
    pairs = table[["Model", "Norm", "P Grouping"]].to_numpy()
    is_known = table["Model"].isin(ARCHS) & table["Norm"].isin(GROUPED_NORMS) & table["P Grouping"].notna()
    found = [
        canonical_norm(model, norm, p) if known else (norm, p)
        for (model, norm, p), known in zip(pairs, is_known, strict=True)
    ]
    table["Norm"] = [norm for norm, _ in found]
    table["P Grouping"] = [np.nan if p is None else p for _, p in found]


def as_groupings(table: pd.DataFrame) -> pd.DataFrame:
    """Return the runs of norms with groupings, and those that build the same networks under another name.

    InstanceNorm is GroupNorm with p = 1, and LayerNorm on feature maps is GroupNorm with one group. Where a network has
    runs of GroupNorm, these are listed as such, with both names in Label.
    """
    with_groups = set(table.loc[table["Norm"] == "GroupNorm", "Model"])
    is_same = [
        norm in SAME_AS_GROUPING
        and model in with_groups
        and model in ARCHS
        and canonical_norm(model, "GroupNorm", SAME_AS_GROUPING[norm])[0] == norm
        for model, norm in zip(table["Model"], table["Norm"], strict=True)
    ]
    renamed = table[pd.Series(is_same, index=table.index, dtype=bool)].copy()
    renamed["Grouping"] = renamed["Norm"].map(SAME_AS_GROUPING)
    renamed["Label"] = [
        f"GroupNorm p={p:g} ({norm})" for norm, p in zip(renamed["Norm"], renamed["Grouping"], strict=True)
    ]
    renamed["Norm"] = "GroupNorm"
    return pd.concat([table[table["Grouping"].notna()], renamed]).sort_index()


def pairs_with_groupings(pairs: Sequence[tuple[Row, T]]) -> list[tuple[Row, T]]:
    """Return the pairs (row, anything) of as_groupings."""
    if not pairs:
        return []
    frame = as_groupings(pd.DataFrame([row for row, _ in pairs]))
    return [(row, pairs[index][1]) for index, row in zip(frame.index, frame.to_dict("records"), strict=True)]


def spelled_norm(name: str) -> str:
    """Return the usual spelling of a norm, or the name itself if it is unknown."""
    return _spelled(name, NORM_TYPES)


def _spelled(name: object, choices: Sequence[str]) -> str:
    """Return the choice that the name stands for, or the name itself if there is none."""
    try:
        return canonical_name(str(name), choices)
    except ValueError:
        return str(name)


def hyperparameters(table: pd.DataFrame) -> list[str]:
    """Return the columns in which the runs differ, without the norm, its grouping and the seed.

    Mom & WD says nothing new beside the columns momentum and weight_decay, so it is left out if a table has both.
    """
    derived = {
        name for name, parts in PARTS.items() if all(part in table and table[part].notna().all() for part in parts)
    }
    names = [name for name in HYPERPARAMETERS if name in table and name not in derived]
    return [name for name in names if table[name].astype(str).nunique() > 1]


def axes_of(table: pd.DataFrame) -> dict[str, list[str]]:
    """Return {axis: its columns}: the hyperparameters that can be changed one at a time.

    If two columns never change without each other, they are one axis with both names. A column whose value follows
    from another column belongs to the axis of that one: the epochs may follow from the batch size, or the image size
    from the network.
    """
    names = hyperparameters(table)
    texts = table[names].astype(str)
    follows = {
        name: [other for other in names if other != name and (texts.groupby(name)[other].nunique() == 1).all()]
        for name in names
    }
    axes = {}
    for place, name in enumerate(names):
        leaders = [other for other in names if other != name and name in follows[other]]
        twins = [other for other in leaders if other in follows[name]]
        if set(leaders) - set(twins) or any(other in names[:place] for other in twins):
            continue  # it follows a column that can change alone, or is named with an earlier one
        axes[" & ".join([name, *twins])] = [name, *follows[name]]
    return axes


def setting_keys(table: pd.DataFrame, names: list[str]) -> pd.Series:
    """Return, for each run, its values in these columns as one text."""
    texts = ["|".join(map(str, values)) for values in table[names].astype(str).to_numpy()]
    return pd.Series(texts, index=table.index, dtype=str)


def largest_cells(table: pd.DataFrame, within: list[str], label: str = "Norm") -> pd.DataFrame:
    """Return the runs of the largest cell for each combination of values in the columns `within`.

    The largest cell is that with the most norms (or other labels); of several, that with the most runs. Its runs can be
    averaged and compared.
    """
    table = table[table[label].notna()]
    axes = [name for name in hyperparameters(table) if name not in within]
    kept: list[int] = []
    for _, runs in table.groupby(setting_keys(table, within), sort=False):
        groups = [group for _, group in runs.groupby(setting_keys(runs, axes))] if axes else [runs]
        kept += list(max(groups, key=lambda group: (group[label].nunique(), len(group))).index)
    return table.loc[sorted(kept)]


def in_largest_cells(pairs: Sequence[tuple[Row, T]], label: str = "Norm") -> list[tuple[Row, T]]:
    """Return the pairs (row, anything) whose run is in the largest cell of its network."""
    if not pairs:
        return []
    return [pairs[index] for index in largest_cells(pd.DataFrame([row for row, _ in pairs]), ["Model"], label).index]


def average_over_seeds(table: pd.DataFrame) -> pd.DataFrame:
    """Average the runs that did not fail over seeds; return one row per setting.

    A setting is the norm, its grouping and all hyperparameters but the seed. Measures are correlated over settings,
    because runs of one setting are not independent evidence of a trend over norms.
    """
    usable = table[~table["has_failed"]]
    settings = setting_keys(usable, ["Label", *hyperparameters(table)])
    is_number = {name: pd.api.types.is_numeric_dtype(usable[name]) and usable[name].dtype != bool for name in usable}
    how = {name: "mean" if is_number[name] else "first" for name in usable}
    return usable.groupby(settings, sort=False).agg(how).reset_index(drop=True)

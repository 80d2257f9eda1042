"""Probe statistics of the runs of a table: reading them, and averaging them into measures."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from normstudy.cli import RunError
from normstudy.plots import PROBE_TITLES, WEIGHT_TITLES
from normstudy.report.tables import Row
from normstudy.storage import PROBE_KEYS, RunDirectory, read_probes_summary

T = TypeVar("T")

MOST_RUNS = 1000  # maximum number of runs whose probe statistics and spectra are read, evenly chosen
MOMENTS = {"first": "first iteration", "last": "last iteration"}


@dataclass(frozen=True)
class ProbeStatistics:
    """The content of a run's probes.json.

    sites: the names of the sites by kind. iterations: those of "mean", (T,). values: for each statistic, the values by
    site at the "first" and the "last" iteration, (sites,), and the "mean" over sites, (T,). Runs of earlier versions
    have no statistics of weights.
    """

    sites: dict[str, list[str]]
    iterations: np.ndarray
    values: dict[str, dict[str, np.ndarray]]


def evenly_chosen(items: Sequence[T]) -> Sequence[T]:
    """Return at most MOST_RUNS of the items, evenly chosen."""
    return items[:: max(1, -(-len(items) // MOST_RUNS))]


def read_probe_statistics(runs: Sequence[tuple[Row, RunDirectory]]) -> list[tuple[Row, ProbeStatistics]]:
    """Read the probe statistics of evenly chosen runs that recorded some; name damaged ones on stderr."""
    found = []
    for row, run in evenly_chosen(runs):
        try:
            content = read_probes_summary(run)
            if content is not None:
                found.append((row, _as_statistics(content)))
        except RunError as error:
            print(f"left out: {error}", file=sys.stderr)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            print(f"left out: {run.probes_summary} is damaged ({error!r})", file=sys.stderr)
    return found


def _as_statistics(content: Mapping[str, Any]) -> ProbeStatistics:
    """Return the content of probes.json as arrays. Raises KeyError, TypeError, ValueError or AttributeError."""
    values = {
        key: {name: np.array(numbers, dtype=float) for name, numbers in content[key].items()}
        for key in (*PROBE_KEYS, *(key for key in WEIGHT_TITLES if key in content))
    }
    return ProbeStatistics(content["sites"], np.array(content["iteration"]), values)


def add_probe_measures(
    table: pd.DataFrame, probed: Sequence[tuple[Row, ProbeStatistics]]
) -> tuple[pd.DataFrame, dict[str, str]]:
    """Add a column to the table for each statistic at the first and at the last iteration.

    A value is the mean over the sites where the statistic is finite. Return the table and {column: title} of the new
    columns. Without a run that has probe statistics, the table is unchanged.
    """
    if not probed:
        return table, {}
    names = {(key, moment): f"{key} {moment}" for key in PROBE_KEYS for moment in MOMENTS}
    means = {}
    for row, part in probed:
        values = {name: _finite_mean(part.values[key][moment]) for (key, moment), name in names.items()}
        means[row["table"], row["run"]] = values
    runs = zip(table["table"], table["run"], strict=True)
    columns = pd.DataFrame([means.get(run, {}) for run in runs], index=table.index)
    titles = {name: f"{PROBE_TITLES[key]}, {MOMENTS[moment]}" for (key, moment), name in names.items()}
    return pd.concat([table, columns], axis=1), titles


def _finite_mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return finite.mean() if len(finite) else np.nan

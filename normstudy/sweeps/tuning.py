"""The choice of a learning rate for each combination of a sweep, by validation accuracy and never by test accuracy."""

import collections
from collections.abc import Container, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from config import Config, applies
from normstudy.cli import UsageError
from normstudy.storage import read_csv, read_summary, write_csv
from normstudy.sweeps.failures import read_failures
from normstudy.sweeps.flags import TUNING_FRACTION
from normstudy.sweeps.grid import SweepRun
from normstudy.sweeps.presets import PRESETS
from normstudy.sweeps.run_parts import TRAINING, is_trained
from normstudy.sweeps.run_status import Statuses, runs_by_status

RESULT_COLUMNS = ("axis", "rate", "validation_accuracy", "status", "reached_loss", "chosen", "edge", "run")


@dataclass(frozen=True)
class Combination:
    """The runs of one combination of settings, {rate: runs}, with ascending rates and the first seed first.

    axis: init_lr or lr. settings: arch, norm_type and the settings in which the combinations of the sweep differ.
    """

    axis: str
    settings: Mapping[str, Any]
    runs: Mapping[float, Sequence[SweepRun]]

    def __str__(self) -> str:
        arch, norm_type, *others = self.settings
        words = [f"{name}={_text(self.settings[name])}" for name in others if self.settings[name] != ""]
        return " ".join([self.settings[arch], self.settings[norm_type], *words])

    def tuning_runs(self) -> list[SweepRun]:
        """Return the runs of the first seed, one for each rate, without measurements."""
        return [replace(first, measurements={}) for first, *_ in self.runs.values()]

    @property
    def results_dir(self) -> Path:
        return self.tuning_runs()[0].directory.path.parent


@dataclass(frozen=True)
class Trial:
    """The result of a tuning run. The validation accuracy is None unless the status is done."""

    rate: float
    status: str
    validation_accuracy: float | None
    reached_loss: bool = True  # False if the run was to stop at a training loss and did not reach it

    @property
    def has_ended(self) -> bool:
        return self.status in ("done", "diverged")


@dataclass(frozen=True)
class Tuning:
    """The results of the tuning runs of one combination, in ascending order of their rates."""

    combination: Combination
    trials: Sequence[Trial]

    @property
    def is_complete(self) -> bool:
        """Whether all tuning runs have ended. Before that, no rate is chosen: which runs fail must not decide."""
        return all(trial.has_ended for trial in self.trials)

    @property
    def rate(self) -> float | None:
        """The rate with the highest validation accuracy; the smaller one of equals; None if there is none (yet).

        Rates at which the training loss was not reached count only if it was reached at none.
        """
        if not self.is_complete:
            return None
        known = [trial for trial in self.trials if trial.validation_accuracy is not None]
        known = [trial for trial in known if trial.reached_loss] or known
        accuracies = {trial.rate: trial.validation_accuracy for trial in known}
        return max(accuracies, key=lambda rate: (accuracies[rate], -rate), default=None)

    @property
    def edge(self) -> str:
        """Where better rates may be, "smaller" or "larger", if the chosen rate is at the edge of the grid; else ""."""
        edges = {self.trials[0].rate: "smaller", self.trials[-1].rate: "larger"}
        return "" if self.rate is None else edges.get(self.rate, "")

    def chosen_runs(self) -> Sequence[SweepRun]:
        """Return the runs of all seeds at the chosen rate, with their measurements; none without a choice."""
        return () if self.rate is None else self.combination.runs[self.rate]

    def later_runs(self) -> Sequence[SweepRun]:
        """Return the runs of the other seeds, at any rate, if they wait for a choice."""
        return () if self.is_complete else self.combination.runs[self.trials[0].rate][1:]

    def remarks(self) -> list[str]:
        """Return lines about a combination without a choice, or with one at the edge of the grid."""
        axis = self.combination.axis
        if not self.is_complete:
            ended = sum(trial.has_ended for trial in self.trials)
            return [
                f"{self.combination}: only {ended} of {len(self.trials)} tuning runs have ended, so no rate is chosen"
            ]
        if self.rate is None:
            return [f"{self.combination}: all tuning runs diverged, so no other seeds are trained; try smaller rates"]
        if self.edge:
            return [f"{self.combination}: {axis}={self.rate:g} is best, at the edge of the grid; try {self.edge} rates"]
        return []


def _text(value: object) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def grid_with_rates(given: Mapping[str, Any], preset: str | None, axis: str, rates: Sequence[float]) -> dict[str, Any]:
    """Return the given flags, {flag: values}, with the rates as an axis, and with a --val_fraction if none is set.

    Raises UsageError if the axis is swept already.
    """
    swept = {*given, *(name for grid in (PRESETS[preset].grids if preset else ()) for name in grid)}
    if axis in swept:
        raise UsageError(f"--tune={axis}:... cannot be combined with --{axis}: leave out one of them")
    tuned = {**given, axis: tuple(rates)}
    return tuned if "val_fraction" in swept else tuned | {"val_fraction": (TUNING_FRACTION,)}


def combinations_of(runs: Sequence[SweepRun], axis: str) -> list[Combination]:
    """Group the runs of a grid into combinations, whose runs differ only in the axis and the seed.

    Raises UsageError if a run holds out no images for validation.
    """
    if not all(run.config.val_fraction for run in runs):
        raise UsageError("--tune chooses by validation accuracy, and needs a --val_fraction above 0")
    grouped = collections.defaultdict[object, dict[float, list[SweepRun]]](dict)
    for run in runs:
        key = tuple((name, value) for name, value in run.config.identity().items() if name not in ("seed", axis))
        grouped[key].setdefault(getattr(run.config, axis), []).append(run)
    settings = [_applicable_settings(next(iter(by_rate.values()))[0].config) for by_rate in grouped.values()]
    varying = [
        name for name in settings[0] if len({each[name] for each in settings}) > 1 and name not in ("seed", axis)
    ]
    columns = dict.fromkeys(("arch", "norm_type", *varying))
    return [
        Combination(axis, {name: each[name] for name in columns}, dict(sorted(by_rate.items())))
        for each, by_rate in zip(settings, grouped.values(), strict=True)
    ]


def _applicable_settings(config: Config) -> dict[str, Any]:
    """Return the settings that change a run's results. Those that are unset or do not apply are empty text."""
    settings = {field.name: getattr(config, field.name) for field in fields(config) if not field.metadata["runtime"]}
    return {name: "" if value is None or not applies(name, settings) else value for name, value in settings.items()}


def read_tuning(combination: Combination) -> Tuning:
    """Read the results of the tuning runs of a combination. Raises RunError if a summary is damaged."""
    runs = zip(combination.runs, combination.tuning_runs(), strict=True)
    return Tuning(combination, [_read_trial(rate, run) for rate, run in runs])


def _read_trial(rate: float, run: SweepRun) -> Trial:
    if is_trained(run):
        summary = read_summary(run.directory)
        accuracy = summary["validation_accuracy"] if summary["status"] == "done" else None
        return Trial(rate, summary["status"], accuracy, summary.get("reached_loss", True))
    if TRAINING in read_failures(run):
        return Trial(rate, "failed", None)
    return Trial(rate, "unfinished" if run.directory.path.exists() else "new", None)


def tuned_runs_by_status(tunings: Sequence[Tuning], retries: int, queued: Container[str] = ()) -> Statuses:
    """Return {status: runs}, as runs_by_status does, of all tuning runs and of the runs at the chosen rates.

    A tuning run at another rate is done when it has ended, because it is not measured.
    """
    return runs_by_status(runs_of_tunings(tunings), retries, queued)


def runs_of_tunings(tunings: Sequence[Tuning]) -> list[SweepRun]:
    """Return the runs at the chosen rates, with their measurements, and the other tuning runs, which have none."""
    chosen = [run for tuning in tunings for run in tuning.chosen_runs()]
    paths = {run.directory.path for run in chosen}
    others = [run for tuning in tunings for run in tuning.combination.tuning_runs()]
    return chosen + [run for run in others if run.directory.path not in paths]


def write_tuning(path: Path, tunings: Sequence[Tuning]) -> None:
    """Write tuning.csv: one row per combination and rate. Rows of other combinations, of earlier sweeps, are kept."""
    rows = []
    for tuning in tunings:
        rate, is_at_edge = tuning.rate, bool(tuning.edge)
        for trial, run in zip(tuning.trials, tuning.combination.tuning_runs(), strict=True):
            result = {"axis": tuning.combination.axis, "chosen": trial.rate == rate, "run": run.directory.path.name}
            result["edge"] = result["chosen"] and is_at_edge
            rows.append({**tuning.combination.settings, **asdict(trial), **result})
    rows = _rows_of_others(path, [tuning.combination for tuning in tunings]) + rows
    settings = dict.fromkeys(name for row in rows for name in row if name not in RESULT_COLUMNS)
    write_csv(path, (*settings, *RESULT_COLUMNS), rows)


def _rows_of_others(path: Path, combinations: Sequence[Combination]) -> list[dict[str, Any]]:
    """Return the rows of an existing tuning.csv about other combinations, as far as their runs still exist."""
    try:
        earlier = read_csv(path)
    except (OSError, UnicodeDecodeError):
        return []
    texts = [{name: str(value) for name, value in each.settings.items()} for each in combinations]
    return [
        row
        for row in earlier
        if row.get("run")
        and (path.parent / row["run"]).is_dir()
        and not any(all(row.get(name, text) == text for name, text in each.items()) for each in texts)
    ]

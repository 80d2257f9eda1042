"""The data of a report: its runs, their folders, and their statistics."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import pandas as pd

from normstudy.cli import UsageError
from normstudy.report import primary
from normstudy.report.association import UNDEFINED, WITHOUT_TUNING, Association, between_norms, without_each_norm
from normstudy.report.baseline import BASELINE, differences_to
from normstudy.report.claims import Runs, compare_claims
from normstudy.report.comparison import compare_tables
from normstudy.report.correlation import closest_measures, correlate_measures, points_of, runs_behind
from normstudy.report.granulation import granulated_table
from normstudy.report.primary import included_runs
from normstudy.report.probe_statistics import ProbeStatistics, add_probe_measures, read_probe_statistics
from normstudy.report.rankings import rank_labels, rank_norms, summarize_cells
from normstudy.report.resampling import RESAMPLES
from normstudy.report.tables import MEASURES, MIN_POINTS, Row, as_groupings, average_over_seeds, spelled_norm
from normstudy.report.tuning import at_comparable_rates, in_time, of_tuning_seeds
from normstudy.storage import RunDirectory


@dataclass(frozen=True)
class ReportOptions:
    """The tables that a report reads, the folder that it is written to, and how its intervals are computed.

    compared: tables whose trends are compared with those of the runs. same_data: data sets that count as one there.
    baseline: the norm to which the others' differences are computed (BatchNorm if None). filters:
    {column: value} of the runs to report on. shows_progress: whether the page shows the runs in progress and the
    failed runs in results_dir.
    """

    tables: Sequence[Path]
    results_dir: Path
    compared: Sequence[str] = ()
    same_data: Sequence[str] = ()
    resamples: int = RESAMPLES
    seed: int = 0
    baseline: str | None = None
    filters: Mapping[str, str] = field(default_factory=dict)
    shows_progress: bool = False


@dataclass(frozen=True)
class ReportData:
    """The runs of a report; the last columns of `table` are probe statistics.

    folders: the runs whose folder is next to their table. titles: {column: title} of every measure.
    """

    table: pd.DataFrame
    other_table: pd.DataFrame | None
    folders: list[tuple[Row, RunDirectory]]
    probed: list[tuple[Row, ProbeStatistics]]
    titles: dict[str, str]


@dataclass(frozen=True)
class ReportStatistics:
    """The statistics of the runs.

    titles: {column: title} of the measures that enough settings have. ranking: of rank_norms. groupings: a ranking of
    norms with their groupings. baseline: of differences_to. influences: {measure: {norm: ρ without it}} for the
    FINDINGS measures of the primary analysis with the smallest p; behind: {measure: the runs that it rests on}, of
    runs_behind. rates: the association of the chosen learning rates with the outcome of the primary analysis.
    comparison: the frames (orders, signs) of compare_tables, or None without another table.
    """

    titles: dict[str, str]
    ranking: pd.DataFrame
    groupings: pd.DataFrame
    baseline: pd.DataFrame
    by_cell: pd.DataFrame
    correlations: pd.DataFrame
    granulated: pd.DataFrame
    claims: pd.DataFrame
    influences: dict[str, dict[str, float]]
    behind: dict[str, pd.DataFrame]
    rates: Association
    comparison: tuple[pd.DataFrame, pd.DataFrame] | None


def with_known_baseline(options: ReportOptions, table: pd.DataFrame) -> ReportOptions:
    """Return the options with the baseline spelled as in the table. Raises UsageError if no run has this norm."""
    if options.baseline is None:
        return options
    norms = sorted(table["Norm"].unique())
    spelled = spelled_norm(options.baseline)
    if spelled not in norms:
        raise UsageError(f"--baseline={options.baseline}: no run has this norm (there is {', '.join(norms)})")
    return replace(options, baseline=spelled)


def look_into_folders(table: pd.DataFrame, other_table: pd.DataFrame | None) -> ReportData:
    """Find the folders of the runs and add their probe statistics to the table; name damaged ones on stderr."""
    folders = _run_directories(table)
    probed = read_probe_statistics(folders)
    with_probes, probe_titles = add_probe_measures(table, probed)
    return ReportData(with_probes, other_table, folders, probed, MEASURES | probe_titles)


def _run_directories(table: pd.DataFrame) -> list[tuple[Row, RunDirectory]]:
    """Return the runs whose folder is next to their table."""
    found = []
    for row in table.to_dict("records"):
        name = row.get("run")
        if isinstance(name, str) and name and Path(name).name == name:
            folder = Path(row["table"]).parent / name
            if folder.is_dir():
                found.append((row, RunDirectory(folder)))
    return found


def compute_statistics(data: ReportData, options: ReportOptions) -> ReportStatistics:
    """Compute every number of the report: rankings, coefficients, claims and comparisons."""
    resamples, seed = options.resamples, options.seed
    table, settings = data.table, average_over_seeds(data.table)
    titles = {name: words for name, words in data.titles.items() if settings[name].notna().sum() >= MIN_POINTS}
    ranking = rank_norms(table)
    comparison = None
    if data.other_table is not None:
        comparison = compare_tables(table, data.other_table, options.same_data, resamples, seed)
    correlations = correlate_measures(table, titles, resamples=resamples, seed=seed)
    included = included_runs(table)
    compared = in_time(at_comparable_rates(table).runs)
    closest = closest_measures(correlations)
    return ReportStatistics(
        titles=titles,
        ranking=ranking,
        groupings=rank_labels(as_groupings(compared), "Label"),
        baseline=differences_to(table, options.baseline or BASELINE),
        by_cell=summarize_cells(table),
        correlations=correlations,
        influences={name: influences_on(included.runs, name) for name in closest},
        behind={name: runs_behind(included.runs, name, primary.OUTCOME) for name in closest},
        rates=association_of_rates(included),
        granulated=granulated_table(
            average_over_seeds(in_time(of_tuning_seeds(table))), titles, resamples=resamples, seed=seed
        ),
        claims=compare_claims(Runs(table, ranking, data.probed, resamples, seed)),
        comparison=comparison,
    )


def influences_on(included: pd.DataFrame, measure: str) -> dict[str, float]:
    """Return {what is left out: the primary analysis's coefficient without it}.

    It is one norm, the norms that keep running statistics, or the seed whose validation accuracies chose the rates.
    """
    found = without_each_norm(points_of(included, measure, primary.OUTCOME))
    if "is_tuning_seed" in included:
        others = included[~(included["is_tuning_seed"] == True)]  # noqa: E712 - NaN where nothing was tuned
        points = points_of(others, measure, primary.OUTCOME)
        found[WITHOUT_TUNING] = between_norms(points, resamples=2, permutations=0).value
    return found


def association_of_rates(included: primary.Included) -> Association:
    """Associate the norms' best learning rates with the outcome; UNDEFINED if no rates were tuned."""
    if not included.tuned:
        return UNDEFINED
    return between_norms(points_of(included.runs, "peak_rate", primary.OUTCOME), resamples=2, permutations=0)

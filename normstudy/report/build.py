"""Build the report: read the tables, compute the statistics, draw the pictures and write the page."""

import platform
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from normstudy.cli import format_count, progress_bar
from normstudy.report import primary
from normstudy.report.data import (
    ReportOptions,
    ReportStatistics,
    compute_statistics,
    look_into_folders,
    with_known_baseline,
)
from normstudy.report.explorer import vega_script
from normstudy.report.figures import draw_pictures, save_drawings
from normstudy.report.page import render_page
from normstudy.report.progress import progress_section, reload_script
from normstudy.report.progress_figures import draw_progress
from normstudy.report.run_states import FileCache, RunStates, read_states
from normstudy.report.sections import page_sections
from normstudy.report.tables import filtered, read_tables
from normstudy.storage import git_commit, remove_leftovers, write_bytes


@dataclass(frozen=True)
class BuiltReport:
    """The parts of the page that depend on the table of runs alone. libraries: JavaScript for its scripts."""

    title: str
    sections: list[tuple[str, str]]
    origin: str
    libraries: list[str]


def write_report(options: ReportOptions) -> Path:
    """Write report.html, figures/ (PNG and SVG) and tables/*.csv into results_dir; return the path of the page.

    Raises RunError if a file is not a table of runs.
    """
    built = build_report(options)
    files = FileCache()
    states = read_states(options.results_dir, files) if options.shows_progress else None
    return write_page(built, options, states, files)


def build_report(options: ReportOptions) -> BuiltReport:
    """Compute the report on the tables; write figures/*.png and tables/*.csv. Raises RunError for a wrong table."""
    table = filtered(read_tables(options.tables), options.filters)
    options = with_known_baseline(options, table)
    other_table = read_tables(options.compared) if options.compared else None
    with progress_bar(5, "report", unit="part") as bar:
        data = look_into_folders(table, other_table)
        bar.update()
        statistics = compute_statistics(data, options)
        bar.update()
        _write_tables(data.table, statistics, options.results_dir / "tables")
        bar.update()
        pictures = draw_pictures(data, statistics, options.results_dir / "figures")
        bar.update()
        sections = page_sections(data, statistics, pictures, options)
        bar.update()
    title = f"Normalization: a report on {format_count(len(table), 'run')}"
    libraries = [vega_script()] if any(heading == "Explorer" for heading, _ in sections) else []
    return BuiltReport(title, sections, _origin(options), libraries)


def write_page(
    built: BuiltReport,
    options: ReportOptions,
    states: RunStates | None,
    files: FileCache,
    is_watched: bool = False,
) -> Path:
    """Write report.html, with a section on runs in progress after the summary if there are any; return its path.

    states: of the runs in results_dir, or None. files: the cache with which they were read. is_watched: whether the
    page will be rewritten, so that it reloads itself.
    """
    summary, *others = built.sections
    progress = []
    if states is not None:
        drawing = draw_progress(states, options.results_dir, files)
        pictures = save_drawings([drawing], options.results_dir / "figures")
        section = progress_section(states, pictures, options.results_dir, is_watched, bool(options.filters))
        progress = [section] if section[1] else []
    libraries = [*built.libraries, *([reload_script()] if is_watched else [])]
    page = render_page(built.title, [summary, *progress, *others], built.origin, libraries)
    path = options.results_dir / "report.html"
    write_bytes(path, page.encode("utf-8", "replace"))
    return path


def _write_tables(table: pd.DataFrame, statistics: ReportStatistics, folder: Path) -> None:
    """Write each frame of the statistics as a CSV file; remove those of an earlier report that this one lacks."""
    frames = {
        "ranking": statistics.ranking,
        "groupings": statistics.groupings,
        "baseline": statistics.baseline,
        "by_cell": statistics.by_cell,
        "correlations": statistics.correlations,
        "granulated": statistics.granulated,
        "claims": statistics.claims,
    }
    for place, (measure, runs) in enumerate(statistics.behind.items(), 1):
        named = runs.assign(run=table["run"]) if "run" in table else runs
        frames[f"runs_of_finding_{place}"] = named.rename(columns={"x": measure, "y": primary.OUTCOME})
    if statistics.comparison is not None:
        frames["orders"], frames["signs"] = statistics.comparison
    for pattern in ("runs_of_finding_*.csv", "orders.csv", "signs.csv"):
        remove_leftovers(folder, pattern)
    for name, frame in frames.items():
        write_bytes(folder / f"{name}.csv", frame.to_csv(index=False).encode())


def _origin(options: ReportOptions) -> str:
    """Name the tables, the resamples and the versions that the page was built from, so that it can be rebuilt."""
    packages = ", ".join(f"{name} {version(name)}" for name in ("numpy", "pandas", "scipy", "matplotlib"))
    commit = git_commit()
    program = f"; program at commit {commit[:12]}" if commit else ""
    return (
        f"Built from {', '.join(map(str, options.tables))} with {options.resamples:,} resamples (seed {options.seed}); "
        f"Python {platform.python_version()}, {packages}{program}."
    )

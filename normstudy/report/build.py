"""Build the report: read the tables, compute the statistics, draw the pictures and write the page."""

import platform
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from normstudy.cli import progress_bar
from normstudy.report import primary
from normstudy.report.data import (
    ReportOptions,
    ReportStatistics,
    compute_statistics,
    look_into_folders,
    with_known_baseline,
)
from normstudy.report.explorer import vega_script
from normstudy.report.figures import draw_pictures
from normstudy.report.page import format_count, render_page
from normstudy.report.sections import page_sections
from normstudy.report.tables import filtered, read_tables
from normstudy.storage import git_commit, write_bytes


def write_report(options: ReportOptions) -> Path:
    """Write report.html, figures/ (PNG and SVG) and tables/*.csv into results_dir; return the path of the page.

    Raises RunError if a file is not a table of runs.
    """
    table = filtered(read_tables(options.tables), options.filters)
    options = with_known_baseline(options, table)
    other_table = read_tables(options.compared) if options.compared else None
    path = options.results_dir / "report.html"
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
        title = f"Normalization: a report on {format_count(len(table), 'run')}"
        libraries = [vega_script()] if any(heading == "Explorer" for heading, _ in sections) else []
        page = render_page(title, sections, _origin(options), libraries)
        write_bytes(path, page.encode("utf-8", "replace"))
        bar.update()
    return path


def _write_tables(table: pd.DataFrame, statistics: ReportStatistics, folder: Path) -> None:
    """Write each frame of the statistics as a CSV file."""
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

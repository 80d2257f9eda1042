"""The sections of the page, built from the data, the statistics and the pictures of a report."""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pandas as pd

from normstudy.cli import format_count
from normstudy.report.data import ReportData, ReportOptions, ReportStatistics
from normstudy.report.explanations import CELL_NOTE, METHODS, NOTES, TUNED_NOTE
from normstudy.report.explorer import explorer_content
from normstudy.report.figures import Picture, ReportPictures
from normstudy.report.page import details_html, escaped, list_html, note_html, picture_html, render
from normstudy.report.page_tables import (
    baseline_table_html,
    cells_table_html,
    claims_html,
    comparison_html,
    correlations_table_html,
    granulated_table_html,
    ranking_table_html,
    runs_table_html,
)
from normstudy.report.primary import included_runs
from normstudy.report.sentences import (
    basis_sentences,
    behind_sentence,
    effect_sentences,
    limitation_sentences,
    other_table_sentence,
    primary_findings,
    ranking_sentences,
    sharpness_sentences,
)
from normstudy.report.tuning import in_time
from normstudy.storage import RunDirectory

LINKED = ("summary.json", "metrics.csv", "curves.png", "probes.png", "hessian.png", "class_similarity.png")


def page_sections(
    data: ReportData, statistics: ReportStatistics, pictures: ReportPictures, options: ReportOptions
) -> list[tuple[str, str]]:
    """Return (heading, HTML) of each section that has content."""
    effects = effect_sentences(in_time(data.table))
    marks = finding_marks(data.table, statistics.behind)
    explorer = explorer_content(data, marks, options.results_dir)
    links = {row["run"]: _links(run, options.results_dir) for row, run in data.folders}
    sections = [
        ("Summary", _summary(data, statistics, pictures)),
        ("Which norm is best, and where", _norms(data, statistics, pictures)),
        ("Correlations with generalization (exploratory)", _measures(data, statistics, pictures)),
        ("Effects of hyperparameters (exploratory)", list_html(effects) if effects else ""),
        ("Published claims", _claims(statistics, pictures)),
        ("Comparison with another table", _comparison(data, statistics, options)),
        ("Inside the networks", _pictures_html(*pictures.networks)),
        ("Explorer", render("explorer.html", **explorer) if explorer is not None else ""),
        ("Runs", runs_table_html(data.table, links, marks, os.path.relpath(options.tables[0], options.results_dir))),
        ("Methods", list_html(METHODS)),
    ]
    return [(heading, content) for heading, content in sections if content]


def finding_marks(table: pd.DataFrame, behind: Mapping[str, pd.DataFrame]) -> list[str]:
    """Return, for each run, words that a filter finds: the findings that it is behind, and its name."""
    names = table["run"].fillna("").astype(str) if "run" in table else pd.Series("", index=table.index)
    for place, runs in enumerate(behind.values(), 1):
        names = names + np.where(table.index.isin(runs.index), f" finding-{place}", "")
    return list(names)


def _pictures_html(*pictures: Picture | None) -> str:
    return "".join(picture_html(*picture) for picture in pictures if picture is not None)


def _links(run: RunDirectory, results_dir: Path) -> tuple[str, list[str]]:
    """Return the path of a run's folder relative to the page, and the names of its files in LINKED that exist."""
    path = os.path.relpath(run.path, results_dir)
    return Path(path).as_posix(), [name for name in LINKED if (run.path / name).exists()]


def _summary(data: ReportData, statistics: ReportStatistics, pictures: ReportPictures) -> str:
    table = data.table
    if len(table) == 0:
        return note_html(NOTES["no runs"])
    family = statistics.correlations[statistics.correlations["family"].isin(("primary", "within norms"))]
    by_name = {picture.path.stem: picture for picture in pictures.findings}  # without those that could not be drawn
    by_measure = {name: by_name.get(f"finding_{place}") for place, name in enumerate(statistics.influences, 1)}
    included = included_runs(table)
    found = primary_findings(statistics.correlations, statistics.influences, data.titles)
    return render(
        "summary.html",
        runs=format_count(len(table), "run"),
        failed=int(table["has_failed"].sum()),
        norms=format_count(table["Norm"].nunique(), "norm"),
        cell_note=CELL_NOTE + (TUNED_NOTE if included.tuned else ""),
        findings=[
            {
                "finding": finding,
                "picture": _pictures_html(by_measure.get(finding.measure)),
                "behind": behind_sentence(included.runs, statistics.behind[finding.measure]),
                "place": list(statistics.behind).index(finding.measure) + 1,
            }
            if finding.measure
            else {"finding": finding, "place": 0}
            for finding in found
        ],
        basis=list(basis_sentences(included, statistics.rates)),
        primary=_pictures_html(by_name.get("primary")),
        family=correlations_table_html(family, data.titles) if len(family) else "",
        limits=limitation_sentences(table, included.runs, statistics.correlations),
    )


def _norms(data: ReportData, statistics: ReportStatistics, pictures: ReportPictures) -> str:
    content = note_html(NOTES["no accuracy"])
    if len(statistics.ranking):
        said = list_html(ranking_sentences(statistics.ranking, included_runs(data.table)))
        content = said + _pictures_html(*pictures.norms)
        for (network, at), ranks in statistics.ranking.groupby(["network", "at"], sort=False):
            content += f"<h3>{escaped(network)}, at {escaped(at)}</h3>" + ranking_table_html(ranks, "norm")
        if len(statistics.baseline):
            content += "<h3>Differences to a baseline norm</h3>" + baseline_table_html(statistics.baseline)
        else:
            content += note_html(NOTES["no baseline"])
        cells = cells_table_html(statistics.by_cell)
        content += details_html(
            "Every norm in every cell: mean and s.d. over runs (n includes failed and late runs, the means do not)",
            cells,
        )
    if len(statistics.groupings) > 1:
        content += details_html("Norms by grouping", ranking_table_html(statistics.groupings, "Label"))
    return content


def _claims(statistics: ReportStatistics, pictures: ReportPictures) -> str:
    """Return the claims that these runs can speak to, or nothing."""
    if statistics.claims.empty:
        return ""
    return _pictures_html(*pictures.claims) + claims_html(statistics.claims)


def _measures(data: ReportData, statistics: ReportStatistics, pictures: ReportPictures) -> str:
    if not len(statistics.granulated):
        return note_html(NOTES["no measure"])
    coefficients = correlations_table_html(statistics.correlations, data.titles)
    granulated = granulated_table_html(statistics.granulated, data.titles)
    heatmaps = [picture for picture in pictures.measures if picture.path.stem == "correlations"]
    return (
        list_html(sharpness_sentences(statistics.correlations, data.titles))
        + _pictures_html(*heatmaps)
        + details_html("All coefficients", coefficients)
        + details_html("Granulated coefficients, with worst cases (n groups of settings)", granulated)
        + _pictures_html(*(picture for picture in pictures.measures if picture not in heatmaps))
    )


def _comparison(data: ReportData, statistics: ReportStatistics, options: ReportOptions) -> str:
    """Return the comparison with the other table, or nothing without one."""
    if data.other_table is None or statistics.comparison is None:
        return ""
    other = other_table_sentence(len(data.other_table), options.compared, options.same_data)
    return note_html(other) + comparison_html(*statistics.comparison, data.titles)

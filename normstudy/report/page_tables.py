"""The tables of the page."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

import pandas as pd

from normstudy.report.page import (
    RawHTML,
    escaped,
    format_interval,
    format_number,
    format_p_value,
    numeric_cell,
    numeric_cell_with_error,
    table_html,
)

ON_OR_OFF = {True: "on", False: "off"}


def ranking_table_html(ranks: pd.DataFrame, label: str) -> str:
    """Return the table of a frame of rank_norms or rank_labels; the column `label` holds the names that are ranked."""
    columns = [label, "n", "failed", "mean test accuracy (%)", "advantage (points)", "95 % interval"]
    columns.append("95 % interval of the rank")
    rows = [
        [
            row[label],
            numeric_cell(row["n"]),
            numeric_cell(row["failed"]),
            numeric_cell(row["mean"]),
            numeric_cell(row["advantage"], 3),
            format_interval(row["low"], row["high"]),
            format_interval(row["rank_low"], row["rank_high"]),
        ]
        for row in ranks.to_dict("records")
    ]
    csv = "tables/ranking.csv" if label == "norm" else "tables/groupings.csv"
    return table_html(columns, rows, numeric=columns[1:5], csv=csv)


def cells_table_html(cells: pd.DataFrame) -> str:
    """Return the table of the frame of summarize_cells."""
    numeric = {name for name in cells.columns if name in ("n", "failed") or name.endswith(("mean", "s.d."))}
    rows = [
        [numeric_cell(value) if name in numeric else value for name, value in row.items()]
        for row in cells.to_dict("records")
    ]
    return table_html(list(cells.columns), rows, numeric, csv="tables/by_cell.csv")


def correlations_table_html(correlations: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Return the table of the frame of correlate_measures; titles: {measure: title}."""
    columns = ["measure", "outcome", "way", "family", "Spearman's ρ", "95 % interval", "settings", "norms", "cells"]
    columns += ["p", "p (Holm)"]
    rows = [
        [
            titles[row["measure"]],
            row["outcome"],
            row["way"],
            row["family"],
            numeric_cell(row["value"], 3),
            format_interval(row["low"], row["high"], 2),
            *(numeric_cell(row[name]) for name in ("n_settings", "n_norms", "n_cells")),
            (format_p_value(row["p"]), format_number(row["p"], 6)),
            (format_p_value(row["p_holm"]), format_number(row["p_holm"], 6)),
        ]
        for row in correlations.to_dict("records")
    ]
    return table_html(columns, rows, numeric=("Spearman's ρ", *columns[6:]), csv="tables/correlations.csv")


def baseline_table_html(differences: pd.DataFrame) -> str:
    """Return the table of the frame of differences_to."""
    columns = ["network", "norm", "minus", "at", "pairs", "difference (points)", "95 % interval", "verdict"]
    columns.append("seeds for ±1 point")
    rows = [
        [
            *(row[name] for name in ("network", "norm", "baseline", "at")),
            numeric_cell(row["n"]),
            numeric_cell(row["difference"], 3),
            format_interval(row["low"], row["high"]),
            row["verdict"],
            numeric_cell(row["seeds_needed"]),
        ]
        for row in differences.to_dict("records")
    ]
    said = (
        "<p>Paired by cell and seed. “Within chance”: neither a difference nor its absence is shown. “Equivalent”: the "
        "interval lies within ±1 point. The last column is the number of seeds with which a difference of 1 point "
        "would be found in four of five cases.</p>"
    )
    return said + table_html(
        columns, rows, numeric=("pairs", "difference (points)", "seeds for ±1 point"), csv="tables/baseline.csv"
    )


def claims_table_html(claims: pd.DataFrame) -> str:
    """Return the table of the frame of compare_claims."""
    columns = ["claim", "by", "under", "here", "compared", "value (positive: as claimed)", "95 % interval", "n", "p"]
    columns.append("verdict")
    rows = [
        [
            *(row[name] for name in ("claim", "source", "conditions", "where", "compared")),
            format_number(row["value"]),
            format_interval(row["low"], row["high"], 2),
            row["n"],
            format_p_value(row["p"]),
            row["verdict"],
        ]
        for row in claims.to_dict("records")
    ]
    said = "<p>n counts norms, or groupings. p values are not adjusted for the number of claims.</p>"
    return said + table_html(columns, rows, csv="tables/claims.csv")


def granulated_table_html(granulated: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Return the table of the frame of granulated_table; titles: {measure: title}."""
    axes = [name for name in granulated.columns if name.startswith("ψ ")]
    numeric = ["Ψ", *(name.replace("Label", "norm") for name in axes)]
    columns = ["measure", "outcome", "Ψ", "95 % interval", *numeric[1:], "hyperparameter of lowest ψ", "of highest ψ"]
    rows = [
        [
            titles[row["measure"]],
            row["outcome"],
            numeric_cell(row["value"], 3),
            format_interval(row["low"], row["high"]),
            *(numeric_cell_with_error(row[name], " (n = {})", row[name.replace("ψ", "groups")]) for name in axes),
            str(row["lowest"]).replace("Label", "norm"),
            str(row["highest"]).replace("Label", "norm"),
        ]
        for row in granulated.to_dict("records")
    ]
    return table_html(columns, rows, numeric, csv="tables/granulated.csv")


def runs_table_html(runs: pd.DataFrame, files_of_runs: Mapping[str, tuple[str, Sequence[str]]], csv: str) -> str:
    """Return the table of all runs with links to their files: {run: (path of its folder, names of existing files)}.

    csv: the path of the table of runs, relative to the page.
    """
    columns = ["network", "norm", "data", "batch", "momentum & decay", "SkipInit", "seed", "status", "test acc. (%)"]
    columns += ["train acc. (%)", "ratio", "trace ± s.e.", "λ_max (residual)", "class similarity", "files"]
    rows = []
    for row in runs.to_dict("records"):
        path, files = files_of_runs.get(row.get("run"), ("", []))
        links = " ".join(
            f'<a href="{quote(path)}/{quote(name)}">{escaped(name.partition(".")[0])}</a>' for name in files
        )
        ended = row.get("status") or {True: "done", False: "failed"}.get(row["Success"], "")
        rows.append(
            [
                row["Model"],
                row["Label"],
                row["Dataset"],
                numeric_cell(row["Batch Size"]),
                ON_OR_OFF.get(row["Mom & WD"], ""),
                ON_OR_OFF.get(row["SkipInit"], ""),
                numeric_cell(row["seed"]),
                "failed" if row["has_failed"] and ended == "done" else ended,
                *(numeric_cell(row[name]) for name in ("Test Accuracy", "Train Accuracy", "Gen. Ratio")),
                numeric_cell_with_error(row["Trace"], " ± {}", row.get("trace_standard_error")),
                numeric_cell_with_error(row["Max Eigen"], " ({})", row.get("max_eigen_residual")),
                numeric_cell(row["Class Similarity"]),
                RawHTML(links),
            ]
        )
    search = (
        f'<p><label>Filter: <input id="filter" placeholder="words in a row, such as vgg batchnorm 256"></label> '
        f'<span id="shown">{len(rows)}</span> of {len(rows)} runs</p>'
    )
    return search + table_html(columns, rows, numeric=("batch", "seed", *columns[8:14]), identity="runs-table", csv=csv)

"""The tables of the page: which columns each one shows."""

from collections.abc import Mapping, Sequence
from urllib.parse import quote

import pandas as pd

from normstudy.report.explanations import NOTES
from normstudy.report.html_table import (
    Column,
    csv_link,
    interval,
    number,
    number_with_error,
    on_or_off,
    p_value,
    table_html,
    text,
)
from normstudy.report.page import RawHTML, escaped, format_fixed, format_interval, note_html
from normstudy.report.tables import OUTCOMES, Row

BASELINE_COLUMNS = (
    text("network"),
    text("norm"),
    text("minus", "baseline"),
    text("at"),
    number("pairs", "n"),
    number("difference (points)", "difference", 3),
    interval("95 % interval"),
    text("verdict"),
    number("seeds for ±1 point", "seeds_needed"),
)
VERDICTS = ("agrees", "does not agree", "inconclusive")
CLAIM_COLUMNS = (
    text("compared"),
    text("here", "where"),
    number("value (positive: as claimed)", "value", 3),
    interval("95 % interval", digits=2),
    number("n"),
    p_value("p"),
    text("verdict"),
)
ORDER_COLUMNS = (
    text("cell"),
    text("order in these runs", "order here"),
    text("order in the other table", "order there"),
    number("norms"),
    number("Kendall's τ", "tau", 3),
    p_value("p"),
    text("verdict"),
)


def ranking_table_html(ranks: pd.DataFrame, label: str) -> str:
    """Return the table of a frame of rank_norms or rank_labels; the column `label` holds the names that are ranked."""
    columns = (
        text(label),
        number("n"),
        number("failed"),
        number("advantage (points)", "advantage", 3),
        interval("95 % interval"),
        interval("95 % interval of the rank", "rank_low", "rank_high"),
    )
    return table_html(ranks, columns, csv="tables/ranking.csv" if label == "norm" else "tables/groupings.csv")


def cells_table_html(cells: pd.DataFrame) -> str:
    """Return the table of the frame of summarize_cells."""
    is_number = {name: name in ("n", "failed") or name.endswith(("mean", "s.d.", "error")) for name in cells.columns}
    columns = [number(name) if is_number[name] else text(name) for name in cells.columns]
    return table_html(cells, columns, csv="tables/by_cell.csv")


def correlations_table_html(correlations: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Return the table of the frame of correlate_measures, without coefficients of no settings.

    titles: {measure: title}.
    """
    columns = (
        Column("measure", lambda row: titles[row["measure"]]),
        text("outcome"),
        text("way"),
        text("family"),
        number("Spearman's ρ", "value", 3),
        interval("95 % interval", digits=2),
        number("settings", "n_settings"),
        number("norms", "n_norms"),
        number("cells", "n_cells"),
        p_value("p"),
        p_value("p (Holm)", "p_holm"),
    )
    return table_html(correlations[correlations["n_settings"] > 0], columns, csv="tables/correlations.csv")


def baseline_table_html(differences: pd.DataFrame) -> str:
    """Return the table of the frame of differences_to."""
    return note_html(NOTES["baseline"]) + table_html(differences, BASELINE_COLUMNS, csv="tables/baseline.csv")


def claims_html(claims: pd.DataFrame) -> str:
    """Return a block for each claim in the frame of compare_claims: what it says, a sum of the verdicts, its table."""
    blocks = []
    for (says, source, conditions), rows in claims.groupby(["claim", "source", "conditions"], sort=False):
        counts = {words: int(rows["verdict"].str.startswith(words).sum()) for words in VERDICTS}
        verdicts = ", ".join(f"{count} {words}" for words, count in counts.items() if count)
        about = f"Claimed by {source} ({conditions}). Comparisons here: {verdicts}."
        blocks.append(f"<h3>{escaped(says)}</h3>{note_html(about)}{table_html(rows, CLAIM_COLUMNS)}")
    return note_html(NOTES["claims"]) + "".join(blocks) + csv_link("tables/claims.csv")


def granulated_table_html(granulated: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Return the table of the frame of granulated_table; titles: {measure: title}."""
    axes = [name for name in granulated.columns if name.startswith("ψ ")]
    columns = (
        Column("measure", lambda row: titles[row["measure"]]),
        text("outcome"),
        number("Ψ", "value", 3),
        interval("95 % interval"),
        *(number_with_error(_axis_title(name), name, name.replace("ψ", "groups"), " (n = {})") for name in axes),
        Column("hyperparameter of lowest ψ", lambda row: _axis_title(row["lowest"])),
        Column("of highest ψ", lambda row: _axis_title(row["highest"])),
    )
    return table_html(granulated, columns, csv="tables/granulated.csv")


def _axis_title(name: object) -> str:
    return str(name).replace("Label", "norm")


def comparison_html(orders: pd.DataFrame, signs: pd.DataFrame, titles: Mapping[str, str]) -> str:
    """Return the tables of both frames of compare_tables; titles: {measure: title}."""
    if orders.empty:
        return note_html(NOTES["no shared cell"])
    page = note_html(NOTES["orders"]) + table_html(orders, ORDER_COLUMNS, csv="tables/orders.csv")
    if signs.empty:
        return page + note_html(NOTES["no shared measure"])
    columns = (
        Column("measure", lambda row: titles[row["measure"]]),
        Column("outcome", lambda row: OUTCOMES[row["outcome"]]),
        Column("ρ in these runs (95 % interval; n norms)", lambda row: _rho(row, "here")),
        Column("ρ in the other table", lambda row: _rho(row, "there")),
        text("sign", "verdict"),
    )
    return page + note_html(NOTES["signs"]) + table_html(signs, columns, csv="tables/signs.csv")


def _rho(row: Row, where: str) -> str:
    rho, low, high, n = (row[f"{name} {where}"] for name in ("rho", "low", "high", "n"))
    return f"{format_fixed(rho)} ({format_interval(low, high, 2)}; n = {n})"


def runs_table_html(
    runs: pd.DataFrame, files_of_runs: Mapping[str, tuple[str, Sequence[str]]], words: Sequence[str], csv: str
) -> str:
    """Return the table of all runs with links to their files: {run: (path of its folder, names of existing files)}.

    words: for each run, more words that the filter finds. csv: the path of the table of runs, relative to the page.
    Columns without any value are left out.
    """
    columns = (
        text("network", "Model"),
        text("norm", "Label"),
        Column("files", lambda row: _links(*files_of_runs.get(str(row.get("run")), ("", ())))),
        text("data", "Dataset"),
        number("batch", "Batch Size"),
        on_or_off("momentum & decay", "Mom & WD"),
        on_or_off("SkipInit", "SkipInit"),
        number("seed"),
        Column("status", _status),
        number("test acc. (%)", "Test Accuracy"),
        number("train acc. (%)", "Train Accuracy"),
        number("ratio", "Gen. Ratio"),
        number_with_error("trace ± s.e.", "Trace", "trace_standard_error", " ± {}"),
        number_with_error("λ_max (residual)", "Max Eigen", "max_eigen_residual", " ({})"),
        number("class similarity", "Class Similarity"),
    )
    rows = runs.to_dict("records")
    used = [column for column in columns if any(column.cell(row) not in ("", ("", "")) for row in rows)]
    search = (
        f'<p><label>Filter: <input id="filter" placeholder="words in a row, such as vgg batchnorm"></label> '
        f'<span id="shown">{len(runs)}</span> of {len(runs)} runs</p>'
    )
    return search + table_html(runs, used, identity="runs-table", csv=csv, words=words)


def _status(row: Row) -> str:
    ended = row.get("status") or {True: "done", False: "failed"}.get(row["Success"], "")
    if not row["has_failed"] or ended == "failed":
        return str(ended)
    return "failed" if ended == "done" else f"failed: {ended}"


def _links(folder: str, names: Sequence[str]) -> RawHTML:
    links = (f'<a href="{quote(folder)}/{quote(name)}">{escaped(name.partition(".")[0])}</a>' for name in names)
    return RawHTML(" ".join(links))

"""The tables of the page."""

from urllib.parse import quote

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


def ranking_table_html(ranks, label):
    columns = [(label, False), ("n", True), ("failed", True), ("mean test accuracy (%)", True)]
    columns += [("above its cells (points)", True), ("95 % interval", False), ("rank, 95 %", False)]
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
    return table_html(columns, rows)


def cells_table_html(cells):
    names = list(cells.columns)
    is_number = [name in ("n", "failed") or name.endswith(("mean", "s.d.")) for name in names]
    rows = [
        [numeric_cell(row[name]) if numbers else row[name] for name, numbers in zip(names, is_number, strict=True)]
        for row in cells.to_dict("records")
    ]
    return table_html(list(zip(names, is_number, strict=True)), rows)


def correlations_table_html(frame, titles):
    columns = [("measure", False), ("outcome", False), ("way", False), ("coefficient", False), ("value", True)]
    columns += [("95 % interval", False), ("n", True), ("p", True), ("p (Holm)", True)]
    rows = [
        [
            titles[row["measure"]],
            row["outcome"],
            row["way"],
            row["coefficient"],
            numeric_cell(row["value"], 3),
            format_interval(row["low"], row["high"]),
            numeric_cell(row["n"]),
            (format_p_value(row["p"]), format_number(row["p"], 6)),
            (format_p_value(row["p_holm"]), format_number(row["p_holm"], 6)),
        ]
        for row in frame.to_dict("records")
    ]
    return table_html(columns, rows)


def granulated_table_html(frame, titles):
    axes = [name for name in frame.columns if name.startswith("ψ ")]
    columns = [("measure", False), ("outcome", False), ("Ψ", True), ("95 % interval", False)]
    columns += [(name.replace("Label", "norm"), True) for name in axes] + [("lowest ψ", False), ("highest ψ", False)]
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
        for row in frame.to_dict("records")
    ]
    return table_html(columns, rows)


def runs_table_html(table, folders):
    """Every run with its numbers, and links to its files where they are there. folders: {run: (path, [file])}."""
    columns = [("network", False), ("norm", False), ("data", False), ("batch", True), ("mom. & w.d.", False)]
    columns += [
        ("skipinit", False),
        ("seed", True),
        ("ended", False),
        ("test acc. (%)", True),
        ("train acc. (%)", True),
    ]
    columns += [("ratio", True), ("trace ± s.e.", True), ("λ_max (residual)", True), ("class sim.", True)]
    columns.append(("files", False))
    rows = []
    for row in table.to_dict("records"):
        path, files = folders.get(row.get("run"), ("", []))
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
                {True: "on", False: "off"}.get(row["Mom & WD"], ""),
                {True: "on", False: "off"}.get(row["SkipInit"], ""),
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
        f'<p><label>Filter: <input id="filter" placeholder="words, such as: vgg batchnorm 256"></label> '
        f'<span id="shown">{len(rows)}</span> of {len(rows)} runs</p>'
    )
    return search + table_html(columns, rows, "runs")

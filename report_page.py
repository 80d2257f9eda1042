"""The page of the report: one HTML file that needs no network, made of findings and pictures."""

import base64
import html
import math
from urllib.parse import quote

import numpy as np

WIDE = 24  # characters from which a cell is broken into lines
STYLE = """
body{font:15px/1.5 system-ui,sans-serif;margin:0 auto;max-width:1180px;padding:1rem 1.2rem 4rem;color:#1a1a1a}
h1{font-size:1.7rem}h2{margin-top:2.4rem;border-bottom:1px solid #ccc}figure{margin:1.2rem 0}img{max-width:100%}
figcaption{color:#444;font-size:.9rem}table{border-collapse:collapse;font-size:.86rem;margin:.6rem 0}
th,td{padding:.18rem .55rem;border-bottom:1px solid #e3e3e3;text-align:left}
td{white-space:nowrap}td.w{white-space:normal;min-width:10rem}td.n,th.n{text-align:right;font-variant-numeric:tabular-nums}
th{background:#f4f4f4;position:sticky;top:0}th[aria-sort]{background:#e2ecf7}
th button{all:unset;cursor:pointer}th button:focus-visible{outline:2px solid #0072b2}
.scroll{overflow:auto;max-height:70vh;border:1px solid #ddd}.summary li{margin:.5rem 0}.note{color:#555}
summary{cursor:pointer;margin:.6rem 0}input{font:inherit;padding:.25rem .5rem;width:22rem;max-width:90%}
@media print{.scroll{max-height:none;overflow:visible}input{display:none}}
"""
SCRIPT = """
for (const table of document.querySelectorAll('table.sortable')) {
  const body = table.tBodies[0];
  table.querySelectorAll('th').forEach((head, column) => head.querySelector('button').onclick = () => {
    const up = head.getAttribute('aria-sort') !== 'ascending';
    table.querySelectorAll('th').forEach(other => other.removeAttribute('aria-sort'));
    head.setAttribute('aria-sort', up ? 'ascending' : 'descending');
    const key = row => row.cells[column].dataset.v ?? row.cells[column].textContent;
    const is_number = head.classList.contains('n');
    const rows = [...body.rows].map(row => [key(row), row]);
    rows.sort(([a], [b]) => {
      if (a === '' || b === '') return (a === '') - (b === '');
      return (is_number ? a - b : a.localeCompare(b)) * (up ? 1 : -1);
    });
    body.append(...rows.map(([, row]) => row));
  });
}
const filter = document.getElementById('filter');
if (filter) filter.oninput = () => {
  const words = filter.value.toLowerCase().split(/\\s+/).filter(Boolean);
  let shown = 0;
  for (const row of document.querySelectorAll('#runs tbody tr')) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
    shown += !row.hidden;
  }
  document.getElementById('shown').textContent = shown;
};
"""


def escaped(value):
    return html.escape(str(value))


def number(value, digits=3):
    """A number for people: digits significant ones, nothing for what is not there."""
    if value is None or value != value:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "on" if value else "off"
    if isinstance(value, float) and math.isfinite(value) and value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def p_value(p):
    return "" if p != p else "< 0.001" if p < 0.001 else f"{p:.2g}"


def table_of(columns, rows, identity=""):
    """A sortable table. columns: [(title, is numeric)]; a cell is text, (shown, sorted by), or Raw HTML."""
    heads = "".join(
        f'<th scope="col"{" class=n" * is_number}><button>{escaped(title)}</button></th>'
        for title, is_number in columns
    )
    lines = []
    for row in rows:
        cells = []
        for cell, (_, is_number) in zip(row, columns, strict=True):
            shown, key = cell if isinstance(cell, tuple) else (cell, None)
            is_wide = not isinstance(shown, Raw) and len(str(shown)) > WIDE
            shown = shown if isinstance(shown, Raw) else escaped(shown)
            by = f' data-v="{escaped(key)}"' if key is not None else ""
            kind = " class=n" if is_number else " class=w" if is_wide else ""
            cells.append(f"<td{kind}{by}>{shown}</td>")
        lines.append(f"<tr>{''.join(cells)}</tr>")
    mark = f' id="{identity}"' if identity else ""
    return (
        f'<div class="scroll"><table class="sortable"{mark}><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


class Raw(str):
    """HTML that is not to be escaped."""


def numeric(value, digits=4):
    """A cell of a numeric column: shown short, sorted in full."""
    shown = number(value, digits)
    return shown, "" if shown == "" else float(value)


def _with_error(value, words, error):
    """The same with an error, a number or its text, behind it where there is one."""
    shown, key = numeric(value)
    error = float(error or "nan")
    return (shown if shown == "" or error != error else shown + words.format(number(error, 2))), key


def interval(low, high, digits=3):
    return "" if low != low else f"{number(low, digits)} to {number(high, digits)}"


def picture(path, words):
    """A figure with its picture inside the page."""
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escaped(words)}" src="data:image/png;base64,{content}">'
        f"<figcaption>{escaped(words)}</figcaption></figure>"
    )


def details(title, content):
    return f"<details><summary>{escaped(title)}</summary>{content}</details>"


def listed(items):
    return f"<ul>{''.join(f'<li>{escaped(item)}</li>' for item in items)}</ul>"


def ranking_table(ranks, label):
    columns = [(label, False), ("n", True), ("failed", True), ("mean test accuracy (%)", True)]
    columns += [("above its cells (points)", True), ("95 % interval", False), ("rank, 95 %", False)]
    rows = [
        [
            row[label],
            numeric(row["n"]),
            numeric(row["failed"]),
            numeric(row["mean"]),
            numeric(row["advantage"], 3),
            interval(row["low"], row["high"]),
            interval(row["rank_low"], row["rank_high"]),
        ]
        for row in ranks.to_dict("records")
    ]
    return table_of(columns, rows)


def cells_table(cells):
    names = list(cells.columns)
    is_number = [name in ("n", "failed") or name.endswith(("mean", "s.d.")) for name in names]
    rows = [
        [numeric(row[name]) if numbers else row[name] for name, numbers in zip(names, is_number, strict=True)]
        for row in cells.to_dict("records")
    ]
    return table_of(list(zip(names, is_number, strict=True)), rows)


def correlations_table(frame, titles):
    columns = [("measure", False), ("outcome", False), ("way", False), ("coefficient", False), ("value", True)]
    columns += [("95 % interval", False), ("n", True), ("p", True), ("p (Holm)", True)]
    rows = [
        [
            titles[row["measure"]],
            row["outcome"],
            row["way"],
            row["coefficient"],
            numeric(row["value"], 3),
            interval(row["low"], row["high"]),
            numeric(row["n"]),
            (p_value(row["p"]), number(row["p"], 6)),
            (p_value(row["p_holm"]), number(row["p_holm"], 6)),
        ]
        for row in frame.to_dict("records")
    ]
    return table_of(columns, rows)


def granulated_rows(frame, titles):
    axes = [name for name in frame.columns if name.startswith("ψ ")]
    columns = [("measure", False), ("outcome", False), ("Ψ", True), ("95 % interval", False)]
    columns += [(name.replace("Label", "norm"), True) for name in axes] + [("lowest ψ", False), ("highest ψ", False)]
    rows = [
        [
            titles[row["measure"]],
            row["outcome"],
            numeric(row["value"], 3),
            interval(row["low"], row["high"]),
            *(_with_error(row[name], " (n = {})", row[name.replace("ψ", "groups")]) for name in axes),
            str(row["lowest"]).replace("Label", "norm"),
            str(row["highest"]).replace("Label", "norm"),
        ]
        for row in frame.to_dict("records")
    ]
    return table_of(columns, rows)


def runs_table(table, folders):
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
                numeric(row["Batch Size"]),
                {True: "on", False: "off"}.get(row["Mom & WD"], ""),
                {True: "on", False: "off"}.get(row["SkipInit"], ""),
                numeric(row["seed"]),
                "failed" if row["has_failed"] and ended == "done" else ended,
                *(numeric(row[name]) for name in ("Test Accuracy", "Train Accuracy", "Gen. Ratio")),
                _with_error(row["Trace"], " ± {}", row.get("trace_standard_error")),
                _with_error(row["Max Eigen"], " ({})", row.get("max_eigen_residual")),
                numeric(row["Class Similarity"]),
                Raw(links),
            ]
        )
    search = (
        f'<p><label>Filter: <input id="filter" placeholder="words, such as: vgg batchnorm 256"></label> '
        f'<span id="shown">{len(rows)}</span> of {len(rows)} runs</p>'
    )
    return search + table_of(columns, rows, "runs")


def page(title, sections, versions):
    """The whole page. sections: [(heading, HTML)]."""
    body = "".join(f"<section><h2>{escaped(heading)}</h2>{content}</section>" for heading, content in sections)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">
<title>{escaped(title)}</title><style>{STYLE}</style></head>
<body><h1>{escaped(title)}</h1>{body}
<footer class="note"><p>{escaped(versions)}</p></footer><script>{SCRIPT}</script></body></html>
"""

"""The page of the report: one HTML file, made of sections, that loads nothing else."""

import base64
import html
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

WIDE = 24  # table cells with more characters than this may wrap
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


class RawHTML(str):
    """HTML that must not be escaped."""


def escaped(value: object) -> str:
    """Return the text of a value with HTML's special characters escaped."""
    return html.escape(str(value))


def format_number(value: object, digits: int = 3) -> str:
    """Format a number with `digits` significant digits, a missing value as "", and a truth value as "on" or "off"."""
    if value is None or value != value:
        return ""
    if isinstance(value, (bool, np.bool_)):
        return "on" if value else "off"
    if isinstance(value, float) and math.isfinite(value) and value == round(value) and abs(value) < 1e6:
        return f"{value:.0f}"
    return f"{value:.{digits}g}" if isinstance(value, float) else str(value)


def format_p_value(p: float) -> str:
    """Format a p value; NaN gives an empty text."""
    return "" if p != p else "< 0.001" if p < 0.001 else f"{p:.2g}"


def format_interval(low: float, high: float, digits: int = 3) -> str:
    """Format an interval as "low to high"; NaN gives an empty text."""
    return "" if low != low else f"{format_number(low, digits)} to {format_number(high, digits)}"


def format_count(count: int, noun: str) -> str:
    """Format a count with its noun in the singular or plural."""
    return f"{count} {noun}" + "s" * (count != 1)


def numeric_cell(value: float, digits: int = 4) -> tuple[str, object]:
    """Return a numeric table cell: the rounded text that is shown, and the full value that it is sorted by."""
    shown = format_number(value, digits)
    return shown, "" if shown == "" else float(value)


def numeric_cell_with_error(value: float, words: str, error: float | str | None) -> tuple[str, object]:
    """Return a numeric table cell; an error is appended to the value, formatted by `words` such as " ± {}"."""
    shown, key = numeric_cell(value)
    error = float(error or "nan")
    return (shown if shown == "" or error != error else shown + words.format(format_number(error, 2))), key


def table_html(
    columns: Sequence[str], rows: Iterable[Sequence[object]], numeric: Iterable[str] = (), identity: str = ""
) -> str:
    """Return a sortable table; the columns in `numeric` sort by number. A cell is text, RawHTML or (text, sort key)."""
    is_numeric = [title in set(numeric) for title in columns]
    heads = "".join(
        f'<th scope="col"{" class=n" * is_number}><button>{escaped(title)}</button></th>'
        for title, is_number in zip(columns, is_numeric, strict=True)
    )
    lines = []
    for row in rows:
        cells = "".join(_cell_html(*pair) for pair in zip(row, is_numeric, strict=True))
        lines.append(f"<tr>{cells}</tr>")
    mark = f' id="{identity}"' if identity else ""
    return (
        f'<div class="scroll"><table class="sortable"{mark}><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def _cell_html(cell: object, is_number: bool) -> str:
    shown, key = cell if isinstance(cell, tuple) else (cell, None)
    is_wide = not isinstance(shown, RawHTML) and len(str(shown)) > WIDE
    content = shown if isinstance(shown, RawHTML) else escaped(shown)
    by = f' data-v="{escaped(key)}"' if key is not None else ""
    kind = " class=n" if is_number else " class=w" if is_wide else ""
    return f"<td{kind}{by}>{content}</td>"


def picture_html(path: Path, caption: str) -> str:
    """Return a figure with the picture embedded in the page."""
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><img alt="{escaped(caption)}" src="data:image/png;base64,{content}">'
        f"<figcaption>{escaped(caption)}</figcaption></figure>"
    )


def details_html(title: str, content: str) -> str:
    """Return HTML that is folded under its title."""
    return f"<details><summary>{escaped(title)}</summary>{content}</details>"


def list_html(items: Iterable[str]) -> str:
    """Return the texts as a bulleted list."""
    return f"<ul>{''.join(f'<li>{escaped(item)}</li>' for item in items)}</ul>"


def render_page(title: str, sections: Iterable[tuple[str, str]], versions: str) -> str:
    """Return the page, built from the (heading, HTML) of each section; `versions` is the text of the footer."""
    body = "".join(f"<section><h2>{escaped(heading)}</h2>{content}</section>" for heading, content in sections)
    policy = "default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'unsafe-inline'"
    return f"""<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width">
<meta http-equiv="Content-Security-Policy" content="{policy}"><link rel="icon" href="data:,">
<title>{escaped(title)}</title><style>{STYLE}</style></head>
<body><h1>{escaped(title)}</h1>{body}
<footer class="note"><p>{escaped(versions)}</p></footer><script>{SCRIPT}</script></body></html>
"""

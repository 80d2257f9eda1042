"""The page of the report: one HTML file, made of sections, that loads nothing else."""

import base64
import html
import math
import re
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

WIDE = 24  # table cells with more characters than this may wrap
TEMPLATES = Path(__file__).parent / "templates"
SCRIPTS = ("tables.js", "explorer.js")


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
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    numeric: Iterable[str] = (),
    identity: str = "",
    csv: str = "",
) -> str:
    """Return a sortable table; the columns in `numeric` sort by number. A cell is text, RawHTML or (text, sort key).

    csv: the path, relative to the page, of the file with the same numbers.
    """
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
    link = f'<p class="csv"><a href="{escaped(csv)}">{escaped(csv)}</a></p>' if csv else ""
    return (
        f'<div class="scroll"><table class="sortable"{mark}><thead><tr>{heads}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{link}"
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


def render(template: str, **values: object) -> str:
    """Render a file of the folder templates; values are escaped, except where it says otherwise."""
    import jinja2

    loader = jinja2.FileSystemLoader(TEMPLATES, encoding="utf-8")
    environment = jinja2.Environment(
        loader=loader, autoescape=True, undefined=jinja2.StrictUndefined, keep_trailing_newline=True
    )
    return environment.get_template(template).render(values)


def anchor_of(heading: str) -> str:
    """Return the name by which a section is linked: its words before the first comma or parenthesis."""
    words = re.split(r"[,(]", heading)[0].strip().lower()
    return re.sub(r"\W+", "-", words)


def render_page(title: str, sections: Iterable[tuple[str, str]], origin: str, libraries: Iterable[str] = ()) -> str:
    """Return the page, built from the (heading, HTML) of each section.

    origin: the text of the footer. libraries: JavaScript that the page's own scripts need.
    """
    parts = [{"anchor": anchor_of(heading), "heading": heading, "content": content} for heading, content in sections]
    style, *scripts = ((TEMPLATES / name).read_text(encoding="utf-8") for name in ("style.css", *SCRIPTS))
    return render("page.html", title=title, sections=parts, origin=origin, style=style, scripts=[*libraries, *scripts])

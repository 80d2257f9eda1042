"""Sortable HTML tables, declared by their columns."""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import pandas as pd

from normstudy.report.page import RawHTML, escaped, format_interval, format_number, format_p_value
from normstudy.report.tables import Row

WIDE = 24  # table cells with more characters than this may wrap
ON_OR_OFF = {True: "on", False: "off"}


class Column(NamedTuple):
    """A column of a table: its title, and the cell of a row, which is text, RawHTML or (text, key to sort by).

    is_number: whether the column is sorted as numbers.
    """

    title: str
    cell: Callable[[Row], object]
    is_number: bool = False


def text(title: str, name: str | None = None) -> Column:
    """Return a column of texts, from the frame's column `name` (the title if None)."""
    return Column(title, lambda row: row[name or title])


def number(title: str, name: str | None = None, digits: int = 4) -> Column:
    """Return a column of numbers, rounded to `digits` significant digits and sorted by their full values."""
    return Column(title, lambda row: _numeric_cell(row[name or title], digits), is_number=True)


def number_with_error(title: str, name: str, error: str, words: str) -> Column:
    """Return a column of numbers; an error, if the row has one, is appended, formatted by `words` such as " ± {}"."""

    def cell(row: Row) -> tuple[str, object]:
        shown, key = _numeric_cell(row[name], 4)
        size = float(row.get(error) or "nan")
        return (shown if shown == "" or size != size else shown + words.format(format_number(size, 2))), key

    return Column(title, cell, is_number=True)


def interval(title: str, low: str = "low", high: str = "high", digits: int = 3) -> Column:
    """Return a column of intervals, each of two columns of the frame."""
    return Column(title, lambda row: format_interval(row[low], row[high], digits))


def p_value(title: str, name: str | None = None) -> Column:
    """Return a column of p values."""

    def cell(row: Row) -> tuple[str, object]:
        p = row[name or title]
        return format_p_value(p), "" if p != p else float(p)

    return Column(title, cell, is_number=True)


def on_or_off(title: str, name: str) -> Column:
    """Return a column of truth values; an unknown one is empty."""
    return Column(title, lambda row: ON_OR_OFF.get(row[name], ""))


def _numeric_cell(value: float, digits: int) -> tuple[str, object]:
    shown = format_number(value, digits)
    return shown, "" if shown == "" else float(value)


def table_html(
    frame: pd.DataFrame,
    columns: Sequence[Column],
    identity: str = "",
    csv: str = "",
    words: Sequence[str] = (),
) -> str:
    """Return a sortable table of the frame's rows.

    csv: the path, relative to the page, of the file with the same numbers. words: for each row, more words that a
    filter finds.
    """
    heads = "".join(
        f'<th scope="col"{" class=n" * column.is_number}><button>{escaped(column.title)}</button></th>'
        for column in columns
    )
    rows = frame.to_dict("records")
    lines = ["".join(_cell_html(column.cell(row), column.is_number) for column in columns) for row in rows]
    marks = [f' data-words="{escaped(each)}"' for each in words] or [""] * len(lines)
    body = "".join(f"<tr{mark}>{line}</tr>" for mark, line in zip(marks, lines, strict=True))
    mark = f' id="{identity}"' if identity else ""
    link = csv_link(csv) if csv else ""
    return (
        f'<div class="scroll"><table class="sortable"{mark}><thead><tr>{heads}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>{link}"
    )


def csv_link(path: str) -> str:
    """Return a link to a CSV file, whose path is relative to the page."""
    return f'<p class="csv"><a href="{escaped(path)}">{escaped(path)}</a></p>'


def _cell_html(cell: object, is_number: bool) -> str:
    shown, key = cell if isinstance(cell, tuple) else (cell, None)
    is_wide = not isinstance(shown, RawHTML) and len(str(shown)) > WIDE
    content = shown if isinstance(shown, RawHTML) else escaped(shown)
    by = f' data-v="{escaped(key)}"' if key is not None else ""
    kind = " class=n" if is_number else " class=w" if is_wide else ""
    return f"<td{kind}{by}>{content}</td>"

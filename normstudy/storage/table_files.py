"""Reading tables of runs, also as spreadsheet programs save them: other separators, encodings and line ends."""

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path

from normstudy.cli import RunError
from normstudy.storage.table_cells import as_written_here, is_foreign

SEPARATORS = (",", ";", "\t")
BYTE_ORDER_MARKS = {b"\xef\xbb\xbf": "utf-8-sig", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
AS_CSV = "save it as CSV (UTF-8)"


@dataclass(frozen=True)
class TextTable:
    """A table as text: the names of its columns, and its rows with a cell for each column.

    is_own: whether the file has the form in which this program writes tables. is_whole: whether every line of the file
    was complete.
    """

    header: list[str]
    rows: list[list[str]]
    separator: str
    is_own: bool
    is_whole: bool

    def to_csv(self) -> str:
        """Return the table as this program writes it."""
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerows([self.header, *self.rows])
        return text.getvalue()


def read_table(path: Path) -> TextTable:
    """Return a table of runs with decimal points, and with True and False.

    Raises RunError, which says what to do, if the table cannot be read without guessing.
    """
    table = parse_table(path)
    return replace(table, rows=as_written_here(path, table.header, table.rows, table.separator == ","))


def parse_table(path: Path) -> TextTable:
    """Return a table of runs with its cells as they are in the file. Raises RunError."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise RunError(f"{path} cannot be read as a table ({error.strerror}); give a CSV table of runs") from None
    text, is_plain = _decoded(path, content)
    separator = max(SEPARATORS, key=text.lstrip().splitlines()[0].count)
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter=separator))
    except csv.Error as error:
        raise RunError(f"{path} cannot be read as a table ({error}); {AS_CSV}") from None
    header, rows = _rectangle(path, lines)
    is_own = is_plain and separator == "," and not text.partition("\n")[0].endswith("\r")
    is_own = is_own and header == lines[0] and len(rows) == len(lines) - 1 and not is_foreign(header, rows)
    is_whole = text.endswith("\n") and all(len(line) == len(lines[0]) for line in lines)
    return TextTable(header, rows, separator, is_own, is_whole)


def _decoded(path: Path, content: bytes) -> tuple[str, bool]:
    """Return the text of a file, and whether it is UTF-8 without a byte order mark."""
    if content.startswith(b"PK"):
        raise RunError(f"{path} is a workbook of a spreadsheet program; {AS_CSV}")
    marked = next((name for mark, name in BYTE_ORDER_MARKS.items() if content.startswith(mark)), None)
    for encoding in (marked,) if marked else ("utf-8", "cp1252"):
        try:
            text = content.decode(encoding)
        except UnicodeDecodeError:
            continue
        if "\0" not in text and text.strip():
            return text, encoding == "utf-8"
        break
    raise RunError(f"{path} is not a table of text; {AS_CSV}")


def _rectangle(path: Path, lines: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows, without empty rows and columns without a name; short rows are filled up."""
    filled = [(number, line) for number, line in enumerate(lines, 1) if any(cell.strip() for cell in line)]
    if not filled:
        raise RunError(f"{path} is an empty table; give a CSV table of runs")
    names = [name.strip() for name in filled[0][1]]
    places = [place for place, name in enumerate(names) if name]
    header = [names[place] for place in places]
    twice = next((name for name in header if header.count(name) > 1), None)
    if twice is not None:
        raise RunError(f"{path} has two columns with the name {twice!r}; rename one of them")
    rows = []
    for number, line in filled[1:]:
        if any(cell.strip() for cell in line[len(names) :]):
            raise RunError(f"{path}: line {number} has more cells than the header; {AS_CSV} again")
        cells = [*line, *[""] * len(names)]
        rows.append([cells[place] for place in places])
    return header, rows

"""The cells of a table of runs: numbers and booleans as this program writes them, also if another program saved them.

A decimal comma must never be taken for a separator of thousands, nor the reverse. So a number such as 1,234 is read
only if other cells show which of the two its comma is.
"""

import dataclasses
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import get_args

from config import Config
from normstudy.cli import RunError
from normstudy.storage.results_columns import MEASUREMENT_COLUMNS, OTHER_KEYS, SETTING_COLUMNS

TRUE = ("true", "1", "1.0", "1,0", "wahr", "vrai", "verdadero", "vero", "waar", "yes", "ja")
FALSE = ("false", "0", "0.0", "0,0", "falsch", "faux", "falso", "onwaar", "no", "nein")
EMPTY = ("", "nan", "na", "n/a", "#n/a", "#nv", "none", "null", "-", "inf", "-inf", "infinity", "-infinity")
EXACT = re.compile(r"[+-]?\d+(?:[.,]0+)?")  # a whole number, also as a number with a fraction of 0
NUMBER = re.compile(r"[+-]?(?:\d+(?:[.,]\d*)?|[.,]\d+)(?:[eE][+-]?\d+)?")
AMBIGUOUS = re.compile(r"[+-]?[1-9]\d{0,2}[.,]\d{3}")  # a decimal number, or thousands
SETTING_TYPES = {field.name: field.type for field in dataclasses.fields(Config)}


def _kind(setting: str) -> type:
    """Return bool, int, float or str, the type of a setting that may also be None."""
    declared = SETTING_TYPES[setting]
    return next((each for each in get_args(declared) if each is not type(None)), declared)  # type: ignore[return-value]


KINDS: dict[str, type] = {  # {column: bool, int or float}; other columns are text
    **dict.fromkeys(("Mom & WD", "SkipInit", "Success", "reached_loss"), bool),
    **dict.fromkeys(("Batch Size", "train_samples", "test_samples"), int),
    **dict.fromkeys(("Trace", "Eigen Mean", "Eigen Variance", "Max Eigen", "Test Accuracy", "Class Similarity"), float),
    **dict.fromkeys(("Train Accuracy", "P Grouping", "Gen. Ratio", "val_fraction", "seconds"), float),
    **dict.fromkeys(("test_loss", "train_loss", "validation_accuracy", "validation_loss"), float),
    **{name: _kind(name) for name in SETTING_COLUMNS},
    **{
        name: int if name.endswith("_samples") else float for name in MEASUREMENT_COLUMNS if not name.endswith("_dtype")
    },
}


def kind_of(column: str) -> type:
    """Return the type of a column's values: bool, int, float, or str if it is text or unknown."""
    key = column.partition(":")[2]
    if key in OTHER_KEYS and key != "dtype":
        return int if key == "num_samples" else float
    return KINDS.get(column, str)


def is_foreign(header: Sequence[str], rows: Sequence[Sequence[str]]) -> bool:
    """Return whether cells show that another program saved the table: decimal commas, or booleans in other words."""
    for place, column in enumerate(header):
        kind = kind_of(column)
        cells = {row[place] for row in rows}
        if (kind is bool and cells - {"True", "False", ""}) or (
            kind in (int, float) and any("," in cell for cell in cells)
        ):
            return True
    return False


def as_written_here(
    path: Path, header: Sequence[str], rows: Sequence[Sequence[str]], has_commas: bool
) -> list[list[str]]:
    """Return the rows with numbers and booleans as this program writes them.

    has_commas: whether commas separate the cells, so that an unmarked number has a decimal point. Raises RunError that
    names the column of a cell that is not clear.
    """
    columns = [[row[place].strip() for row in rows] for place in range(len(header))]
    marks = [
        _decimal_marks(cells) if kind_of(name) is float else set() for name, cells in zip(header, columns, strict=True)
    ]
    of_table = set().union(*marks) or ({"."} if has_commas else set())
    for place, (name, cells) in enumerate(zip(header, columns, strict=True)):
        kind = kind_of(name)
        convert = {bool: _boolean, int: _whole, float: _decimal(marks[place] or of_table)}.get(kind)
        if convert is not None:
            columns[place] = _converted(path, name, cells, convert)
    return [list(row) for row in zip(*columns, strict=True)]


def _decimal_marks(cells: Iterable[str]) -> set[str]:
    """Return the decimal marks, . or , or both, of the numbers that can be read in one way only."""
    clear = {cell for cell in cells if NUMBER.fullmatch(cell) and not AMBIGUOUS.fullmatch(cell)}
    return {mark for mark in ".," if any(mark in cell for cell in clear)}


def _converted(path: Path, column: str, cells: Sequence[str], convert: Callable[[str], str]) -> list[str]:
    converted = []
    for cell in cells:
        try:
            converted.append("" if cell.lower() in EMPTY else convert(cell))
        except ValueError as error:
            raise RunError(
                f"{path}, column {column!r}: {cell!r} {error}; save the table with full numbers and without separators "
                "of thousands, or take the results.csv of the program"
            ) from None
    return converted


def _boolean(cell: str) -> str:
    word = cell.lower()
    if word not in (*TRUE, *FALSE):
        raise ValueError("is neither True nor False")
    return str(word in TRUE)


def _whole(cell: str) -> str:
    if not EXACT.fullmatch(cell) or AMBIGUOUS.fullmatch(cell):
        raise ValueError("is not a whole number")
    return str(int(re.split("[.,]", cell)[0]))


def _decimal(marks: set[str]) -> Callable[[str], str]:
    """Return a function that reads numbers with this decimal mark; marks: those that the column or the table shows."""

    def convert(cell: str) -> str:
        if not NUMBER.fullmatch(cell):
            raise ValueError("is not a number")
        mark = next((each for each in ".," if each in cell), None)
        if mark is not None and marks != {mark}:
            if AMBIGUOUS.fullmatch(cell):
                raise ValueError("may have a decimal mark or a separator of thousands")
            raise ValueError("has another decimal mark than other numbers")
        return str(float(cell.replace(",", ".")))

    return convert

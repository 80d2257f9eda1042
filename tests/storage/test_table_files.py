"""Tables of runs as spreadsheet programs save them: they are read as they were, or one line says what is not clear."""

import csv
import io
from pathlib import Path
from typing import Any

import pytest

import normstudy
from normstudy.cli import RunError
from normstudy.report import tables
from normstudy.storage import table_cells, table_files
from normstudy.storage.results_columns import COLUMNS

STUDY = Path(__file__).parents[2] / "results" / "cpu_study" / "results.csv"
MINIMAL = ["Model", "Norm", "Dataset", "Batch Size", "Test Accuracy", "Trace", "Success"]


def saved(
    source, target, *, separator=",", mark=".", words=("True", "False"), encoding="utf-8", line_end="\r\n", empty=0
):
    """Save a table as a spreadsheet program does, which also writes 1 for 1.0, and empty rows and a column."""
    header, *rows = csv.reader(io.StringIO(source.read_text(encoding="utf-8")))
    booleans = dict(zip(("True", "False"), words, strict=True))
    kinds = [table_cells.kind_of(name) for name in header]

    def cell(text, kind):
        if kind is float and text:
            return f"{float(text):.15g}".replace("e-0", "E-").replace(".", mark)
        return booleans.get(text, text)

    rows = [[cell(text, kind) for text, kind in zip(row, kinds, strict=True)] for row in rows]
    width = len(header) + (empty > 0)
    table = [header, *rows[:3], *[[""] * width] * empty, *rows[3:], *[[""] * width] * empty]
    table = [[*row, *[""] * (width - len(row))] for row in table]
    text = io.StringIO()
    csv.writer(text, delimiter=separator, lineterminator=line_end).writerows(table)
    target.write_bytes(text.getvalue().encode(encoding))
    return target


FORMS: dict[str, dict[str, Any]] = {
    "German Excel": {"separator": ";", "mark": ",", "words": ("WAHR", "FALSCH"), "encoding": "cp1252"},
    "German Excel, UTF-8": {"separator": ";", "mark": ",", "words": ("WAHR", "FALSCH"), "encoding": "utf-8-sig"},
    "Excel, Unicode text": {"separator": "\t", "mark": ",", "words": ("VRAI", "FAUX"), "encoding": "utf-16"},
    "English Excel": {"words": ("TRUE", "FALSE"), "encoding": "utf-8-sig"},
    "LibreOffice": {"words": ("TRUE", "FALSE"), "line_end": "\n"},
    "LibreOffice, German": {"mark": ",", "words": ("1", "0"), "line_end": "\n"},
    "empty cells": {"separator": ";", "mark": ",", "words": ("1", "0"), "empty": 3},
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_a_table_that_a_spreadsheet_saved_is_read_as_it_was(tmp_path, form):
    expected = table_files.read_table(STUDY)
    assert expected.is_own
    found = table_files.read_table(saved(STUDY, tmp_path / "results.csv", **form))
    assert not found.is_own
    assert found.header == expected.header
    for name, *columns in zip(
        expected.header, zip(*found.rows, strict=True), zip(*expected.rows, strict=True), strict=True
    ):
        if table_cells.kind_of(name) is float:
            assert [float(cell or "nan") for cell in columns[0]] == pytest.approx(
                [float(cell or "nan") for cell in columns[1]], rel=1e-13, nan_ok=True
            )
        else:
            assert columns[0] == columns[1]


def test_the_table_of_the_program_keeps_every_digit():
    header, *rows = csv.reader(io.StringIO(STUDY.read_text(encoding="utf-8")))
    found = table_files.parse_table(STUDY)
    assert (found.header, found.rows, found.is_own, found.is_whole) == (header, rows, True, True)
    assert table_files.read_table(STUDY).rows == rows


def test_the_report_and_a_notebook_read_what_a_spreadsheet_saved(tmp_path, capsys):
    saved(STUDY, tmp_path / "results.csv", **FORMS["German Excel"])
    for found, expected in (
        (tables.read_tables([tmp_path / "results.csv"]), tables.read_tables([STUDY])),
        (normstudy.load_table(tmp_path), normstudy.load_table(STUDY.parent)),
    ):
        assert len(found) == len(expected) == 57
        assert found["Test Accuracy"].tolist() == pytest.approx(expected["Test Accuracy"].tolist(), nan_ok=True)
        assert found["Success"].tolist() == expected["Success"].tolist()
        assert found["init_lr"].tolist() == expected["init_lr"].tolist()
    assert capsys.readouterr().err == ""


def test_every_column_of_the_program_has_a_type():
    texts = {name for name in COLUMNS if table_cells.kind_of(name) is str}
    assert texts == {
        *("Model", "Norm", "Dataset", "status", "torch", "data", "run"),
        *("conv_type", "cfg", "precision", "optimizer", "lr_schedule", "augment", "weight_decay_on", "balance"),
        *("hessian_dtype", "class_similarity_dtype", "measures_dtype"),
    }
    assert table_cells.kind_of("hessian-filter:trace") is float
    assert table_cells.kind_of("hessian-filter:num_samples") is int
    assert table_cells.kind_of("hessian-filter:dtype") is str


def write(path, separator, *rows):
    with open(path, "w", newline="", encoding="utf-8") as file:
        csv.writer(file, delimiter=separator).writerows([MINIMAL, *rows])
    return path


def traces(path):
    return [row[MINIMAL.index("Trace")] for row in table_files.read_table(path).rows]


@pytest.mark.parametrize(
    ("separator", "accuracy", "cells", "expected"),
    [
        (";", "56,7", ["1,234", "0,5"], ["1.234", "0.5"]),
        (";", "56,7", ["1,234", "2,345"], ["1.234", "2.345"]),  # the other column shows the mark
        (";", "56.7", ["1.234", "-1.5E-7"], ["1.234", "-1.5e-07"]),
        (",", "56.7", ["1.234", "1234"], ["1.234", "1234.0"]),
        (",", "56", ["1.234", "#NV"], ["1.234", ""]),  # a table with commas between cells has decimal points
    ],
)
def test_a_decimal_mark_is_read_where_the_table_shows_it(tmp_path, separator, accuracy, cells, expected):
    rows = [["vgg", "Plain", "CIFAR-10", "256", accuracy, cell, "True"] for cell in cells]
    assert traces(write(tmp_path / "a.csv", separator, *rows)) == expected


@pytest.mark.parametrize(
    ("separator", "changes", "column", "words"),
    [
        (";", {"Trace": "1,234", "Test Accuracy": "56"}, "Trace", "a separator of thousands"),
        (";", {"Trace": "1.234", "Test Accuracy": "56"}, "Trace", "a separator of thousands"),
        (",", {"Trace": "1,234"}, "Trace", "a separator of thousands"),
        (";", {"Trace": "1.234", "Test Accuracy": "56,7"}, "Trace", "a separator of thousands"),
        (";", {"Trace": "1.234,5"}, "Trace", "not a number"),
        (";", {"Trace": "12. Mai"}, "Trace", "not a number"),
        (";", {"Test Accuracy": "56,7 %"}, "Test Accuracy", "not a number"),
        (";", {"Batch Size": "50.000"}, "Batch Size", "not a whole number"),
        (",", {"Success": "maybe"}, "Success", "neither True nor False"),
    ],
)
def test_what_is_not_clear_is_an_error_that_names_the_column(tmp_path, separator, changes, column, words):
    row = dict(zip(MINIMAL, ["vgg", "Plain", "CIFAR-10", "256", "56.7", "1000", "True"], strict=True)) | changes
    with pytest.raises(RunError, match=f"a.csv, column '{column}': .*{words}"):
        tables.read_tables([write(tmp_path / "a.csv", separator, row.values())])


def test_two_decimal_marks_in_one_column_are_not_clear(tmp_path):
    rows = [["vgg", "Plain", "CIFAR-10", "256", "56", cell, "True"] for cell in ("0,5", "0.5")]
    with pytest.raises(RunError, match="'Trace': '0,5' has another decimal mark than other numbers"):
        table_files.read_table(write(tmp_path / "a.csv", ";", *rows))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"PK\x03\x04workbook", "is a workbook of a spreadsheet program; save it as CSV"),
        (b"\xff\x00" * 9, "is not a table of text"),
        (b"\n \n", "is not a table of text"),
        (b";;\n;;\n", "is an empty table"),
        (b"Model,Model\nvgg,vgg\n", "two columns with the name 'Model'"),
        (b"Model,Norm\nvgg,Plain,more\n", "line 2 has more cells than the header"),
    ],
)
def test_what_is_no_table_is_one_line(tmp_path, content, words):
    (tmp_path / "a.csv").write_bytes(content)
    with pytest.raises(RunError, match=words):
        table_files.read_table(tmp_path / "a.csv")

"""The explorer: a scatter plot of runs, drawn in the browser by Vega-Lite, whose axes the reader chooses.

Vega-Lite was chosen because a plot is a short declaration that the page's script can write itself, with panels,
tooltips and links, and because vl-convert-python brings its JavaScript as one file of 0.9 MB, so that the page needs
no network.
"""

import functools
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from normstudy.plots import NORM_COLOURS
from normstudy.report import primary
from normstudy.report.data import ReportData
from normstudy.report.tables import OUTCOMES, hyperparameters
from normstudy.storage import RunDirectory

ALWAYS = ("Model", "Norm", "Label", "Dataset")
OPENED = ("curves.png", "summary.json")  # a click on a run opens the first of these files that exists
DIGITS = 6
MOST_PANELS = 16


class Field(NamedTuple):
    """A column of the table of runs: its name in the page's script, its kind, its title, and the column.

    is_facet: whether it has few enough values to give each a panel.
    """

    name: str
    kind: str
    title: str
    column: str
    is_facet: bool


@functools.cache
def vega_script() -> str:
    """Return the JavaScript of Vega, Vega-Lite and vegaEmbed."""
    import vl_convert

    script: str = vl_convert.javascript_bundle("window.vegaEmbed = vegaEmbed;")
    return script.replace("</script", "<\\/script")


def fields_of(table: pd.DataFrame, titles: Mapping[str, str]) -> list[Field]:
    """Return the columns that the explorer offers: outcomes, measures with values, and settings that vary."""
    settings = [name for name in (*ALWAYS, *hyperparameters(table), "seed", "run") if name in table]
    numbers = [name for name in (*OUTCOMES, *titles) if table[name].notna().any()]
    words = {**OUTCOMES, **titles}
    found = [("quantitative", words[name], name) for name in numbers]
    found += [("nominal", name, name) for name in dict.fromkeys(settings) if table[name].notna().any()]
    return [
        Field(f"f{place}", kind, title, column, kind == "nominal" and 1 < table[column].nunique() <= MOST_PANELS)
        for place, (kind, title, column) in enumerate(found)
    ]


def explorer_content(data: ReportData, marks: Sequence[str], results_dir: Path) -> dict[str, Any] | None:
    """Return what the template needs: fields, chosen axes, and the content of the script; None without any measure.

    marks: more words of each run that the filter finds.
    """
    is_shown = ~data.table["has_failed"]
    runs = data.table[is_shown]
    fields = fields_of(runs, data.titles)
    measures = [field for field in fields if field.kind == "quantitative" and field.column not in OUTCOMES]
    if not measures:
        return None
    by_column = {field.column: field.name for field in fields}
    first = next((field for field in measures if field.column in primary.MEASURES), measures[0])
    facet = by_column["Model"] if runs["Model"].nunique() > 1 else ""
    axes = [
        ("x", "x", first.name),
        ("y", "y", by_column[primary.OUTCOME]),
        ("colour", "colour", by_column["Norm"]),
        ("facet", "panels", facet),
    ]
    places = {row["run"]: _opened(run, results_dir) for row, run in data.folders}
    names = runs["run"] if "run" in runs else pd.Series("", index=runs.index)
    content = {
        "fields": [{"name": field.name, "kind": field.kind, "title": field.title} for field in fields],
        "rows": [[_value(row[field.column], field.kind) for field in fields] for row in runs.to_dict("records")],
        "links": [places.get(name) for name in names],
        "marks": [mark for mark, shown in zip(marks, is_shown, strict=True) if shown],
        "colours": NORM_COLOURS,
    }
    return {"fields": fields, "axes": axes, "content": content, "has_links": bool(places)}


def _value(value: object, kind: str) -> float | str | None:
    if kind == "quantitative":
        return None if pd.isna(value) else float(f"{float(value):.{DIGITS}g}")  # type: ignore[arg-type]
    return "" if pd.isna(value) else str(value)


def _opened(run: RunDirectory, results_dir: Path) -> str:
    """Return the path, relative to the page, of the file that a click on a run opens, or of its folder."""
    name = next((name for name in OPENED if (run.path / name).exists()), "")
    return Path(os.path.relpath(run.path / name, results_dir)).as_posix()

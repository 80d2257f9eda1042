"""The page of the report: one HTML file, made of sections, that loads nothing else."""

import base64
import html
import math
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

import numpy as np

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
        return format_fixed(value, 0)
    return _with_minus(f"{value:.{digits}g}") if isinstance(value, float) else str(value)


def format_fixed(value: float, places: int = 2, sign: Literal["", "+"] = "") -> str:
    """Format a number with fixed decimal places; sign="+" shows the sign of positive numbers too."""
    return _with_minus(f"{value:{sign}.{places}f}")


def _with_minus(number: str) -> str:
    """Turn the hyphen in front of a number into a minus sign."""
    return number.replace("-", "−", 1) if number.startswith("-") else number


def format_p_value(p: float) -> str:
    """Format a p value; NaN gives an empty text."""
    return "" if p != p else "< 0.001" if p < 0.001 else f"{p:.2g}"


def format_interval(low: float, high: float, digits: int = 3) -> str:
    """Format an interval as "low to high"; NaN gives an empty text."""
    return "" if low != low else f"{format_number(low, digits)} to {format_number(high, digits)}"


def note_html(words: str) -> str:
    """Return a paragraph."""
    return f"<p>{escaped(words)}</p>"


def picture_html(path: Path, caption: str) -> str:
    """Return a figure with the picture embedded in the page, which links to its SVG file."""
    content = base64.b64encode(path.read_bytes()).decode()
    return (
        f'<figure><a href="figures/{path.stem}.svg">'
        f'<img alt="{escaped(caption)}" src="data:image/png;base64,{content}">'
        f"</a><figcaption>{escaped(caption)}</figcaption></figure>"
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

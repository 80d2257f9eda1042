"""The style shared by all pictures: figures, scales, ticks, legends, and the colours of the norms."""

from __future__ import annotations

import contextlib
import io
import os
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from config import NORM_TYPES
from normstudy.cli import RunError, describe_os_error, first_line
from normstudy.storage import write_bytes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

TRAIN, VALIDATION, TEST = "#0072b2", "#009e73", "#d55e00"  # Okabe & Ito's colour-blind safe palette
# From the palettes of Paul Tol (muted) and Okabe & Ito: distinguishable with the common forms of colour blindness.
PALETTE = (
    *("#000000", "#332288", "#88ccee", "#882255", "#ddcc77", "#117733", "#aa4499", "#cc6677", "#e69f00", "#d55e00"),
    *("#44aa99", "#777777", "#0072b2", "#999933", "#661100", "#6699cc", "#225522", "#ee8866", "#bbcc33", "#000088"),
    *("#ffaabb", "#997700"),  # spare colours for norms that are added later
)
OTHER_COLOUR = "#bbbbbb"
NORM_COLOURS = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(NORM_TYPES)}
MIN_LOG_RANGE = 5  # ratio of largest to smallest value from which a scale is logarithmic
FEW_TICKS = 300  # ratio below which powers of ten are too few ticks for a logarithmic scale
CROWDED = 50  # ratio above which the labels of 1, 2 and 5 would touch on an x axis


def norm_colour(norm: str) -> str:
    """Return a norm's colour, the same in every picture; grey for unknown names."""
    return NORM_COLOURS.get(norm, OTHER_COLOUR)


def try_to_draw(draw: Callable[[], object], path: Path) -> None:
    """Call draw(), which draws the picture `path`, in own_style.

    If it fails, an older picture of that name is removed and one line is printed on stderr: a picture can be drawn
    again at any time, so its failure must not cost the result that it shows.
    """
    try:
        with own_style():
            draw()
    except Exception as error:  # matplotlib raises unrelated types
        with contextlib.suppress(OSError):
            path.unlink()
        reason = f"{type(error).__name__}: {first_line(error)}"
        if isinstance(error, RunError):
            reason = str(error)
        elif isinstance(error, OSError):
            reason = describe_os_error(error)
        print(f"{path} could not be drawn ({reason}); nothing else is affected", file=sys.stderr)


@contextlib.contextmanager
def own_style() -> Iterator[None]:
    """A context in which matplotlib has its default settings, whatever the user's matplotlibrc or program sets."""
    matplotlib = _import_matplotlib()
    defaults = {name: value for name, value in matplotlib.rcParamsDefault.items() if name != "backend"}
    with matplotlib.rc_context(defaults):
        yield


def _import_matplotlib() -> Any:
    """Import matplotlib, even if MPLBACKEND names a backend that this Python lacks, as with a notebook's `!python`."""
    is_first = "matplotlib" not in sys.modules
    backend = os.environ.pop("MPLBACKEND", None) if is_first else None
    try:
        import matplotlib
    finally:
        if backend is not None:
            os.environ["MPLBACKEND"] = backend
    if backend:
        with contextlib.suppress(ValueError):
            matplotlib.rcParams["backend"] = backend  # as the import does
    return matplotlib


def new_figure(rows: int, columns: int, figsize: tuple[float, float]) -> tuple[Figure, np.ndarray]:
    """Return a figure of `figsize` inches (width, height) that needs no display, and its panels (rows, columns)."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=figsize)
    FigureCanvasAgg(figure)
    figure.subplots_adjust(hspace=0.32, wspace=0.28)
    return figure, figure.subplots(rows, columns, squeeze=False)


def save_figure(figure: Figure, path: Path, dpi: int = 100) -> None:
    """Write a figure as a PNG file with the 256 colours that fit it best, which takes a third of the space."""
    from PIL import Image

    full, picture = io.BytesIO(), io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # characters missing from matplotlib's font are drawn as boxes
        figure.savefig(full, format="png", dpi=dpi)
    with Image.open(full) as image:
        few = image.convert("RGB").quantize(256, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE)
    few.save(picture, "PNG", optimize=True)
    write_bytes(path, picture.getvalue())


def save_vectors(figure: Figure, path: Path) -> None:
    """Write a figure as an SVG file; equal figures give equal files."""
    import matplotlib

    content = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "normstudy"}), warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")
        figure.savefig(content, format="svg", metadata={"Date": None})
    write_bytes(path, content.getvalue().encode())


def is_whole_picture(path: Path) -> bool:
    """Return whether a picture exists and matches its checksums."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.verify()
    except Exception:  # PIL raises many types for damaged files; the caller can draw the picture again
        return False
    return True


def printable(name: object) -> str:
    """Return a name from disk with unprintable characters replaced and dollar signs escaped (they start a formula)."""
    return "".join(character if character.isprintable() else "·" for character in str(name)).replace("$", r"\$")


def tick_whole_numbers(axis: Axis) -> None:
    """Place ticks at whole numbers, even if only one fits."""
    from matplotlib.ticker import AutoLocator

    locator = AutoLocator()
    locator.set_params(integer=True, min_n_ticks=1)
    axis.set_major_locator(locator)


def scale_logarithmically(panel: Axes, values: np.ndarray) -> None:
    """Make the y axis logarithmic if its largest value exceeds MIN_LOG_RANGE times its smallest positive value.

    Values that are not positive are then left out.
    """
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) and values.max() > MIN_LOG_RANGE * values.min():
        panel.set_yscale("log", nonpositive="mask")
        tick_logarithmically(panel.yaxis, values)


def tick_logarithmically(axis: Axis, values: np.ndarray) -> None:
    """Place enough ticks on a logarithmic axis of positive values to read it, but not so many that they touch."""
    from matplotlib.axis import XAxis
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_minor_formatter(NullFormatter())
    if values.max() < FEW_TICKS * values.min():
        is_crowded = isinstance(axis, XAxis) and values.max() > CROWDED * values.min()
        axis.set_major_locator(LogLocator(subs=(1, 3) if is_crowded else (1, 2, 5)))
        axis.set_major_formatter("{x:g}")


def legend_above(panel: Axes, columns: int) -> None:
    """Place the legend above a panel, where it hides no data."""
    panel.legend(
        fontsize="small", ncols=columns, columnspacing=1.2, loc="lower center", bbox_to_anchor=(0.5, 1.0), frameon=False
    )


def finish_over_training(figure: Figure, panels: Iterable[Axes], path: Path) -> None:
    """Add ticks, grids and legends to panels over epochs, and save the figure."""
    for panel in panels:
        tick_whole_numbers(panel.xaxis)
        panel.grid(alpha=0.3)
        panel.legend(fontsize="small")
    save_figure(figure, path)

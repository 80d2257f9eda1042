"""The style that all pictures share: figures, scales, ticks, legends, and the colours of the norms."""

import io
import warnings

import numpy as np

from config import ARCHS, NORM_TYPES
from normstudy.storage import write_bytes

TRAIN, VALIDATION, TEST = "#0072b2", "#009e73", "#d55e00"  # Okabe & Ito's colour-blind safe palette
MIN_LOG_RANGE = 5  # largest over smallest value from which a scale is logarithmic
FEW_TICKS = 300  # and below which powers of ten are too few ticks for it


def new_figure(*grid, **options):
    """A figure that needs no screen, and its axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(**options)
    FigureCanvasAgg(figure)
    return figure, figure.subplots(*grid, squeeze=False, gridspec_kw={"hspace": 0.32, "wspace": 0.28})


def save_figure(figure, path, dpi=100):
    """Write a figure as a PNG: complete or not at all."""
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # scripts that matplotlib's font lacks are drawn as boxes
        figure.savefig(picture, format="png", dpi=dpi)
    write_bytes(path, picture.getvalue())


def is_whole_picture(path):
    """Whether a picture is there and fits its checksums."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            picture.verify()
    except Exception:  # PIL raises many types for what a file can hold; drawing again mends it
        return False
    return True


def printable(name):
    """A name from disk, of which matplotlib makes no formula, in characters that can be drawn."""
    return "".join(character if character.isprintable() else "·" for character in str(name)).replace("$", r"\$")


def tick_whole_numbers(axis):
    """Ticks at whole numbers, were it one alone."""
    axis.get_major_locator().set_params(integer=True, min_n_ticks=1)


def scale_logarithmically(axis, values):
    """A logarithmic y axis for positive values that span a good half magnitude; others are left out."""
    values = values[np.isfinite(values) & (values > 0)]
    if len(values) and values.max() > MIN_LOG_RANGE * values.min():
        axis.set_yscale("log", nonpositive="mask")
        tick_logarithmically(axis.yaxis, values)


def tick_logarithmically(axis, values):
    """Ticks of a logarithmic xaxis or yaxis for positive values: enough to read it, and not so many that they touch."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_minor_formatter(NullFormatter())
    if values.max() < FEW_TICKS * values.min():
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")


def legend_above(axis, columns):
    """A legend that hides no data."""
    box = {"loc": "lower center", "bbox_to_anchor": (0.5, 1.0), "frameon": False}
    axis.legend(fontsize="small", ncols=columns, columnspacing=1.2, **box)


def finish_over_training(figure, axes, path):
    for axis in axes:
        tick_whole_numbers(axis.xaxis)
        axis.grid(alpha=0.3)
        axis.legend(fontsize="small")
    save_figure(figure, path)


# From the palettes of Paul Tol (muted) and of Okabe & Ito: told apart with the common forms of colour blindness.
PALETTE = ("#000000", "#332288", "#88ccee", "#882255", "#ddcc77", "#117733", "#aa4499", "#cc6677", "#e69f00", "#d55e00")
PALETTE += ("#44aa99", "#777777", "#0072b2", "#999933")
PALETTE += ("#661100", "#6699cc", "#225522", "#ee8866", "#bbcc33", "#000088", "#ffaabb", "#997700")  # for norms to come
OTHER_COLOUR = "#bbbbbb"
NORM_COLOURS = {name: PALETTE[index % len(PALETTE)] for index, name in enumerate(NORM_TYPES)}
MARKERS = dict(zip(ARCHS, "osD", strict=True))


def norm_colour(norm):
    return NORM_COLOURS.get(norm, OTHER_COLOUR)

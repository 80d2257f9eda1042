"""Pictures of one run and its measurements; the style and colours shared by all pictures."""

from normstudy.plots.class_similarity import draw_class_similarity, draw_class_similarity_over_training
from normstudy.plots.curves import FEW_POINTS, draw_curves
from normstudy.plots.hessian import draw_hessian, draw_hessian_over_training, format_with_residual, spectral_density
from normstudy.plots.landscape import draw_landscape
from normstudy.plots.layout import NAME_WIDTH, label_line_ends, label_points, panel_grid
from normstudy.plots.measures import draw_measures, draw_measures_over_training
from normstudy.plots.probes import LOGARITHMIC_PROBES, PROBE_TITLES, WEIGHT_TITLES, draw_probes
from normstudy.plots.style import (
    NORM_COLOURS,
    OTHER_COLOUR,
    PALETTE,
    is_whole_picture,
    new_figure,
    norm_colour,
    own_style,
    printable,
    save_figure,
    save_vectors,
    scale_logarithmically,
    tick_logarithmically,
    try_to_draw,
)

__all__ = [
    "FEW_POINTS",
    "LOGARITHMIC_PROBES",
    "NAME_WIDTH",
    "NORM_COLOURS",
    "OTHER_COLOUR",
    "PALETTE",
    "PROBE_TITLES",
    "WEIGHT_TITLES",
    "draw_class_similarity",
    "draw_class_similarity_over_training",
    "draw_curves",
    "draw_hessian",
    "draw_hessian_over_training",
    "draw_landscape",
    "draw_measures",
    "draw_measures_over_training",
    "draw_probes",
    "format_with_residual",
    "is_whole_picture",
    "label_line_ends",
    "label_points",
    "new_figure",
    "norm_colour",
    "own_style",
    "panel_grid",
    "printable",
    "save_figure",
    "save_vectors",
    "scale_logarithmically",
    "spectral_density",
    "tick_logarithmically",
    "try_to_draw",
]

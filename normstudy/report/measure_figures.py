"""Pictures of measures and outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from config import ARCHS, NORM_TYPES
from normstudy.plots import network_marker, new_figure, norm_colour, tick_logarithmically
from normstudy.report.correlation import BETWEEN, OVER_SETTINGS, select
from normstudy.report.figure_legends import add_norm_legend, in_order
from normstudy.report.tables import MIN_POINTS, OUTCOMES, SIGNIFICANT, hyperparameters

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MAGNITUDES = ("Trace", "Eigen Mean", "Eigen Variance", "Max Eigen", "within_over_between")
FEW_RUNS = 100  # with fewer runs, points are drawn larger


def draw_outcome(table: pd.DataFrame, outcome: str, titles: Mapping[str, str]) -> Figure:
    """Draw every measure of {column: title} against one outcome, with a line through each cell."""
    usable = table[~table["has_failed"]]
    columns = min(3, len(titles))
    rows = -(-len(titles) // columns)
    height = 4.2 * rows + 0.9
    figure, panels = new_figure(rows, columns, figsize=(5.2 * columns, height))
    figure.subplots_adjust(left=0.3 / columns, right=0.985, bottom=1.4 / height, top=0.96)
    cell_columns = hyperparameters(usable)
    for panel, (measure, title) in zip(panels.flat, titles.items(), strict=False):
        runs = usable.dropna(subset=[measure, outcome])
        scale, options = _scale_of(measure, runs[measure])
        panel.set_xscale(scale, **options)
        for (norm, network), group in runs.groupby(["Norm", "Model"]):
            style = {"color": norm_colour(norm), "marker": network_marker(network), "alpha": 0.7, "lw": 0}
            panel.scatter(group[measure], group[outcome], s=36 if len(runs) < FEW_RUNS else 14, **style)
        _draw_trends(panel, runs, measure, outcome, cell_columns)
        panel.set(xlabel=f"{title} ({len(runs)} runs)", ylabel=OUTCOMES[outcome])
        if scale == "linear":
            panel.locator_params(axis="x", nbins=5)
        elif scale == "log":
            tick_logarithmically(panel.xaxis, runs[measure].to_numpy())
        panel.grid(alpha=0.3)
    for panel in panels.flat[len(titles) :]:
        panel.remove()
    add_norm_legend(figure, in_order(usable["Norm"], NORM_TYPES), in_order(usable["Model"], ARCHS))
    return figure


def _scale_of(measure: str, values: pd.Series) -> tuple[str, dict[str, Any]]:
    """Return an axis's scale and its options.

    The scale is logarithmic for MAGNITUDES, or symmetric around zero (symlog) if some values are not positive and their
    sizes differ much; otherwise linear.
    """
    size = values.abs().median()
    if measure not in MAGNITUDES or not size > 0:
        return "linear", {}
    if (values > 0).all():
        return "log", {}
    if values.abs().max() < 8 * size:
        return "linear", {}
    return "symlog", {"linthresh": 10.0 ** np.floor(np.log10(size)), "linscale": 0.6}


def _draw_trends(panel: Axes, runs: pd.DataFrame, measure: str, outcome: str, cell_columns: list[str]) -> None:
    """Draw a least-squares line through the runs of each cell; it is fitted on the scale of the x axis."""
    scale = panel.xaxis.get_transform()
    cells = runs.groupby([runs[name].astype(str) for name in cell_columns]) if cell_columns else [("", runs)]
    for _, cell in cells:
        x = scale.transform(cell[measure].to_numpy(float))
        if len(cell) >= MIN_POINTS and np.ptp(x) > 0:
            slope = np.cov(x, cell[outcome])[0, 1] / np.var(x, ddof=1)
            ends = np.array([x.min(), x.max()])
            line = cell[outcome].mean() + slope * (ends - x.mean())
            panel.plot(scale.inverted().transform(ends), line, color="#555555", lw=0.7, alpha=0.6)


def draw_association(points: pd.DataFrame, title: str) -> Figure:
    """Draw norms' means of a measure and test accuracy, a panel for each of the three cells with the most norms.

    points: of points_of. Norms are named at their points.
    """
    means = points.groupby(["cell", "norm"])[["x", "y"]].mean().reset_index()
    sizes = means.groupby("cell").size().sort_values(ascending=False, kind="stable")
    cells = list(sizes.index[:3])
    figure, [panels] = new_figure(1, len(cells), figsize=(5.2 * len(cells), 4.2))
    figure.subplots_adjust(left=0.4 / len(cells) ** 1.2, right=0.97, bottom=0.15, top=0.86)
    for panel, cell in zip(panels, cells, strict=True):
        own = means[means["cell"] == cell]
        for norm, x, y in own[["norm", "x", "y"]].itertuples(index=False):
            panel.scatter(x, y, color=norm_colour(norm), s=30)
            panel.annotate(norm, (x, y), (4, 3), textcoords="offset points", fontsize="x-small")
        rho = own["x"].rank().corr(own["y"].rank())
        words = str(cell).replace("|", ", ")[:48]
        panel.set_title(f"{words}\nρ = {rho:.2f} ({len(own)} norms)".strip(), fontsize="small")
        panel.set(xlabel=title, ylabel="test accuracy (%)")
        panel.margins(x=0.2)
        panel.locator_params(axis="x", nbins=5)
        panel.grid(alpha=0.3)
    return figure


def draw_correlations(correlations: pd.DataFrame, granulated: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw heatmaps of every measure and outcome: Spearman's ρ between norms and within norms, and Ψ.

    * marks coefficients whose p value is significant after Holm's adjustment.
    """
    measures = list(dict.fromkeys(correlations["measure"]))
    height = 2.2 + 0.5 * len(measures)
    figure, [panels] = new_figure(1, 3, figsize=(15, height))
    figure.subplots_adjust(left=0.17, right=0.93, bottom=1.2 / height, top=1 - 0.45 / height, wspace=0.08)
    frames = {
        "between norms (Spearman's ρ)": correlations[correlations["way"] == BETWEEN],
        "within norms over settings (Spearman's ρ)": correlations[correlations["way"] == OVER_SETTINGS],
        "granulated (Ψ)": granulated,
    }
    for panel, (title, frame) in zip(panels, frames.items(), strict=True):
        grid = frame.pivot(index="measure", columns="outcome", values="value").reindex(measures)[list(OUTCOMES)]
        mesh = panel.imshow(grid.to_numpy(float), cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
        for row, measure in enumerate(measures):
            for column, outcome in enumerate(OUTCOMES):
                value = grid.loc[measure, outcome]
                entry = select(frame, measure, outcome)
                star = "*" if "p_holm" in entry and (entry["p_holm"] < SIGNIFICANT).any() else ""
                ink = "white" if abs(value) > 0.6 else "black"
                words = f"{value:.2f}{star}" if np.isfinite(value) else "–"
                panel.text(column, row, words, ha="center", va="center", color=ink, fontsize="small")
        panel.set_xticks(range(len(OUTCOMES)), [name.replace(" ", "\n") for name in OUTCOMES])
        panel.set_yticks(range(len(measures)), [titles[name] for name in measures] if panel is panels[0] else [])
        panel.set_title(title, fontsize="medium")
    colour_bar = figure.add_axes((0.945, 1.2 / height, 0.012, 1 - 1.65 / height))
    figure.colorbar(mesh, cax=colour_bar)
    return figure

"""Pictures of measures and outcomes."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import pandas as pd

from config import ARCHS
from normstudy.cli import format_count
from normstudy.plots import PALETTE, label_points, new_figure, norm_colour, panel_grid, tick_logarithmically
from normstudy.report.association import LEAST_BETWEEN, between_norms
from normstudy.report.correlation import BETWEEN, OVER_SEEDS, OVER_SETTINGS, run_points, select
from normstudy.report.orders import in_order
from normstudy.report.tables import OUTCOMES, SIGNIFICANT

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMNS = 3  # panels in a row, if there is only one network
FAR = 3  # ratio of the range of all norms' values to that without one, from which this one is drawn at the edge
INK = PALETTE[0]
LETTER = 0.065  # inches, the mean width of the letters of a measure's title
LOG_RANGE = 30  # ratio of largest to smallest value from which the axis of a measure is logarithmic


class NormMeans(NamedTuple):
    """Norms' means of a measure (x) and an outcome (y) in one network, without the differences between cells.

    means, spreads: mean and s.d. over a norm's runs, a row for each norm, with the columns x and y. rho: Spearman's ρ
    between norms within cells.
    """

    means: pd.DataFrame
    spreads: pd.DataFrame
    rho: float
    n_cells: int


def norm_means(points: pd.DataFrame) -> NormMeans | None:
    """Average the runs of one network by norm, without the differences between cells; None without two norms in a cell.

    points: of run_points. x and y are fitted by a norm's effect plus a cell's effect (least squares), and the cell's is
    subtracted. The cells are those that a coefficient rests on; if there is none, all with two norms. If no chain of
    shared norms connects them, only that with the most norms is used.
    """
    norms_in_cell = points.groupby("cell")["norm"].transform("nunique")
    points = points[norms_in_cell >= (LEAST_BETWEEN if norms_in_cell.max() >= LEAST_BETWEEN else 2)]
    if points.empty:
        return None
    by_setting = points.groupby(["norm", "cell"])[["x", "y"]].mean().reset_index()
    norms, cells = pd.get_dummies(by_setting["norm"], dtype=float), pd.get_dummies(by_setting["cell"], dtype=float)
    design = np.hstack([norms, cells])
    fitted, _, rank, _ = np.linalg.lstsq(design, by_setting[["x", "y"]].to_numpy(), rcond=None)
    if rank < design.shape[1] - 1:
        return norm_means(points[points["cell"] == by_setting["cell"].value_counts().idxmax()])
    effects = pd.DataFrame(fitted[norms.shape[1] :], cells.columns, ["x", "y"])
    effects -= effects.mean()
    moved = points[["x", "y"]] - effects.loc[points["cell"]].to_numpy()
    means = (
        moved.assign(norm=points["norm"], cell=points["cell"]).groupby(["norm", "cell"]).mean().groupby("norm").mean()
    )
    rho = between_norms(points, resamples=2, permutations=0).value
    return NormMeans(means, moved.groupby(points["norm"]).std(), rho, len(effects))


def draw_association(runs: pd.DataFrame, measures: Mapping[str, str], outcome: str) -> Figure | None:
    """Draw norms' means of measures {column: title} and an outcome, with their spread.

    Each measure has a row of panels, and each network a column; of a single network, several measures share a row.
    Norms are named at their points. Return None if no cell has two norms.
    """
    networks = in_order(runs["Model"], ARCHS)
    found: dict[str, dict[str, NormMeans]] = {}
    logarithmic = set[str]()
    for measure in measures:
        points = run_points(runs, measure, outcome)
        x = points["x"]
        if (x > 0).all() and x.max() > LOG_RANGE * x.min():
            points, logarithmic = points.assign(x=np.log10(x)), {*logarithmic, measure}
        own = {}
        for network in networks:
            means = norm_means(points[points["network"] == network])
            if means is not None:
                own[network] = means
        if own:
            found[measure] = own
    networks = [network for network in networks if any(network in own for own in found.values())]
    if not networks:
        return None
    columns = len(networks) if len(networks) > 1 else min(COLUMNS, len(found))
    size = (3.05, 2.35) if columns > 2 else (4.2, 2.9)
    rows = -(-len(found) * len(networks) // columns)
    figure, panels = panel_grid(rows, columns, size, left=0.68, above=0.42, below=0.55)
    shown = [(measure, network) for measure in found for network in networks]
    for panel, (measure, network) in zip(panels.flat, shown, strict=False):
        if network not in found[measure]:
            panel.remove()
            continue
        drawn = found[measure][network]
        _draw_norms(panel, drawn, measure in logarithmic)
        norms, cells = len(drawn.means), drawn.n_cells
        rho = f"ρ = {drawn.rho:.2f}, ".replace("-", "−") if np.isfinite(drawn.rho) else ""
        panel.set_title(f"{network}: {rho}{norms} norms, {format_count(cells, 'cell')}", fontsize="small")
        panel.set_xlabel(measures[measure], fontsize="small")
        panel.set_ylabel(OUTCOMES[outcome], fontsize="small")
    for panel in panels.flat[len(shown) :]:
        panel.remove()
    return figure


def _draw_norms(panel: Axes, found: NormMeans, is_log: bool) -> None:
    """Draw a cross of mean ± s.d. for each norm, with its name. is_log: whether x is a decimal logarithm.

    A norm whose y is far from all others is drawn as an arrow at the edge, with its y beside its name.
    """
    x, y = found.means["x"].to_numpy(), found.means["y"].to_numpy()
    x_spread, y_spread = (found.spreads.loc[found.means.index, name].fillna(0).to_numpy() for name in ("x", "y"))
    low, high = x - x_spread, x + x_spread
    if is_log:
        x, low, high = 10**x, 10**low, 10**high
        panel.set_xscale("log")
    far, names = far_from_others(y), [str(norm) for norm in found.means.index]
    for place, norm in enumerate(names):
        bars = {"xerr": [[x[place] - low[place]], [high[place] - x[place]]], "yerr": y_spread[place]}
        if place != far:
            panel.errorbar(x[place], y[place], **bars, color=norm_colour(norm), marker="o", ms=5, elinewidth=0.7)
    panel.margins(0.12)
    if far is not None:
        edge, marker = (panel.get_ylim()[0], "v") if y[far] < np.median(y) else (panel.get_ylim()[1], "^")
        panel.set_ylim(panel.get_ylim())
        panel.plot(x[far], edge, color=norm_colour(names[far]), marker=marker, ms=7, clip_on=False)
        names[far] += f": {y[far]:.3g}".replace("-", "−")
        y = np.where(np.arange(len(y)) == far, edge, y)
    if is_log:
        tick_logarithmically(panel.xaxis, np.concatenate([low, high]))
    else:
        panel.locator_params(axis="x", nbins=5)
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:.6g}".replace("-", "−"))
    panel.tick_params(labelsize="x-small")
    panel.grid(alpha=0.3)
    label_points(panel, names, x, y)


def far_from_others(values: np.ndarray) -> int | None:
    """Return the place of the one value without which the range of at least five is less than a third; else None."""
    if len(values) >= LEAST_BETWEEN:
        for place in (int(values.argmin()), int(values.argmax())):
            rest = np.delete(values, place)
            if 0 < FAR * np.ptp(rest) < np.ptp(values):
                return place
    return None


def draw_primary(correlations: pd.DataFrame, titles: Mapping[str, str]) -> Figure | None:
    """Draw the coefficients of the primary analysis with their intervals, and beside them those within norms.

    correlations: of correlate_measures. Points whose p is significant after Holm's adjustment are filled. Return None
    with fewer than two measures.
    """
    of_primary = correlations[correlations["family"].isin(("primary", "within norms")) & correlations["value"].notna()]
    frames = {way: of_primary[of_primary["way"] == way].set_index("measure") for way in (BETWEEN, OVER_SEEDS)}
    measures = list(frames[BETWEEN].sort_values("value").index)
    if len(measures) < 2:
        return None
    frames = {way: frame for way, frame in frames.items() if len(frame)}
    left = 0.3 + LETTER * max(len(titles[name]) for name in measures)
    width, height = left + 3.3 * len(frames), 0.95 + 0.28 * len(measures)  # inches
    figure, [panels] = new_figure(1, len(frames), figsize=(width, height))
    figure.subplots_adjust(left / width, 0.55 / height, 1 - 0.1 / width, 1 - 0.35 / height, wspace=0.05)
    for panel, (way, frame) in zip(panels, frames.items(), strict=True):
        for place, row in enumerate(frame.reindex(measures).to_dict("records")):
            bar = np.maximum([[row["value"] - row["low"]], [row["high"] - row["value"]]], 0)
            fill = INK if row["p_holm"] < SIGNIFICANT else "white"
            panel.errorbar(row["value"], place, xerr=bar, color=INK, marker="o", mfc=fill, ms=5, capsize=2)
        count = (frame["n_norms"].max(), "norm") if way == BETWEEN else (frame["n_settings"].max(), "run")
        panel.set_title(f"{way} ({format_count(int(count[0]), count[1])})", fontsize="medium")
        panel.set(xlim=(-1.05, 1.05), ylim=(-0.6, len(measures) - 0.4), xticks=np.linspace(-1, 1, 5))
        panel.set_yticks(range(len(measures)), [titles[name] for name in measures] if panel is panels[0] else [])
        panel.tick_params(labelsize="small")
        panel.axvline(0, color="#888888", lw=0.8)
        panel.set_xlabel("Spearman's ρ with test accuracy, 95 % interval", fontsize="small")
        panel.xaxis.set_major_formatter(lambda value, _: f"{value:g}".replace("-", "−"))
        panel.grid(alpha=0.3, axis="x")
    return figure


def draw_correlations(correlations: pd.DataFrame, granulated: pd.DataFrame, titles: Mapping[str, str]) -> Figure:
    """Draw heatmaps of every measure and outcome: Spearman's ρ between norms and within norms, and Ψ.

    * marks coefficients whose p value is significant after Holm's adjustment. Maps without any coefficient are left
    out, unless all are.
    """
    measures = list(dict.fromkeys(correlations["measure"]))
    of_settings = correlations[correlations["way"] == OVER_SETTINGS]  # one norm shows nothing about norms
    frames = {
        "between norms (Spearman's ρ)": correlations[correlations["way"] == BETWEEN],
        "within norms over settings (Spearman's ρ)": of_settings.assign(
            value=of_settings["value"].where(of_settings["n_norms"] > 1)
        ),
        "granulated (Ψ)": granulated,
    }
    frames = {title: frame for title, frame in frames.items() if frame["value"].notna().any()} or frames
    width, height = 4.5 + 3.5 * len(frames), 1.5 + 0.33 * len(measures)  # inches
    figure, [panels] = new_figure(1, len(frames), figsize=(width, height))
    top, bottom = 1 - 0.45 / height, 0.7 / height
    figure.subplots_adjust(left=3.3 / width, right=1 - 1.2 / width, bottom=bottom, top=top, wspace=0.08)
    for panel, (title, frame) in zip(panels, frames.items(), strict=True):
        grid = frame.pivot(index="measure", columns="outcome", values="value").reindex(measures)[list(OUTCOMES)]
        mesh = panel.imshow(grid.to_numpy(float), cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
        for row, measure in enumerate(measures):
            for column, outcome in enumerate(OUTCOMES):
                value = grid.loc[measure, outcome]
                entry = select(frame, measure, outcome)
                star = "*" if "p_holm" in entry and (entry["p_holm"] < SIGNIFICANT).any() else ""
                ink = "white" if abs(value) > 0.6 else "black"
                words = f"{value:.2f}{star}".replace("-", "−") if np.isfinite(value) else "–"
                panel.text(column, row, words, ha="center", va="center", color=ink, fontsize="small")
        panel.set_xticks(range(len(OUTCOMES)), [name.replace(" ", "\n") for name in OUTCOMES])
        panel.set_yticks(range(len(measures)), [titles[name] for name in measures] if panel is panels[0] else [])
        panel.set_title(title, fontsize="medium")
    colour_bar = figure.add_axes((1 - 1.0 / width, bottom, 0.15 / width, top - bottom))
    figure.colorbar(mesh, cax=colour_bar, label=f"coefficient (*: p < {SIGNIFICANT} after Holm; –: not defined)")
    return figure

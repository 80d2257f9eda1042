"""Pictures of measures and outcomes."""

import numpy as np

from config import ARCHS, NORM_TYPES
from normstudy.plots import MARKERS, new_figure, norm_colour, save_figure, tick_logarithmically
from normstudy.report.figure_legends import add_norm_legend, in_order
from normstudy.report.tables import MIN_POINTS, OUTCOMES, hyperparameters

MAGNITUDES = ("Trace", "Eigen Mean", "Eigen Variance", "Max Eigen", "within_over_between")
STARRED = 0.05


def _scale_of(measure, values):
    """An axis's scale and its options: of what has magnitudes the logarithm, or what is like it on both sides of
    zero where some are not positive and sizes differ much."""
    size = values.abs().median()
    if measure not in MAGNITUDES or not size > 0:
        return "linear", {}
    if (values > 0).all():
        return "log", {}
    if values.abs().max() < 8 * size:
        return "linear", {}
    return "symlog", {"linthresh": 10.0 ** np.floor(np.log10(size)), "linscale": 0.6}


def draw_outcome(table, outcome, titles, path):
    """Every measure of {column: title} against one outcome, with a line through each cell."""
    measures = list(titles)
    usable = table[~table["has_failed"]]
    columns = min(3, len(measures))
    rows = -(-len(measures) // columns)
    figure, axes = new_figure(rows, columns, figsize=(5.2 * columns, 4.2 * rows + 0.9))
    figure.subplots_adjust(left=0.3 / columns, right=0.985, bottom=1.4 / (4.2 * rows + 0.9), top=0.96)
    axes_of = hyperparameters(usable)
    for axis, measure in zip(axes.flat, measures, strict=False):
        pair = usable.dropna(subset=[measure, outcome])
        name, options = _scale_of(measure, pair[measure])
        axis.set_xscale(name, **options)
        scale = axis.xaxis.get_transform()
        size = 36 if len(pair) < 100 else 14
        for (norm, network), group in pair.groupby(["Norm", "Model"]):
            marker = MARKERS.get(network, "^")
            axis.scatter(
                group[measure], group[outcome], s=size, color=norm_colour(norm), marker=marker, alpha=0.7, lw=0
            )
        cells = pair.groupby([pair[name].astype(str) for name in axes_of]) if axes_of else [("", pair)]
        for _, group in cells:
            x = scale.transform(group[measure].to_numpy(float))
            if len(group) >= MIN_POINTS and np.ptp(x) > 0:
                slope = np.cov(x, group[outcome])[0, 1] / np.var(x, ddof=1)
                ends = np.array([x.min(), x.max()])
                line = group[outcome].mean() + slope * (ends - x.mean())
                axis.plot(scale.inverted().transform(ends), line, color="#555555", lw=0.7, alpha=0.6)
        axis.set(xlabel=f"{titles[measure]} ({len(pair)} runs)", ylabel=OUTCOMES[outcome])
        if name == "linear":
            axis.xaxis.get_major_locator().set_params(nbins=5)
        elif name == "log":
            tick_logarithmically(axis.xaxis, pair[measure])
        axis.grid(alpha=0.3)
    for axis in list(axes.flat)[len(measures) :]:
        axis.remove()
    add_norm_legend(figure, in_order(usable["Norm"], NORM_TYPES), in_order(usable["Model"], ARCHS))
    save_figure(figure, path)


def draw_heatmap(correlations, granulated, titles, path):
    """Spearman's ρ pooled and within cells, and Ψ, of every measure and outcome; * where Holm's p < 0.05."""
    measures = list(dict.fromkeys(correlations["measure"]))
    figure, axes = new_figure(1, 3, figsize=(15, 2.2 + 0.5 * len(measures)))
    height = 2.2 + 0.5 * len(measures)
    figure.subplots_adjust(left=0.17, right=0.93, bottom=1.2 / height, top=1 - 0.45 / height, wspace=0.08)
    spearman = correlations[correlations["coefficient"] == "Spearman"]
    parts = {
        "pooled (Spearman's ρ)": spearman[spearman["way"] == "pooled"],
        "within cells (Spearman's ρ)": spearman[spearman["way"] == "within cells"],
        "granulated (Ψ)": granulated,
    }
    for index, (title, frame) in enumerate(parts.items()):
        axis = axes[0, index]
        grid = frame.pivot(index="measure", columns="outcome", values="value").reindex(measures)[list(OUTCOMES)]
        mesh = axis.imshow(grid.to_numpy(float), cmap="PuOr", vmin=-1, vmax=1, aspect="auto")
        for row, measure in enumerate(measures):
            for column, outcome in enumerate(OUTCOMES):
                value = grid.loc[measure, outcome]
                cell = frame[(frame["measure"] == measure) & (frame["outcome"] == outcome)]
                star = "*" if "p_holm" in cell and (cell["p_holm"] < STARRED).any() else ""
                ink = "white" if abs(value) > 0.6 else "black"
                words = f"{value:.2f}{star}" if np.isfinite(value) else "–"
                axis.text(column, row, words, ha="center", va="center", color=ink, fontsize="small")
        axis.set_xticks(range(len(OUTCOMES)), [name.replace(" ", "\n") for name in OUTCOMES])
        axis.set_yticks(range(len(measures)), [titles[name] for name in measures] if index == 0 else [])
        axis.set_title(title, fontsize="medium")
    colours = figure.add_axes([0.945, 1.2 / height, 0.012, 1 - 1.65 / height])
    figure.colorbar(mesh, cax=colours)
    save_figure(figure, path)

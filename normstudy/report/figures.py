"""The list of the report's pictures, with their file names and captions."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from normstudy.plots import WEIGHT_TITLES, save_figure, save_vectors, try_to_draw
from normstudy.report import primary
from normstudy.report.baseline import BASELINE
from normstudy.report.data import ReportData, ReportStatistics
from normstudy.report.measure_figures import draw_association, draw_correlations, draw_primary
from normstudy.report.network_figures import (
    NODE_WIDTH,
    SPECTRA,
    comparable_spectra,
    draw_densities,
    draw_groupings_of_norm,
    draw_statistics,
)
from normstudy.report.norm_figures import draw_groupings, draw_ranking, draw_rates
from normstudy.report.tables import (
    MEASURES,
    SIGNIFICANT,
    as_groupings,
    in_largest_cells,
    pairs_with_groupings,
)
from normstudy.report.tuning import at_comparable_rates, in_time, pairs_at_comparable_rates, tuning_curves
from normstudy.storage import remove_leftovers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOMENT_WORDS = {"first": "the first iteration", "last": "the last iteration with a full batch"}
DRAWN_OUTCOMES = ("Test Accuracy", "Gap")
NORM_MEANS = (
    "A point is a norm: the mean over its cells, without the differences between cells. Bars are ± 1 s.d. over its "
    "runs. ρ is Spearman's, between norms within cells. A norm far from all others is an arrow at the edge."
)
LAST_OF_BLOCKS = "Of several layers in a block, the last is drawn; probes.png of a run shows all."
BEST_RATES = " Where learning rates were tuned, each norm is at its best one."
WHERE = ", in the cell of each network that has the most "


class Drawing(NamedTuple):
    """A figure's file name and caption, and a function that draws it and returns None if there is nothing to draw."""

    name: str
    caption: str
    draw: Callable[[], Figure | None]


class Picture(NamedTuple):
    """A saved figure."""

    path: Path
    caption: str


@dataclass(frozen=True)
class ReportPictures:
    """The pictures of each section."""

    findings: list[Picture]
    norms: list[Picture]
    measures: list[Picture]
    claims: list[Picture]
    networks: list[Picture]


def draw_pictures(data: ReportData, statistics: ReportStatistics, folder: Path) -> ReportPictures:
    """Draw the pictures for which there is data; save them as PNG and SVG files in `folder`.

    Pictures of findings that an earlier report had there are removed.
    """
    remove_leftovers(folder, ".*.tmp")
    remove_leftovers(folder, "finding_*.*")
    return ReportPictures(
        findings=save_drawings(_of_findings(data, statistics), folder),
        norms=save_drawings(_of_norms(data, statistics), folder),
        measures=save_drawings(_of_measures(data, statistics), folder),
        claims=save_drawings(_of_claims(data), folder),
        networks=save_drawings(_of_networks(data), folder),
    )


def save_drawings(drawings: Iterable[Drawing], folder: Path) -> list[Picture]:
    """Save the figures of the drawings that have one as PNG and SVG files in `folder`."""
    pictures = []
    for name, caption, draw in drawings:
        path = folder / f"{name}.png"
        try_to_draw(partial(_draw_and_save, draw, path), path)
        if path.is_file():
            pictures.append(Picture(path, caption))
    return pictures


def _draw_and_save(draw: Callable[[], Figure | None], path: Path) -> None:
    figure = draw()
    if figure is None:
        for earlier in (path, path.with_suffix(".svg")):
            earlier.unlink(missing_ok=True)
    else:
        save_figure(figure, path)
        save_vectors(figure, path.with_suffix(".svg"))


def _of_findings(data: ReportData, statistics: ReportStatistics) -> Iterator[Drawing]:
    included = primary.included_runs(data.table)
    runs, rates = included.runs, BEST_RATES if included.tuned else ""
    caption = (
        "The measures of the primary analysis: Spearman's ρ with test accuracy and its 95 % interval, between norms "
        f"and between the seeds of a norm. Filled: p < {SIGNIFICANT} after Holm's adjustment.{rates}"
    )
    yield Drawing("primary", caption, partial(draw_primary, statistics.correlations, data.titles))
    for place, measure in enumerate(statistics.influences, 1):
        title = data.titles[measure]
        caption = f"{title[0].upper()}{title[1:]} and test accuracy. {NORM_MEANS}{rates}"
        yield Drawing(f"finding_{place}", caption, partial(draw_association, runs, {measure: title}, primary.OUTCOME))


def _of_norms(data: ReportData, statistics: ReportStatistics) -> Iterator[Drawing]:
    if len(statistics.ranking):
        caption = (
            "Test accuracy minus the mean over the norms in the same cell, averaged over cells, with 95 % t-intervals "
            "(over cells, or over seeds with fewer than five cells). A norm without an interval, "
            "which needs several runs or cells, is hollow."
        )
        yield Drawing("ranking", caption, partial(draw_ranking, statistics.ranking))
        caption = (
            "Test accuracy over the learning rates that were tried, for the seed that chose among them. A ring marks "
            "the rate with the highest validation accuracy. Runs that failed or did not reach their training loss are "
            "left out."
        )
        yield Drawing("rates", caption, partial(draw_rates, tuning_curves(data.table)))
        caption = (
            "Test accuracy by grouping: mean and standard deviation over all runs of a norm with the same network, "
            "data set and batch size, which may differ in other hyperparameters. n is the number of runs of a line."
        )
        compared = at_comparable_rates(data.table)
        caption += BEST_RATES if compared.tuned else ""
        yield Drawing("groupings", caption, partial(draw_groupings, as_groupings(in_time(compared.runs))))


def _of_measures(data: ReportData, statistics: ReportStatistics) -> Iterator[Drawing]:
    if not statistics.titles:
        return
    caption = (
        "Spearman's ρ of every measure with every outcome: between norms, within norms over their settings (where at "
        "least two norms have several), and Ψ. "
        f"* marks p < {SIGNIFICANT} after Holm's adjustment within the primary or the exploratory family; Ψ has no p."
    )
    heatmaps = partial(draw_correlations, statistics.correlations, statistics.granulated, statistics.titles)
    yield Drawing("correlations", caption, heatmaps)
    titles = {name: title for name, title in statistics.titles.items() if name in MEASURES}
    included = primary.included_runs(data.table)
    for outcome in DRAWN_OUTCOMES:
        caption = f"{outcome} and each measure. {NORM_MEANS}" + (BEST_RATES if included.tuned else "")
        name = f"measures_{outcome.lower().replace(' ', '_')}"
        yield Drawing(name, caption, partial(draw_association, included.runs, titles, outcome))


def _of_claims(data: ReportData) -> Iterator[Drawing]:
    caption = f"Activation variance over depth at the first iteration: mean over a norm's runs{WHERE}norms."
    probed = in_largest_cells(data.probed)
    yield Drawing("variance", caption, partial(draw_statistics, probed, "first", ("activation_variance",)))


def _of_networks(data: ReportData) -> Iterator[Drawing]:
    best_rates = BEST_RATES if at_comparable_rates(data.table).tuned else ""
    measurement, measured = comparable_spectra(pairs_at_comparable_rates(data.table, data.folders))
    caption = (
        f"Spectral density of the {SPECTRA[measurement]} (eval mode): the first run of each norm{WHERE}norms. Grey: "
        f"{BASELINE}. A Ritz value is drawn as a Gaussian as wide as the distance to the next, at least "
        f"{NODE_WIDTH} of the unit on the vertical axis. A density has no error bar.{best_rates}"
    )
    yield Drawing("densities", caption, partial(draw_densities, in_largest_cells(measured), measurement))
    trained = pairs_at_comparable_rates(data.table, data.probed)
    for moment, words in MOMENT_WORDS.items():
        probed, rates = (data.probed, "") if moment == "first" else (trained, best_rates)
        by_norm = in_largest_cells(probed)
        by_grouping = in_largest_cells(pairs_with_groupings(probed), "Grouping")
        caption = (
            f"Layer statistics over depth at {words}: mean over a norm's runs{WHERE}norms. {LAST_OF_BLOCKS}{rates}"
        )
        if moment == "first":
            caption += " The head of a ViT is initialized with zeros, so no gradient reaches the layers before it."
        yield Drawing(f"depth_{moment}", caption, partial(draw_statistics, by_norm, moment))
        caption = f"The norm with the most groupings, over depth at {words}: mean over the runs{WHERE}groupings.{rates}"
        yield Drawing(f"groupings_{moment}", caption, partial(draw_groupings_of_norm, by_grouping, moment))
    by_norm = in_largest_cells(trained)
    caption = (
        f"Layer statistics over training: mean over sites and a norm's runs{WHERE}norms. A line ends with the first of "
        f"the runs that ends without diverging.{best_rates}"
    )
    yield Drawing("iterations", caption, partial(draw_statistics, by_norm, "mean"))
    caption = (
        f"Weights of convolutions and linear layers over training: mean over weights and a norm's runs{WHERE}norms. "
        "The effective learning rate is that of a weight whose scale does not change the output: the rate divided by "
        f"‖w‖² (for AdamW, by ‖w‖).{best_rates}"
    )
    yield Drawing("weights", caption, partial(draw_statistics, by_norm, "mean", tuple(WEIGHT_TITLES)))

"""The list of the report's pictures, with their file names and captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from normstudy.plots import save_figure
from normstudy.report.data import ReportData, ReportStatistics
from normstudy.report.measure_figures import draw_correlations, draw_outcome
from normstudy.report.network_figures import NODE_WIDTH, draw_densities, draw_groupings_of_norm, draw_statistics
from normstudy.report.norm_figures import draw_groupings, draw_ranking
from normstudy.report.tables import MEASURES, OUTCOMES, SIGNIFICANT, in_largest_cells
from normstudy.storage import remove_leftovers

if TYPE_CHECKING:
    from matplotlib.figure import Figure

MOMENT_WORDS = {"first": "the first iteration", "last": "the last recorded iteration"}
WHERE = " in the cell of each network that has most of them"


class Drawing(NamedTuple):
    """A figure, or None where there is nothing to draw."""

    name: str
    caption: str
    figure: Figure | None


class Picture(NamedTuple):
    """A figure that was saved."""

    path: Path
    caption: str


@dataclass(frozen=True)
class ReportPictures:
    """The pictures of the sections that have some."""

    norms: list[Picture]
    measures: list[Picture]
    claims: list[Picture]
    networks: list[Picture]


def draw_pictures(data: ReportData, statistics: ReportStatistics, folder: Path) -> ReportPictures:
    """Draw the pictures for which there is data, as PNGs in a folder."""
    remove_leftovers(folder, ".*.tmp")
    return ReportPictures(
        norms=_saved(_of_norms(data, statistics), folder),
        measures=_saved(_of_measures(data, statistics), folder),
        claims=_saved(_of_claims(data), folder),
        networks=_saved(_of_networks(data), folder),
    )


def _saved(drawings: Iterable[Drawing], folder: Path) -> list[Picture]:
    pictures = []
    for name, caption, figure in drawings:
        if figure is not None:
            path = folder / f"{name}.png"
            save_figure(figure, path)
            pictures.append(Picture(path, caption))
    return pictures


def _of_norms(data: ReportData, statistics: ReportStatistics) -> Iterator[Drawing]:
    if statistics.ranking_by_network:
        caption = "Test accuracy above the mean of norms in cells of equal hyperparameters, with 95 % intervals."
        yield Drawing("ranking", caption, draw_ranking(statistics.ranking_by_network))
        caption = "Test accuracy by grouping: mean and standard deviation over runs."
        yield Drawing("groupings", caption, draw_groupings(data.table))


def _of_measures(data: ReportData, statistics: ReportStatistics) -> Iterator[Drawing]:
    if not statistics.titles:
        return
    caption = f"Every measure and outcome; * where p < {SIGNIFICANT} after Holm. Ψ: granulated."
    heatmaps = draw_correlations(statistics.correlations, statistics.granulated, statistics.titles)
    yield Drawing("correlations", caption, heatmaps)
    titles = {name: title for name, title in statistics.titles.items() if name in MEASURES}
    for outcome in OUTCOMES if titles else ():
        name = f"measures_{outcome.lower().replace('. ', '_').replace(' ', '_')}"
        caption = f"{outcome} against each measure; a grey line is the trend in one cell of equal hyperparameters."
        yield Drawing(name, caption, draw_outcome(data.table, outcome, titles))


def _of_claims(data: ReportData) -> Iterator[Drawing]:
    caption = f"Activation variance over depth at the first iteration: means over a norm's runs{WHERE}."
    probed = in_largest_cells(data.probed)
    yield Drawing("variance", caption, draw_statistics(probed, "first", ("activation_variance",)))


def _of_networks(data: ReportData) -> Iterator[Drawing]:
    measured = [(row, run) for row, run in data.folders if run.measurement("hessian").exists()]
    caption = f"Spectral density of the Hessian: the first run of each norm{WHERE}. "
    caption += f"A Ritz value is {NODE_WIDTH} wide in asinh λ."
    yield Drawing("densities", caption, draw_densities(in_largest_cells(measured)))
    by_norm, by_grouping = in_largest_cells(data.probed), in_largest_cells(data.probed, "Grouping")
    for moment, words in MOMENT_WORDS.items():
        caption = f"Statistics over depth at {words}: means over a norm's runs{WHERE}."
        if moment == "first":
            caption += " The head of a ViT starts from zero, so no gradient passes it then."
        yield Drawing(f"depth_{moment}", caption, draw_statistics(by_norm, moment))
        caption = f"Grouped norm with most groupings over depth at {words}: means over runs{WHERE}."
        yield Drawing(f"groupings_{moment}", caption, draw_groupings_of_norm(by_grouping, moment))
    caption = f"Statistics over training: means over sites and a norm's runs{WHERE}."
    yield Drawing("iterations", caption, draw_statistics(by_norm, "mean"))

"""Norms' means without the differences between cells, and how they are drawn."""

import numpy as np
import pandas as pd
import pytest
from matplotlib.container import ErrorbarContainer
from matplotlib.figure import Figure

from normstudy.report import measure_figures
from normstudy.report.measure_figures import NormMeans, norm_means

NORMS = {"A": (1.0, 60.0), "B": (2.0, 50.0), "C": (3.0, 70.0), "D": (4.0, 40.0), "E": (5.0, 30.0), "F": (6.0, 65.0)}


def points_in(cells: dict[str, tuple[str, float, float]]) -> pd.DataFrame:
    """Return points of cells {name: (norms, shift of x, shift of y)} in which norm and cell add up."""
    rows = [
        ("vgg", norm, cell, NORMS[norm][0] + x, NORMS[norm][1] + y)
        for cell, (norms, x, y) in cells.items()
        for norm in norms
    ]
    return pd.DataFrame(rows, columns=["network", "norm", "cell", "x", "y"])


def means_of(cells: dict[str, tuple[str, float, float]]) -> NormMeans:
    found = norm_means(points_in(cells))
    assert found is not None
    return found


def test_cells_with_other_norms_do_not_move_a_norm():
    found = means_of({"a": ("ABCDE", 1.0, -8.0), "b": ("BCDEF", -1.0, 8.0)})
    assert found.n_cells == 2
    assert found.means.loc[list(NORMS)].to_numpy() == pytest.approx(np.array(list(NORMS.values())))
    assert found.spreads.loc[["B", "C"]].to_numpy() == pytest.approx(0, abs=1e-9)
    rhos = [points_in({"a": (norms, 0, 0)})[["x", "y"]].rank().corr().iloc[0, 1] for norms in ("ABCDE", "BCDEF")]
    assert found.rho == pytest.approx(np.mean(rhos))


def test_small_cells_are_left_out_where_a_coefficient_leaves_them_out():
    found = means_of({"a": ("ABCDE", 0.0, 0.0), "b": ("AB", 50.0, 50.0)})
    assert found.n_cells == 1
    assert found.means.loc["A"].tolist() == [1.0, 60.0]
    assert means_of({"a": ("AB", 0.0, 0.0)}).n_cells == 1
    assert norm_means(points_in({"a": ("A", 0.0, 0.0)})) is None
    assert norm_means(points_in({})) is None


def test_cells_that_share_no_norm_are_not_mixed():
    found = means_of({"a": ("ABC", 0.0, 0.0), "b": ("DE", 30.0, 0.0)})
    assert sorted(found.means.index) == ["A", "B", "C"]


def test_one_norm_far_from_the_others_does_not_squeeze_them():
    assert measure_figures.far_from_others(np.array([70.0, 72, 71, 10, 74])) == 3
    assert measure_figures.far_from_others(np.array([70.0, 72, 71, 63, 74])) is None
    assert measure_figures.far_from_others(np.array([70.0, 70, 70, 10, 70])) is None
    assert measure_figures.far_from_others(np.array([70.0, 72, 71, 10])) is None
    means = pd.DataFrame({"x": range(5), "y": [70.0, 72, 71, 10, 74]}, index=["Plain", *"ABCD"], dtype=float)
    panel = Figure().subplots()
    measure_figures._draw_norms(panel, NormMeans(means, 0 * means, 0.5, 1), is_log=False)
    low, high = panel.get_ylim()
    assert 65 < low < 70
    assert 74 < high < 79
    assert "C: 10" in [text.get_text() for text in panel.texts]


def test_the_primary_analysis_is_drawn_in_the_order_of_its_coefficients():
    rows = [
        ("nc1", "between norms", "primary", 0.5, -0.1, 0.9, 0.2),
        ("Class Similarity", "between norms", "primary", -0.9, -1.0, -0.4, 0.01),
        ("Trace", "between norms", "exploratory", 1.0, 1.0, 1.0, 0.001),
        ("nc4", "between norms", "primary", np.nan, np.nan, np.nan, np.nan),
        ("nc1", "within norms over seeds", "within norms", -0.3, -0.6, 0.2, 1.0),
        ("nc1", "within norms over settings", "within norms", 0.7, 0.6, 0.8, 0.01),
    ]
    frame = pd.DataFrame(rows, columns=["measure", "way", "family", "value", "low", "high", "p_holm"])
    titles = {"nc1": "neural collapse", "Class Similarity": "class similarity"}
    frame = frame.assign(n_norms=7, n_settings=33)
    figure = measure_figures.draw_primary(frame, titles)
    assert figure is not None
    between, within = figure.axes
    assert [label.get_text() for label in between.get_yticklabels()] == ["class similarity", "neural collapse"]
    assert (between.get_title(), within.get_title()) == ("between norms (7 norms)", "within norms over seeds (33 runs)")
    drawn = [bar.lines for bar in between.containers if isinstance(bar, ErrorbarContainer)]
    assert [np.asarray(line[0].get_xydata())[0, 0] for line in drawn] == [-0.9, 0.5]
    assert [line[0].get_markerfacecolor() != "white" for line in drawn] == [True, False]
    ends = [segment.get_segments()[0][:, 0] for *_, [segment] in drawn]
    assert np.array(ends) == pytest.approx(np.array([[-1.0, -0.4], [-0.1, 0.9]]))
    assert measure_figures.draw_primary(frame[frame["measure"] == "nc1"], titles) is None

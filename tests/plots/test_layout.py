"""Names next to lines and points: none covers another, and each is where its line or point is."""

import io
import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.text import Text

from config import NORM_TYPES
from normstudy.plots import NAME_WIDTH, label_line_ends, label_points, panel_grid
from normstudy.plots.layout import NAME_HEIGHT, spread_out


@given(st.lists(st.floats(0, 1), min_size=1, max_size=14), st.floats(0.001, 0.07))
def test_heights_are_moved_apart_in_their_order_and_within_the_panel(heights, gap):
    places = spread_out(sorted(heights), gap)
    assert all(after - before >= gap - 1e-9 for before, after in itertools.pairwise(places))
    assert min(places) >= -1e-9
    assert max(places) <= 1 + 1e-9


def test_heights_that_are_far_apart_stay():
    assert spread_out([0.1, 0.5, 0.9], 0.2) == pytest.approx([0.1, 0.5, 0.9])
    assert spread_out([0.5, 0.5], 0.2) == pytest.approx([0.4, 0.6])
    assert spread_out([], 0.2) == []


def test_each_line_is_named_at_its_end_and_those_that_end_outside_above_the_panel():
    _, [[panel]] = panel_grid(1, 1, (3, 2))
    for height in (1.0, 1.01, 1.02, 5.0):
        panel.plot([0, 1, 2], [0, 3, height], label=f"at {height}")
    panel.plot([0, 1, 2], [1, 2, np.nan], label="stopped early")
    panel.plot([0, 1, 2], [1, 2, 99], label="diverged")
    panel.set_ylim(-0.2, 5.2)
    label_line_ends(panel)
    names = {text.get_text(): text.get_position()[1] for text in panel.texts}
    assert "off the scale, or not finite: diverged" in names
    [early] = [text for text in panel.texts if text.get_text() == "stopped early"]
    end = panel.transData.transform((1, 2))
    box = early.get_window_extent()
    assert np.hypot(*(np.clip(end, box.min, box.max) - end)) < 15  # pixels
    assert names["at 1.0"] < names["at 1.01"] < names["at 1.02"] < names["at 5.0"]
    assert names["at 1.01"] - names["at 1.0"] == pytest.approx(NAME_HEIGHT / 2)
    low, high = panel.get_ylim()
    assert names["at 5.0"] == pytest.approx((5 - low) / (high - low))
    assert _overlaps(panel.texts) == []


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_names_of_crowded_points_do_not_cover_each_other(scale):
    figure, [[panel]] = panel_grid(1, 1, (4, 3))
    x, y = np.random.default_rng(0).normal(size=(2, 14))
    x, y = (np.exp(x), np.exp(y)) if scale == "log" else (x, y)
    panel.set(xscale=scale, yscale=scale)
    panel.scatter(x, y)
    label_points(panel, [f"BatchNorm {index}" for index in range(14)], x, y)
    figure.canvas.draw()
    assert _overlaps(panel.texts) == []
    inside = panel.get_window_extent()
    assert all(inside.contains(*text.get_window_extent().min) for text in panel.texts)


def test_the_longest_name_of_a_norm_fits_beside_a_panel():
    figure, [[panel]] = panel_grid(1, 1, (5.5, 2), right=NAME_WIDTH)
    panel.plot([0, 1], [0, 1], label=max(NORM_TYPES, key=len))
    label_line_ends(panel)
    figure.canvas.draw()
    [name] = panel.texts
    assert name.get_window_extent().xmax < figure.bbox.xmax


def test_a_vector_picture_stores_names_as_references_to_letters():
    """An outline of each letter would make the files of a report five times as large."""
    figure, [[panel]] = panel_grid(1, 1, (3, 2))
    panel.scatter([0, 1], [0, 1])
    label_points(panel, ["ScaledWeightStandardization"] * 2, [0, 1], [0, 1])
    file = io.StringIO()
    figure.savefig(file, format="svg")
    assert file.getvalue().count('xlink:href="#DejaVuSans') > 2 * len("ScaledWeightStandardization")


def _overlaps(texts: list[Text]) -> list[tuple[str, str]]:
    boxes = [(text.get_text(), text.get_window_extent().padded(-1)) for text in texts]
    return [(a, b) for (a, first), (b, second) in itertools.combinations(boxes, 2) if first.overlaps(second)]

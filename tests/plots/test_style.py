"""The style shared by all pictures."""

import numpy as np
import pytest

import config
from normstudy.plots import style


def test_every_norm_and_some_to_come_have_a_colour_of_their_own():
    assert len(set(style.PALETTE)) == len(style.PALETTE) >= len(config.NORM_TYPES) + 5


def test_a_norm_that_the_program_does_not_know_has_a_colour():
    assert style.norm_colour("MyNorm") not in style.PALETTE


def test_a_picture_is_whole_until_it_is_damaged(tmp_path):
    figure, [[panel]] = style.new_figure(1, 1, figsize=(2, 2))
    panel.set_title("字")  # a character that matplotlib's font lacks
    path = tmp_path / "new" / "picture.png"
    style.save_figure(figure, path)
    assert style.is_whole_picture(path)
    path.write_bytes(path.read_bytes()[:-20])
    assert not style.is_whole_picture(path)
    assert not style.is_whole_picture(tmp_path / "missing.png")


def test_equal_figures_give_equal_vector_files(tmp_path):
    for name in ("one.svg", "other.svg"):
        figure, [[panel]] = style.new_figure(1, 1, figsize=(2, 2))
        panel.plot([1, 2], label="a")
        panel.set_title("字")
        style.save_vectors(figure, tmp_path / name)
    assert b"<svg" in (tmp_path / "one.svg").read_bytes() == (tmp_path / "other.svg").read_bytes()


def test_a_name_from_disk_is_no_formula_and_no_control_character():
    assert style.printable("$x_1$\n") == r"\$x_1\$·"


@pytest.mark.parametrize("values", [[3, 3], [1, 2], [0, 7]])
def test_ticks_stand_at_whole_numbers(values):
    _, [[panel]] = style.new_figure(1, 1, figsize=(4, 3))
    panel.plot(values)
    style.tick_whole_numbers(panel.yaxis)
    low, high = panel.get_ylim()
    ticks = [tick for tick in panel.get_yticks() if low <= tick <= high]
    assert ticks
    assert all(tick == round(tick) for tick in ticks)


@pytest.mark.parametrize(
    ("values", "scale", "shown"),
    [
        ([1.0, 4.0], "linear", None),
        ([-1.0, np.nan], "linear", None),
        ([0.0, 1.0, 100.0], "log", ["1", "2", "5", "10", "20", "50", "100"]),
        ([1.0, 1e6], "log", None),
    ],
)
def test_values_that_span_magnitudes_have_a_logarithmic_scale(values, scale, shown):
    figure, [[panel]] = style.new_figure(1, 1, figsize=(4, 4))
    panel.plot(values, values)
    style.scale_logarithmically(panel, np.array(values))
    assert panel.get_yscale() == scale
    if shown is not None:
        panel.set_ylim(1, 100)
        figure.draw_without_rendering()
        assert [label.get_text() for label in panel.get_yticklabels() if label.get_text() in shown] == shown

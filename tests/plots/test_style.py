"""The style shared by all pictures."""

import itertools
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import pytest

import config
from normstudy.plots import style

ROOT = Path(__file__).parents[2]
DRAW = """
import os, sys
from pathlib import Path
from normstudy.plots import new_figure, save_figure, try_to_draw
try_to_draw(lambda: save_figure(new_figure(1, 1, (2, 2))[0], Path(sys.argv[1])), Path(sys.argv[1]))
print(os.environ["MPLBACKEND"])
"""


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


def test_labels_on_a_logarithmic_x_axis_do_not_touch():
    figure, [[panel]] = style.new_figure(1, 1, figsize=(3.85, 3.3))
    panel.set_xscale("log")
    panel.plot([4e-6, 9e-4], [1, 2])
    style.tick_logarithmically(panel.xaxis, np.array([4e-6, 9e-4]))
    figure.draw_without_rendering()
    low, high = panel.get_xlim()
    ticks = zip(panel.get_xticks(), panel.get_xticklabels(), strict=True)
    boxes = [label.get_window_extent() for tick, label in ticks if low <= tick <= high]
    assert len(boxes) >= 3
    assert all(left.x1 < right.x0 for left, right in itertools.pairwise(boxes))


def draw(path):
    figure, [[panel]] = style.new_figure(1, 1, figsize=(3, 2))
    panel.plot([1, 3, 2], label="a_b")
    panel.legend()
    style.save_figure(figure, path)


def test_settings_of_the_user_change_no_picture(tmp_path):
    """LaTeX may not even be installed."""
    style.try_to_draw(lambda: draw(tmp_path / "usual.png"), tmp_path / "usual.png")
    theirs: dict[Any, Any] = {"text.usetex": True, "font.size": 30, "savefig.bbox": "tight", "lines.linewidth": 9}
    with matplotlib.rc_context(theirs):
        style.try_to_draw(lambda: draw(tmp_path / "here.png"), tmp_path / "here.png")
        assert dict(matplotlib.rcParams) | theirs == dict(matplotlib.rcParams)
    assert (tmp_path / "here.png").read_bytes() == (tmp_path / "usual.png").read_bytes()


def test_the_backend_of_a_notebook_need_not_be_installed(tmp_path):
    backend = "module://matplotlib_inline.backend_inline"
    environment = os.environ | {"MPLBACKEND": backend, "PYTHONPATH": str(ROOT)}
    path = tmp_path / "picture.png"
    done = subprocess.run([sys.executable, "-c", DRAW, path], env=environment, capture_output=True, text=True)
    assert (done.stdout, done.stderr) == (f"{backend}\n", "")
    assert style.is_whole_picture(path)


def test_a_picture_that_fails_is_one_line_and_leaves_no_older_one(tmp_path, capsys):
    path = tmp_path / "picture.png"
    path.write_bytes(b"of an earlier measurement")
    style.try_to_draw(lambda: style.new_figure(-1, 1, figsize=(2, 2)), path)
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{path} could not be drawn (ValueError: ")
    assert not path.exists()

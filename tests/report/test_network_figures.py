"""The frame and the scale of panels in which some lines end early."""

import pytest
from matplotlib.figure import Figure

from normstudy.report import network_figures


@pytest.mark.parametrize(
    ("lasting", "is_logarithmic", "scale"),
    [([1.0, 2.0, 4.0], True, "linear"), ([0.0, 1.0, 1000.0], True, "log"), ([-1.0, 5.0, 99.0], False, "linear")],
)
def test_runs_that_diverged_leave_the_frame(lasting, is_logarithmic, scale):
    panel = Figure().subplots()
    panel.plot([0, 50, 100], lasting)
    panel.plot([0, 1], [1.0, 1e20])
    network_figures._scale_and_frame(panel, is_logarithmic)
    low, high = panel.get_ylim()
    assert panel.get_yscale() == scale
    least = min(value for value in lasting if value > 0 or scale == "linear")
    assert low < least < max(lasting) < high < 2 * max(lasting)


def test_one_recorded_iteration_is_drawn():
    panel = Figure().subplots()
    panel.plot([0], [3.0], marker=".")
    network_figures._scale_and_frame(panel, True)

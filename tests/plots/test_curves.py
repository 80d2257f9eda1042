"""The picture of loss and accuracy over epochs shows every evaluation."""

import pytest

from normstudy.plots import curves
from normstudy.plots.style import new_figure


@pytest.mark.parametrize(("every", "evaluated"), [(60, [60]), (20, [20, 40, 60]), (1, list(range(1, 61)))])
def test_each_evaluation_is_a_point_that_can_be_seen(every, evaluated):
    """A single point has no line, so it needs a marker; points that are not neighbours are joined."""
    rows = [
        {
            "epoch": str(epoch),
            "train_loss": "1.0",
            "validation_loss": "",
            "test_loss": "0.5" if not epoch % every else "",
        }
        for epoch in range(1, 61)
    ]
    _, [[panel]] = new_figure(1, 1, figsize=(4, 3))
    curves._draw_quantity(panel, rows, "loss", 2, "loss")
    train, test = panel.lines
    assert list(train.get_xdata()) == list(range(1, 61))
    assert list(test.get_xdata()) == evaluated
    assert set(test.get_ydata()) == {1.0}
    assert (test.get_marker() == "s") == (len(evaluated) <= 30)

"""The report of a finished run."""

import pytest

from normstudy.storage import read_summary
from normstudy.training.finished_run import describe_outcome

pytestmark = pytest.mark.usefixtures("narrow")


@pytest.mark.parametrize(("accuracy", "is_said"), [(0.5, True), (0.7, False)])
def test_a_network_that_has_learned_nothing_is_said(train, tmp_path, accuracy, is_said):
    """The data set has two classes."""
    run = train(tmp_path, "--epochs=1")
    summary = read_summary(run) | {"train_accuracy": accuracy}
    assert ("no better than chance" in describe_outcome(run, summary)) == is_said

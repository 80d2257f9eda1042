"""Granulated rank correlation compared with loops over pairs."""

import itertools

import numpy as np
import pytest
from report_helpers import random_runs

from normstudy.report import granulation

pytestmark = pytest.mark.filterwarnings("error")


def test_granulated_is_what_loops_over_pairs_give():
    runs = random_runs(80)
    found, total, low, high = granulation.granulated_psi(runs, "Class Similarity", "Test Accuracy", resamples=200)
    axes = ["Label", "Model", "Batch Size", "Mom & WD"]
    assert set(found) == set(axes)
    for axis in axes:
        groups: dict[tuple, list[float]] = {}
        for a, b in itertools.combinations(runs.to_dict("records"), 2):
            others = tuple(a[name] for name in axes if name != axis)
            if others == tuple(b[name] for name in axes if name != axis) and a[axis] != b[axis]:
                sign = np.sign(a["Class Similarity"] - b["Class Similarity"]) * np.sign(
                    a["Test Accuracy"] - b["Test Accuracy"]
                )
                groups.setdefault(others, []).append(sign)
        assert found[axis] == (pytest.approx(np.mean([np.mean(signs) for signs in groups.values()])), len(groups))
    assert total == pytest.approx(np.mean([psi for psi, _ in found.values()]))
    assert low < total < high


def test_one_run_has_no_psi():
    found = granulation.granulated_psi(random_runs(1), "Class Similarity", "Test Accuracy")
    assert found.by_axis == {}
    assert np.isnan(found.value)

"""Granulated rank correlation compared with loops over pairs."""

import itertools

import numpy as np
import pytest
from report_helpers import random_runs

from normstudy.report import granulation

pytestmark = pytest.mark.filterwarnings("error")
PAIR = ("Class Similarity", "Test Accuracy")


def test_granulated_is_what_loops_over_pairs_give():
    runs = random_runs(80)
    groups = granulation.groups_by_axis(runs)
    found, total, low, high = granulation.granulated_psi(runs, *PAIR, groups, resamples=200)
    axes = ["Label", "Model", "Batch Size", "Mom & WD"]
    assert set(found) == set(axes)
    for axis in axes:
        signs_of: dict[tuple, list[float]] = {}
        for a, b in itertools.combinations(runs.to_dict("records"), 2):
            others = tuple(a[name] for name in axes if name != axis)
            if others == tuple(b[name] for name in axes if name != axis) and a[axis] != b[axis]:
                sign = np.sign(a["Class Similarity"] - b["Class Similarity"]) * np.sign(
                    a["Test Accuracy"] - b["Test Accuracy"]
                )
                signs_of.setdefault(others, []).append(sign)
        assert found[axis] == (pytest.approx(np.mean([np.mean(signs) for signs in signs_of.values()])), len(signs_of))
    assert total == pytest.approx(np.mean([psi for psi, _ in found.values()]))
    assert low < total < high


def test_one_run_has_no_psi():
    runs = random_runs(1)
    found = granulation.granulated_psi(runs, *PAIR, granulation.groups_by_axis(runs))
    assert found.by_axis == {}
    assert np.isnan(found.value)

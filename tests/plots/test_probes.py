"""The colour scales of layer statistics, and the places of sites in a block."""

import numpy as np
import pytest

from normstudy.plots import probes


@pytest.mark.parametrize(
    ("name", "place"),
    [
        ("blocks.3.conv1", "conv1"),
        ("blocks.3.shortcut.0", "shortcut"),
        ("blocks.3", "block"),
        ("final_activation", "activation"),
    ],
)
def test_a_site_has_a_place_in_its_block(name, place):
    assert probes._place(name) == place


@pytest.mark.parametrize(
    ("values", "key", "limits"),
    [
        ([[1.0, 2.0]], "std", (1, 2, False)),
        ([[1.0, 100.0]], "std", (1, 100, True)),
        ([[1.0, 100.0]], "cosine_similarity", (1, 100, False)),
        ([[0.0, 0.0]], "std", (0, 1e-9, False)),
        ([[1.0, 100.0], [np.inf, 1e9]], "std", (1, 100, True)),
        ([[np.nan, np.nan]], "std", (0, 1, False)),
        ([[1e-20, *np.linspace(1, 100, 99)]], "std", (1e-4, 100, True)),
    ],
)
def test_the_scale_of_colours_is_that_of_whole_iterations(values, key, limits):
    assert probes._colour_limits(np.array(values), key) == pytest.approx(limits)

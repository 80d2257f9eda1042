"""A Synthetic data set that is made at once."""

import pytest


@pytest.fixture
def small_synthetic(monkeypatch):
    monkeypatch.setattr("normstudy.datasets.synthetic.SYNTHETIC_TRAIN", 200)
    monkeypatch.setattr("normstudy.datasets.synthetic.SYNTHETIC_TEST", 50)

"""A small Synthetic data set, which is made quickly."""

import pytest


@pytest.fixture
def small_synthetic(monkeypatch):
    monkeypatch.setattr("normstudy.datasets.synthetic.SYNTHETIC_TRAIN", 200)
    monkeypatch.setattr("normstudy.datasets.synthetic.SYNTHETIC_TEST", 50)

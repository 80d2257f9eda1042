"""Synthetic images are a function of the seed, balanced, and learnable."""

import pytest
import torch
from datasets_helpers import same_dataset

from normstudy.datasets.batches import to_network_input
from normstudy.datasets.synthetic import make_synthetic


@pytest.fixture(scope="module")
def synthetic():
    return make_synthetic(0)


def test_synthetic_has_the_documented_sizes(synthetic):
    shapes = [tuple(split.images.shape) for split in (synthetic.train, synthetic.test)]
    assert shapes == [(5000, 3, 32, 32), (1000, 3, 32, 32)]


def test_synthetic_is_a_function_of_the_seed(small_synthetic):
    first = make_synthetic(3)
    torch.manual_seed(99)
    assert same_dataset(make_synthetic(3), first)


def test_synthetic_differs_between_seeds(small_synthetic):
    assert len({make_synthetic(seed).fingerprint() for seed in range(4)}) == 4


def test_synthetic_is_balanced(synthetic):
    counts = [torch.bincount(split.labels).tolist() for split in (synthetic.train, synthetic.test)]
    assert counts == [[500] * 10, [100] * 10]


def test_synthetic_repeats_no_image(synthetic):
    images = torch.cat([synthetic.train.images, synthetic.test.images])
    assert len({image.numpy().tobytes() for image in images}) == 6000


def test_synthetic_is_learnable_yet_not_by_its_class_means_alone(synthetic):
    """Measured over four seeds: the nearest class mean is right on 81 to 85 % of the test images."""
    pixels, test_pixels = (to_network_input(split.images).flatten(1) for split in (synthetic.train, synthetic.test))
    means = torch.stack([pixels[synthetic.train.labels == label].mean(0) for label in range(10)])
    accuracy = (torch.cdist(test_pixels, means).argmin(1) == synthetic.test.labels).double().mean()
    assert 0.5 < accuracy < 0.95

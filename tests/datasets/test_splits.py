"""Balanced subsets, and the fingerprint of a data set."""

from dataclasses import replace

import pytest
import torch
from datasets_helpers import random_split
from hypothesis import given
from hypothesis import strategies as st

from normstudy.datasets import Dataset, Split, balanced_subset


@given(st.lists(st.integers(1, 12), min_size=1, max_size=6), st.integers(0, 9), st.randoms(use_true_random=False))
def test_a_subset_is_balanced_sorted_without_repeats_and_repeatable(class_sizes, seed, shuffler):
    in_order = [label for label, size in enumerate(class_sizes) for _ in range(size)]
    labels = torch.tensor(shuffler.sample(in_order, len(in_order)))
    count = shuffler.randint(0, min(class_sizes) * len(class_sizes))
    indices = balanced_subset(labels, count, len(class_sizes), seed)
    counts = torch.bincount(labels[indices], minlength=len(class_sizes))
    assert (len(indices), counts.max() - counts.min() <= 1) == (count, True)
    assert indices.tolist() == sorted(set(indices.tolist()))
    assert torch.equal(indices, balanced_subset(labels, count, len(class_sizes), seed))


def test_subsets_of_two_seeds_differ():
    labels = torch.arange(1000) % 10
    assert not torch.equal(balanced_subset(labels, 100, 10, seed=0), balanced_subset(labels, 100, 10, seed=1))


def test_a_subset_is_not_just_the_first_samples():
    assert balanced_subset(torch.arange(1000) % 10, 100, 10).max() > 900


@pytest.mark.parametrize("labels", [[0, 0, 0, 1], [0, 0, 0, 0]], ids=["short", "absent"])
def test_a_class_with_too_few_samples_is_an_error_that_names_it(labels):
    with pytest.raises(ValueError, match="class 1"):
        balanced_subset(torch.tensor(labels), 4, 2)


# The fingerprint


def three_splits():
    return Dataset(random_split(6, seed=1), random_split(4, seed=2), ("ant", "bee"), random_split(2, seed=3))


def test_equal_data_have_equal_fingerprints():
    first, second = three_splits(), three_splits()
    assert first.fingerprint() == second.fingerprint()


def test_the_fingerprint_does_not_depend_on_how_the_tensors_lie_in_memory():
    dataset = three_splits()
    images = dataset.train.images.contiguous(memory_format=torch.channels_last)
    assert replace(dataset, train=replace(dataset.train, images=images)).fingerprint() == dataset.fingerprint()


@pytest.mark.parametrize("split", ["train", "test", "validation"])
@pytest.mark.parametrize("part", ["images", "labels"])
def test_the_fingerprint_changes_with_every_pixel_and_label(split, part):
    dataset = three_splits()
    prints = {dataset.fingerprint()}
    values = getattr(getattr(dataset, split), part).flatten()
    positions = range(0, len(values), 1 if part == "labels" else 37)
    for position in positions:
        values[position] ^= 1
        prints.add(dataset.fingerprint())
        values[position] ^= 1
    assert len(prints) == 1 + len(positions)


@pytest.mark.parametrize(
    "change",
    [
        lambda dataset: {"classes": ("ant", "wasp")},
        lambda dataset: {"classes": ("bee", "ant")},
        lambda dataset: {"validation": None},
        lambda dataset: {"test": dataset.validation, "validation": dataset.test},
        lambda dataset: {"train": dataset.train.take(torch.tensor([1, 0, 2, 3, 4, 5]))},
        lambda dataset: {"train": Split(dataset.train.images.reshape(6, 3, 4, 16), dataset.train.labels)},
    ],
    ids=["class name", "class order", "no validation", "splits exchanged", "sample order", "shape"],
)
def test_the_fingerprint_changes_with(change):
    dataset = three_splits()
    assert replace(dataset, **change(dataset)).fingerprint() != dataset.fingerprint()

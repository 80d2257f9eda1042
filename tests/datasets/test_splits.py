"""Balanced subsets, and the fingerprint of a data set."""

from dataclasses import replace

import pytest
import torch
from datasets_helpers import random_split
from hypothesis import given
from hypothesis import strategies as st

from normstudy.datasets import Dataset, Split, balanced_subset, fewest_samples, shares_of_classes

CLASS_SIZES = st.lists(st.integers(0, 12), min_size=1, max_size=6)


@given(CLASS_SIZES, st.integers(0, 9), st.sampled_from(["equal", "proportional"]), st.randoms(use_true_random=False))
def test_a_subset_has_the_wanted_shares_sorted_without_repeats_and_repeatable(class_sizes, seed, balance, shuffler):
    in_order = [label for label, size in enumerate(class_sizes) for _ in range(size)]
    labels = torch.tensor(shuffler.sample(in_order, len(in_order)), dtype=torch.int64)
    count = shuffler.randint(0, len(labels))
    indices = balanced_subset(labels, count, len(class_sizes), seed, balance=balance)
    counts = torch.bincount(labels[indices], minlength=len(class_sizes)).tolist()
    assert counts == shares_of_classes(class_sizes, count, balance)
    assert indices.tolist() == sorted(set(indices.tolist()))
    assert torch.equal(indices, balanced_subset(labels, count, len(class_sizes), seed, balance=balance))


@given(CLASS_SIZES, st.data())
def test_equal_shares_are_as_equal_as_the_classes_allow(class_sizes, data):
    """Of any two classes, the one with more than one image more would have to give one to a class that is used up."""
    count = data.draw(st.integers(0, sum(class_sizes)))
    shares = shares_of_classes(class_sizes, count)
    assert sum(shares) == count
    assert all(0 <= share <= size for share, size in zip(shares, class_sizes, strict=True))
    unfilled = [share for share, size in zip(shares, class_sizes, strict=True) if share < size]
    assert all(share <= min(unfilled, default=count) + 1 for share in shares)


@given(CLASS_SIZES, st.data())
def test_proportional_shares_are_within_one_of_the_exact_ones(class_sizes, data):
    count = data.draw(st.integers(0, sum(class_sizes)))
    shares = shares_of_classes(class_sizes, count, "proportional")
    assert sum(shares) == count
    exact = [count * size / max(sum(class_sizes), 1) for size in class_sizes]
    assert all(abs(a - b) < 1 and a <= size for a, b, size in zip(shares, exact, class_sizes, strict=True))


@pytest.mark.parametrize(
    ("sizes", "count", "balance", "shares"),
    [
        ([50, 50, 50], 7, "equal", [3, 2, 2]),
        ([112, 2], 20, "equal", [18, 2]),
        ([100, 1, 100], 11, "equal", [5, 1, 5]),
        ([112, 2], 20, "proportional", [20, 0]),
        ([112, 2], 57, "proportional", [56, 1]),
        ([60, 30, 10], 10, "proportional", [6, 3, 1]),
    ],
)
def test_shares_of_classes(sizes, count, balance, shares):
    assert shares_of_classes(sizes, count, balance) == shares


@pytest.mark.parametrize(("balance", "fewest"), [("equal", 2), ("proportional", 29)])
def test_the_fewest_samples_that_have_every_class(balance, fewest):
    assert fewest_samples([112, 2], balance) == fewest
    assert min(shares_of_classes([112, 2], fewest, balance)) == 1
    assert min(shares_of_classes([112, 2], fewest - 1, balance)) == 0


def test_subsets_of_two_seeds_differ():
    labels = torch.arange(1000) % 10
    assert not torch.equal(balanced_subset(labels, 100, 10, seed=0), balanced_subset(labels, 100, 10, seed=1))


def test_a_subset_is_not_just_the_first_samples():
    assert balanced_subset(torch.arange(1000) % 10, 100, 10).max() > 900


def test_more_samples_than_there_are_is_an_error():
    with pytest.raises(ValueError, match="there are only 4"):
        balanced_subset(torch.tensor([0, 0, 0, 1]), 5, 2)


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

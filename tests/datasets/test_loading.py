"""The flags for subsets and for the validation split."""

import pytest
import torch
from datasets_helpers import load, numbered_split

from normstudy.cli import UsageError
from normstudy.datasets import Dataset, Split, loading
from normstudy.datasets.synthetic import make_synthetic


def test_train_samples_and_test_samples_take_balanced_parts(small_synthetic):
    found = load(dataset="Synthetic", train_samples=60, test_samples=20)
    counts = [torch.bincount(split.labels).tolist() for split in (found.train, found.test)]
    assert counts == [[6] * 10, [2] * 10]


def test_subsets_keep_images_with_their_labels(small_synthetic):
    full, found = make_synthetic(0), load(dataset="Synthetic", train_samples=60, test_samples=20)
    for whole, part in ((full.train, found.train), (full.test, found.test)):
        label_of = {image.numpy().tobytes(): int(label) for image, label in zip(*vars(whole).values(), strict=True)}
        assert [label_of[image.numpy().tobytes()] for image in part.images] == part.labels.tolist()


@pytest.mark.parametrize("flag", ["train_samples", "test_samples"])
def test_more_samples_than_there_are_is_a_usage_error_that_names_the_flag(flag, small_synthetic):
    with pytest.raises(UsageError, match=f"--{flag}"):
        load(dataset="Synthetic", **{flag: 1000})


@pytest.fixture
def numbered(monkeypatch):
    """`Synthetic` is a data set of 100 training images, each filled with its own number, for every seed."""
    monkeypatch.setattr(
        loading,
        "make_synthetic",
        lambda seed: Dataset(numbered_split(100, 10), numbered_split(20, 10), tuple("abcdefghij")),
    )


def members(split):
    return split.images[:, 0, 0, 0].tolist()


@pytest.mark.parametrize(("fraction", "sizes"), [(0.1, (90, 10)), (0.25, (75, 25)), (0.5, (50, 50))])
def test_train_and_validation_are_everything_once(fraction, sizes, numbered):
    found = load(dataset="Synthetic", val_fraction=fraction)
    assert (len(found.train), len(found.validation)) == sizes
    assert sorted(members(found.train) + members(found.validation)) == list(range(100))


def test_validation_labels_stay_with_their_images_and_are_balanced(numbered):
    found = load(dataset="Synthetic", val_fraction=0.2)
    assert found.validation.labels.tolist() == [number % 10 for number in members(found.validation)]
    assert torch.bincount(found.validation.labels).tolist() == [2] * 10


def test_the_validation_split_is_the_same_for_every_seed(numbered):
    held_out = [members(load(dataset="Synthetic", val_fraction=0.2, seed=seed).validation) for seed in (0, 1, 7)]
    assert held_out[0] == held_out[1] == held_out[2]


def test_validation_is_held_out_of_the_training_subset(numbered):
    found = load(dataset="Synthetic", train_samples=50, val_fraction=0.2)
    assert (len(found.train), len(found.validation)) == (40, 10)


def test_nothing_is_held_out_by_default(numbered):
    found = load(dataset="Synthetic")
    assert (found.validation, members(found.train)) == (None, list(range(100)))


@pytest.mark.parametrize("fraction", [0.001, 0.999])
def test_a_split_that_would_be_empty_is_a_usage_error(fraction, numbered):
    with pytest.raises(UsageError, match="--val_fraction"):
        load(dataset="Synthetic", val_fraction=fraction)


# Unequal classes


@pytest.fixture
def unequal(monkeypatch):
    """`Synthetic` has 112 training images of one class and 2 of the other."""
    images = torch.arange(114, dtype=torch.uint8)[:, None, None, None].expand(114, 3, 2, 2)
    split = Split(images, torch.tensor([0] * 112 + [1] * 2))
    monkeypatch.setattr(loading, "make_synthetic", lambda seed: Dataset(split, split, ("cat", "dog")))


def counts(split):
    return torch.bincount(split.labels, minlength=2).tolist()


@pytest.mark.parametrize(("balance", "found"), [("equal", [18, 2]), ("proportional", [20, 0])])
def test_train_samples_of_unequal_classes_are_taken_and_counted(balance, found, unequal, capsys):
    assert counts(load(dataset="Synthetic", train_samples=20, balance=balance).train) == found
    assert capsys.readouterr().err == f"--train_samples takes {found[0]} of cat, {found[1]} of dog\n"


@pytest.mark.parametrize(("balance", "held_out"), [("equal", [22, 1]), ("proportional", [23, 0])])
def test_the_validation_split_leaves_an_image_of_each_class_in_training(balance, held_out, unequal):
    found = load(dataset="Synthetic", val_fraction=0.2, balance=balance)
    assert counts(found.validation) == held_out
    assert counts(found.train) == [112 - held_out[0], 2 - held_out[1]]


def test_a_validation_split_that_takes_the_last_image_of_a_class_is_a_usage_error(unequal):
    with pytest.raises(UsageError, match=r"--val_fraction .* stays in training"):
        load(dataset="Synthetic", val_fraction=0.99)

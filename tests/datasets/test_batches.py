"""Batches are functions of (seed, epoch), and scaled as the network expects them."""

import itertools

import pytest
import torch
from datasets_helpers import numbered_split, numbers, random_images, random_split, same_batches, training_batches
from torch.nn import functional as F

from normstudy.datasets import Split, evaluation_batches
from normstudy.datasets.batches import to_network_input


def batch_sizes(batches):
    return [len(labels) for _, labels in batches]


def epoch_images(split, **options):
    """Return all images of one epoch of training batches, in order."""
    return torch.cat([images for images, _ in training_batches(split, **options)])


def order(seed, epoch):
    return numbers(epoch_images(numbered_split(50), batch_size=8, seed=seed, epoch=epoch))


@pytest.mark.parametrize(
    ("count", "batch_size", "sizes"),
    [(23, 5, [5, 5, 5, 5, 3]), (20, 5, [5] * 4), (21, 5, [5] * 4 + [1]), (3, 8, [3]), (4, 1, [1] * 4)],
)
def test_every_sample_comes_once_an_epoch_and_the_last_batch_may_be_smaller(count, batch_size, sizes):
    batches = list(training_batches(numbered_split(count), batch_size, seed=0, epoch=1))
    assert batch_sizes(batches) == sizes
    assert sorted(number for images, _ in batches for number in numbers(images)) == list(range(count))


def test_labels_stay_with_their_images():
    for images, labels in training_batches(numbered_split(50, num_classes=7), 8, seed=0, epoch=1):
        assert labels.tolist() == [number % 7 for number in numbers(images)]


def test_training_shuffles():
    assert order(seed=0, epoch=0) != list(range(50))


def test_the_order_differs_between_all_epochs_and_seeds():
    assert len({tuple(order(seed, epoch)) for seed in range(4) for epoch in range(4)}) == 16


def test_flips_differ_between_all_epochs_and_seeds():
    """On 50 copies of one image, only the flips make a difference."""
    split = Split(random_images(1).repeat(50, 1, 1, 1), torch.zeros(50, dtype=torch.long))
    plain = to_network_input(split.images[:1])[0]
    flips = set()
    for seed, epoch in itertools.product(range(4), repeat=2):
        images = epoch_images(split, batch_size=8, seed=seed, epoch=epoch)
        flips.add(tuple(torch.equal(image, plain) for image in images))
    assert len(flips) == 16


def test_order_and_flips_do_not_depend_on_the_global_random_state():
    split = random_split(50)
    first = list(training_batches(split, 8, seed=0, epoch=1))
    torch.manual_seed(99)
    assert same_batches(first, training_batches(split, 8, seed=0, epoch=1))


def test_batches_leave_the_global_random_state_alone():
    torch.manual_seed(5)
    before = torch.get_rng_state()
    list(training_batches(random_split(50), 8, seed=0, epoch=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_order_and_flips_do_not_depend_on_the_batch_size():
    split = random_split(50)
    small, large = (epoch_images(split, batch_size=size, seed=0, epoch=1) for size in (8, 50))
    assert torch.equal(small, large)


@pytest.mark.parametrize("first_step", range(8))
def test_first_step_continues_the_same_stream(first_step):
    split = random_split(50)
    whole = list(training_batches(split, 8, seed=0, epoch=1))
    rest = list(training_batches(split, 8, seed=0, epoch=1, first_step=first_step))
    assert len(rest) == 7 - first_step
    assert same_batches(rest, whole[first_step:])


def test_every_image_is_an_original_or_its_mirror_image_and_about_half_are_mirrored():
    split = numbered_split(250)
    split.images[:, :, :, 0] = 255  # a white left edge marks the side; the number is in the other pixels
    plain, mirrored = to_network_input(split.images), to_network_input(split.images.flip(3))
    num_mirrored = 0
    for image in epoch_images(split, batch_size=32, seed=0, epoch=1):
        is_mirrored = bool(image[0, 0, 0] < 1)
        number = numbers(image[None, :, :, 1:])[0]
        assert torch.equal(image, (mirrored if is_mirrored else plain)[number])
        num_mirrored += is_mirrored
    assert 95 <= num_mirrored <= 155  # four standard deviations


def test_training_batches_are_resized_to_image_size():
    split = random_split(6)
    plain = epoch_images(split, batch_size=4, seed=0, epoch=1)
    resized = epoch_images(split, batch_size=4, seed=0, epoch=1, image_size=16)
    torch.testing.assert_close(resized, F.interpolate(plain, (16, 16), mode="bilinear"), atol=1e-6, rtol=0)


def test_evaluation_batches_come_in_order_and_unaugmented():
    split = random_split(11)
    batches = list(evaluation_batches(split, batch_size=4))
    assert batch_sizes(batches) == [4, 4, 3]
    assert torch.equal(torch.cat([images for images, _ in batches]), to_network_input(split.images))
    assert torch.equal(torch.cat([labels for _, labels in batches]), split.labels)


def test_evaluation_batches_are_resized_to_image_size():
    shapes = [tuple(images.shape) for images, _ in evaluation_batches(random_split(3), image_size=12, batch_size=2)]
    assert shapes == [(2, 3, 12, 12), (1, 3, 12, 12)]


def test_network_input_gives_mean_one_half_and_standard_deviation_one_half():
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 1, 16, 16).expand(1, 3, 16, 16)
    expected = (levels.double() / 255 - 0.5) / 0.5
    torch.testing.assert_close(to_network_input(levels).double(), expected, atol=2e-7, rtol=0)


@pytest.mark.parametrize("image_size", [None, 8, 12, 5])
def test_network_input_gives_channels_last_float32(image_size):
    x = to_network_input(random_images(4), image_size=image_size)
    assert (x.dtype, x.is_contiguous(memory_format=torch.channels_last)) == (torch.float32, True)


def test_network_input_leaves_its_images_as_they_are():
    images = random_images(4)
    before = images.clone()
    to_network_input(images, torch.tensor([True, False, True, False]), image_size=5)
    assert torch.equal(images, before)


def test_network_input_mirrors_left_and_right_of_the_chosen_images():
    images = random_images(4)
    mirrored = torch.stack([images[0].flip(2), images[1], images[2], images[3].flip(2)])
    assert torch.equal(to_network_input(images, torch.tensor([True, False, False, True])), to_network_input(mirrored))


@pytest.mark.parametrize("image_size", [5, 6, 12])
@pytest.mark.parametrize("shape", [(8, 8), (6, 8)])
def test_network_input_resizes_bilinearly_with_antialiasing_where_it_shrinks(shape, image_size):
    images = random_images(4, *shape)
    expected = F.interpolate(
        to_network_input(images), (image_size, image_size), mode="bilinear", antialias=image_size < max(shape)
    )
    torch.testing.assert_close(to_network_input(images, image_size=image_size), expected, atol=1e-6, rtol=0)


def test_network_input_shrinks_without_losing_what_lies_between_the_sampled_pixels():
    images = torch.zeros(1, 3, 16, 16, dtype=torch.uint8)
    images[..., ::4] = 255
    assert to_network_input(images, image_size=4)[..., 1:3].mean().item() == pytest.approx(-0.5, abs=0.05)


def test_network_input_does_not_resample_images_of_the_size_asked_for():
    images = random_images(4)
    assert torch.equal(to_network_input(images, image_size=8), to_network_input(images))

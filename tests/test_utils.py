"""Class similarity against brute force over all samples and pairs, in float64."""

import math

import pytest
import torch

from utils import ClassMoments, class_means, cosine_matrix, mean_pairwise_cosine


def features_and_labels(samples=60, classes=5, shape=(4, 3, 2)):
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, classes, (samples,), generator=generator)
    labels[:classes] = torch.arange(classes)
    features = torch.randn(samples, *shape, dtype=torch.float64, generator=generator) + 0.5 * labels.view(-1, 1, 1, 1)
    return features, labels


def brute_force_cosine(means):
    pairs = [(i, j) for i in range(len(means)) for j in range(i + 1, len(means))]
    return sum((means[i] @ means[j] / (means[i].norm() * means[j].norm())).item() for i, j in pairs) / len(pairs)


def test_class_means_are_the_means_of_each_class():
    features, labels = features_and_labels()
    exact = torch.stack([features[labels == label].flatten(1).mean(0) for label in range(5)])
    torch.testing.assert_close(class_means(features, labels, 5), exact)


def test_class_means_keep_the_type_of_the_features():
    features, labels = features_and_labels()
    assert class_means(features.float(), labels, 5).dtype == torch.float32


def test_a_class_without_samples_is_refused():
    features, labels = features_and_labels()
    with pytest.raises(ValueError, match="class 5 has no samples"):
        class_means(features, labels, 6)
    with pytest.raises(ValueError, match="no class has samples"):
        ClassMoments(3).means()


def test_similarity_is_the_mean_over_all_pairs():
    features, labels = features_and_labels()
    means = class_means(features, labels, 5)
    assert mean_pairwise_cosine(means) == pytest.approx(brute_force_cosine(means), rel=1e-12)


def test_identical_means_give_one_and_orthogonal_ones_zero():
    assert mean_pairwise_cosine(torch.ones(4, 7)) == pytest.approx(1)
    assert mean_pairwise_cosine(torch.eye(6)) == 0


def test_a_simplex_has_the_cosine_of_neural_collapse():
    means = torch.eye(10, dtype=torch.float64) - 0.1
    assert mean_pairwise_cosine(means) == pytest.approx(-1 / 9)


def test_the_scale_of_a_mean_does_not_matter():
    means = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    scaled = means * torch.tensor([1e-30, 1, 1e6, 3, 1e20], dtype=torch.float64)[:, None]
    assert mean_pairwise_cosine(scaled) == pytest.approx(mean_pairwise_cosine(means))


def test_a_mean_of_zeros_has_cosine_zero():
    matrix = cosine_matrix(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    assert matrix.tolist() == [[0, 0], [0, 1]]


def test_a_single_class_has_no_pairs():
    with pytest.raises(ValueError, match="two classes"):
        mean_pairwise_cosine(torch.ones(1, 3))


@pytest.mark.parametrize("batch_size", [1, 7, 60])
def test_streaming_gives_the_moments_of_the_whole(batch_size):
    features, labels = features_and_labels()
    moments = ClassMoments(5)
    for part, names in zip(features.split(batch_size), labels.split(batch_size), strict=True):
        moments.update(part, names)
    rows = features.flatten(1)
    means = torch.stack([rows[labels == label].mean(0) for label in range(5)])
    within = (rows - means[labels]).square().sum(1).mean().item()
    between = (means[labels] - rows.mean(0)).square().sum(1).mean().item()
    torch.testing.assert_close(moments.means(), means)
    torch.testing.assert_close(moments.global_mean(), rows.mean(0))
    assert moments.variances() == pytest.approx((within, between), rel=1e-10)
    assert sum(moments.variances()) == pytest.approx((rows - rows.mean(0)).square().sum(1).mean().item())


def test_variances_survive_a_mean_far_from_zero():
    features, labels = features_and_labels()
    near, far = ClassMoments(5), ClassMoments(5)
    near.update(features, labels)
    far.update(features + 1e6, labels)
    assert far.variances() == pytest.approx(near.variances(), rel=1e-7)


def test_memory_does_not_grow_with_samples():
    moments = ClassMoments(5)
    features, labels = features_and_labels()
    sizes = []
    for _ in range(3):
        moments.update(features, labels)
        sizes.append(sum(value.numel() for value in vars(moments).values() if isinstance(value, torch.Tensor)))
    assert sizes == [sizes[0]] * 3


def test_classes_that_fall_together_have_no_between_variance():
    moments = ClassMoments(2)
    moments.update(torch.tensor([[1.0], [-1.0], [1.0], [-1.0]]), torch.tensor([0, 0, 1, 1]))
    within, between = moments.variances()
    assert (within, between) == (1.0, 0.0)
    assert math.isfinite(within)

"""Class similarity against brute force over all samples and pairs, in float64."""

import math
import statistics

import pytest
import torch

from normstudy.storage import NEURAL_COLLAPSE_KEYS
from utils import (
    ClassMoments,
    class_means,
    cosine_matrix,
    mean_pairwise_cosine,
    neural_collapse,
)


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


# Neural collapse


def collapsed(classes=5, dimension=8, per_class=6, spread=0.0, seed=0):
    """Return (features, labels, means): a simplex equiangular tight frame in a random rotation, plus noise."""
    generator = torch.Generator().manual_seed(seed)
    rotation, _ = torch.linalg.qr(torch.randn(dimension, dimension, dtype=torch.float64, generator=generator))
    means = (torch.eye(classes, dtype=torch.float64) - 1 / classes) @ rotation[:classes]
    labels = torch.arange(classes).repeat(per_class)
    noise = torch.randn(len(labels), dimension, dtype=torch.float64, generator=generator)
    return means[labels] + spread * noise + 3.0, labels, means + 3.0


def test_a_simplex_has_collapsed():
    features, labels, means = collapsed()
    found = neural_collapse(features, labels, 2.5 * (means - means.mean(0)), labels)
    assert tuple(found) == NEURAL_COLLAPSE_KEYS
    assert found.pop("effective_rank") == pytest.approx(4)  # four equal singular values
    assert found == pytest.approx(dict.fromkeys(found, 0), abs=1e-12)


def test_nc1_is_the_trace_of_the_chosen_covariances():
    """Two samples per class at μ ± a, along each class's own a: the covariances are known exactly."""
    generator = torch.Generator().manual_seed(1)
    means = torch.randn(4, 7, dtype=torch.float64, generator=generator)
    steps = torch.randn(4, 7, dtype=torch.float64, generator=generator)
    features, labels = torch.cat([means + steps, means - steps]), torch.arange(4).repeat(2)
    within = steps.T @ steps / 4
    centred = means - means.mean(0)
    between = centred.T @ centred / 4
    expected = (within @ torch.linalg.pinv(between, rtol=1e-9)).trace() / 4
    found = neural_collapse(features, labels, means, labels)
    assert found["nc1"] == pytest.approx(expected.item(), rel=1e-10)


def test_nc2_and_nc3_by_loops():
    features, labels, _ = collapsed(spread=0.7)
    weight = torch.randn(5, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    means = [features[labels == label].mean(0) for label in range(5)]
    rows = [mean - sum(means) / 5 for mean in means]
    norms = [row.norm().item() for row in rows]
    cosines = [(rows[i] @ rows[j]).item() / norms[i] / norms[j] for i in range(5) for j in range(i)]
    found = neural_collapse(features, labels, weight, labels)
    assert found["nc2_equinorm"] == pytest.approx(statistics.pstdev(norms) / statistics.mean(norms))
    assert found["nc2_equiangularity"] == pytest.approx(statistics.pstdev(cosines))
    assert found["nc2_max_angle"] == pytest.approx(statistics.mean(abs(cosine + 0.25) for cosine in cosines))
    size = math.sqrt(sum(norm**2 for norm in norms))
    squares = [(weight[c, d] / weight.norm() - rows[c][d] / size).item() ** 2 for c in range(5) for d in range(8)]
    assert found["nc3"] == pytest.approx(math.sqrt(sum(squares)))


def test_nc4_counts_the_samples_whose_nearest_mean_is_not_the_prediction():
    features = torch.tensor([[0.0], [1.0], [10.0], [3.0]], dtype=torch.float64)
    labels = torch.tensor([0, 0, 1, 1])  # means 0.5 and 6.5, so the nearest are 0, 0, 1, 0
    weight = torch.tensor([[-1.0], [1.0]])
    assert neural_collapse(features, labels, weight, torch.tensor([0, 0, 1, 0]))["nc4"] == 0
    assert neural_collapse(features, labels, weight, torch.tensor([0, 1, 1, 1]))["nc4"] == 0.5


def test_effective_rank_by_hand():
    features = torch.tensor([[3.0, 0, 0], [-3, 0, 0], [0, 1, 0], [0, -1, 0]])  # singular values 3√2 and √2
    found = neural_collapse(features, torch.tensor([0, 1, 0, 1]), torch.eye(2, 3), torch.tensor([0, 1, 0, 1]))
    assert found["effective_rank"] == pytest.approx(math.exp(-0.75 * math.log(0.75) - 0.25 * math.log(0.25)), rel=1e-6)


def test_neural_collapse_does_not_depend_on_scale_rotation_or_offset_of_the_features():
    features, labels, means = collapsed(spread=0.3)
    rotation, _ = torch.linalg.qr(torch.randn(8, 8, dtype=torch.float64, generator=torch.Generator().manual_seed(4)))
    expected = neural_collapse(features, labels, means, labels)
    found = neural_collapse(5 * features @ rotation - 7, labels, 0.1 * means @ rotation, labels)
    assert found == pytest.approx(expected, rel=1e-9)


def test_what_is_not_defined_is_not_a_number():
    same = neural_collapse(torch.ones(6, 4), torch.arange(3).repeat(2), torch.eye(3, 4), torch.arange(3).repeat(2))
    assert {name for name, value in same.items() if math.isnan(value)} == set(NEURAL_COLLAPSE_KEYS) - {"nc4"}
    single = neural_collapse(torch.randn(3, 4), torch.arange(3), torch.eye(3, 4), torch.arange(3))
    assert math.isnan(single["nc1"])  # one image per class has no variance within classes
    on_a_line = torch.tensor([[0.0, 0], [1, 0], [2, 0], [0, 0], [1, 0], [2.5, 0]])
    assert math.isnan(
        neural_collapse(on_a_line, torch.arange(3).repeat(2), torch.eye(3, 2), torch.arange(6) % 3)["nc1"]
    )
    with pytest.raises(ValueError, match="two classes"):
        neural_collapse(torch.ones(3, 2), torch.zeros(3, dtype=torch.int64), torch.ones(1, 2), torch.zeros(3))
    with pytest.raises(ValueError, match="class 2 has no samples"):
        neural_collapse(torch.randn(4, 2), torch.tensor([0, 1, 0, 1]), torch.ones(3, 2), torch.zeros(4))

"""Helper functions of run_class_similarity.py: class means, their cosines, variances within and between classes, and
neural collapse.

run_class_similarity.py passes features as the network returns them, for example (N, C, H, W), and again as pooled
vectors. This module flattens each sample to a vector, so D = C·H·W for a feature map. It imports only torch.
"""

import math

import torch
from torch.nn import functional as F


def class_means(features: torch.Tensor, labels: torch.Tensor, num_classes: int) -> torch.Tensor:
    """Return the mean of the flattened features of each class: (C, D).

    features are (N, ...), labels (N,) int64. Raises ValueError for a class without samples.
    """
    moments = ClassMoments(num_classes)
    moments.update(features, labels)
    return moments.means().to(features.dtype if features.is_floating_point() else torch.float32)


def cosine_matrix(means: torch.Tensor) -> torch.Tensor:
    """Return the cosines between the rows of means (C, D): (C, C). The cosine with an all-zero row is 0."""
    rows = F.normalize(means.flatten(1), dim=1, eps=torch.finfo(means.dtype).tiny)
    return (rows @ rows.T).clamp(-1, 1)


def pair_cosines(matrix: torch.Tensor) -> torch.Tensor:
    """Return the entries i < j of a (C, C) matrix: (C(C−1)/2,)."""
    row, column = torch.triu_indices(len(matrix), len(matrix), offset=1, device=matrix.device)
    return matrix[row, column]


def mean_pairwise_cosine(means: torch.Tensor) -> float:
    """Return the mean over pairs i < j of the cosine between rows i and j of means (C, D).

    Raises ValueError for fewer than two classes.
    """
    if len(means) < 2:
        raise ValueError("mean_pairwise_cosine needs at least two classes")
    return pair_cosines(cosine_matrix(means)).mean().item()


class ClassMoments:
    """Means and variances of features by class, accumulated over batches.

    Memory does not grow with the number of batches. Each sample is shifted by the first one, so that squares do not
    cancel. Sums are float64, or float32 if the device has no float64.
    """

    shift: torch.Tensor  # (D,) the first sample
    sums: torch.Tensor  # (C, D) of shifted samples
    squares: torch.Tensor  # (C,) sums of the squared norms of shifted samples
    counts: torch.Tensor  # (C,)

    def __init__(self, num_classes: int) -> None:
        self.num_classes = num_classes
        self.is_empty = True

    @torch.no_grad()
    def update(self, features: torch.Tensor, labels: torch.Tensor) -> None:
        """Add a batch: features (N, ...), which are flattened, and labels (N,) int64 from 0 to num_classes − 1."""
        rows = features.flatten(1)
        rows = rows if rows.device.type == "mps" else rows.double()
        if self.is_empty:
            self.is_empty = False
            self.shift = rows[0].clone()
            self.sums = rows.new_zeros(self.num_classes, rows.shape[1])
            self.squares = rows.new_zeros(self.num_classes)
            self.counts = rows.new_zeros(self.num_classes)
        rows = rows - self.shift
        of_class = F.one_hot(labels, self.num_classes).to(rows.dtype).T
        self.sums.addmm_(of_class, rows)
        self.squares += of_class @ torch.linalg.vector_norm(rows, dim=1).square()
        self.counts += of_class.sum(1)

    def means(self) -> torch.Tensor:
        """Return the class means (C, D). Raises ValueError for a class without samples."""
        if self.is_empty:
            raise ValueError("no class has samples")
        missing = (self.counts == 0).nonzero()
        if len(missing):
            raise ValueError(f"class {int(missing[0])} has no samples")
        return self.sums / self.counts[:, None] + self.shift

    def variances(self) -> tuple[float, float]:
        """Return (within, between), which add up to the total variance.

        within is the mean squared distance of samples from their class mean. between is the mean over samples of the
        squared distance of their class mean from the global mean. Raises ValueError for a class without samples.
        """
        means = self.means() - self.shift
        samples = self.counts.sum()
        within = (self.squares - self.counts * means.square().sum(1)).sum() / samples
        centred = means - self.sums.sum(0) / samples
        between = (self.counts * centred.square().sum(1)).sum() / samples
        return max(within.item(), 0.0), between.item()


@torch.no_grad()
def neural_collapse(
    features: torch.Tensor, labels: torch.Tensor, classifier_weight: torch.Tensor, predictions: torch.Tensor
) -> dict[str, float]:
    """Return how far pooled features have collapsed (Papyan, Han & Donoho 2020), and their effective rank.

    features (N, D) are what the classifier reads, labels (N,) int64, classifier_weight W is (C, D), and predictions
    (N,) int64 are the network's. M (C, D) are the class means minus their mean; all is computed in float64.

    nc1: tr(Σ_W Σ_B⁺)/C, with the pseudo-inverse of rank C−1. nc2_equinorm: standard deviation over mean of the norms of
    the rows of M. nc2_equiangularity: standard deviation over class pairs of their cosines. nc2_max_angle: mean over
    pairs of |cos + 1/(C−1)|. nc3: ‖W/‖W‖ − M/‖M‖‖, all Frobenius. nc4: share of samples whose nearest class mean is not
    that of the prediction. effective_rank: exp of the entropy of the normalized singular values of the centred features
    (Roy & Vetterli 2007). Standard deviations are those of a population.

    A value is NaN where it is not defined: nc1 if there are no more samples than classes or the means span less than
    C−1 dimensions, all of nc2 and nc3 if a row of M (or W) is zero, effective_rank if all features are equal. Raises
    ValueError for fewer than two classes or a class without samples.
    """
    num_classes = len(classifier_weight)
    if num_classes < 2:
        raise ValueError("neural collapse needs at least two classes")
    x = features.double().cpu()
    labels, predictions, weight = labels.cpu(), predictions.cpu(), classifier_weight.double().cpu()
    means = class_means(x, labels, num_classes)
    centred = means - means.mean(0)
    found = {
        "nc1": _within_over_between(x - means[labels], centred),
        **_simplex_distances(centred),
        "nc3": (weight / weight.norm() - centred / centred.norm()).norm().item(),
        "nc4": (torch.cdist(x, means).argmin(1) != predictions).double().mean().item(),
    }
    values = torch.linalg.svdvals(x - x.mean(0))
    shares = values / values.sum()
    found["effective_rank"] = torch.special.entr(shares).sum().exp().item()
    return found


def _within_over_between(deviations: torch.Tensor, centred: torch.Tensor) -> float:
    """Return tr(Σ_W Σ_B⁺)/C of deviations from class means (N, D) and centred class means (C, D), or NaN."""
    samples, num_classes = len(deviations), len(centred)
    _, scales, directions = torch.linalg.svd(centred, full_matrices=False)
    rank = num_classes - 1
    smallest = scales[0] * max(centred.shape) * torch.finfo(scales.dtype).eps
    if samples <= num_classes or len(scales) < rank or scales[rank - 1] <= smallest:
        return math.nan
    along = (deviations @ directions[:rank].T).square().mean(0)  # variance within classes along each direction of Σ_B
    return (along / scales[:rank].square()).sum().item()  # Σ_B is MᵀM/C


def _simplex_distances(centred: torch.Tensor) -> dict[str, float]:
    """Return the three nc2 values of centred class means (C, D)."""
    norms = centred.norm(dim=1)
    is_defined = bool((norms > 0).all())
    cosines = pair_cosines(cosine_matrix(centred)) if is_defined else torch.full((1,), math.nan)
    return {
        "nc2_equinorm": (norms.std(correction=0) / norms.mean()).item() if is_defined else math.nan,
        "nc2_equiangularity": cosines.std(correction=0).item(),
        "nc2_max_angle": (cosines + 1 / (len(centred) - 1)).abs().mean().item(),
    }

"""Helper functions of run_class_similarity.py: class means, their cosines, and variances within and between classes.

run_class_similarity.py passes features as the network returns them, for example (N, C, H, W), and again as pooled
vectors. This module flattens each sample to a vector, so D = C·H·W for a feature map. It imports only torch.
"""

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

    def global_mean(self) -> torch.Tensor:
        """Return the mean over all samples (D,). At least one sample must have been added."""
        return self.sums.sum(0) / self.counts.sum() + self.shift

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

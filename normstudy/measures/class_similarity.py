"""Similarity of the features of different classes: the content of class_similarity.json for one checkpoint."""

import argparse
import time
from typing import Any

import torch

from normstudy.cli import RunError, progress_bar
from normstudy.curvature import full_float32
from normstudy.datasets import Split
from normstudy.measures.checkpoints import Checkpoint
from normstudy.measures.measure_runs import Measurement
from normstudy.plots import draw_class_similarity, draw_class_similarity_over_training
from utils import ClassMoments, cosine_matrix, mean_pairwise_cosine


@torch.no_grad()
def measure_class_similarity(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, Any]:
    """Compute the content of class_similarity.json for one checkpoint.

    Raises RunError if a class has no images, if there are fewer than two classes, or if the features are not finite.
    """
    start = time.perf_counter()
    subset, indices_hash = checkpoint.subset(getattr(checkpoint.dataset, args.split), args.samples, args.seed)
    flattened, pooled = _feature_moments(checkpoint, subset, args)
    try:
        means = flattened.means()
    except ValueError as error:
        words = f"{checkpoint.run.path}: {error} among the {len(subset)} {args.split} images; raise --samples"
        raise RunError(words) from None
    if len(means) < 2:
        raise RunError(f"{checkpoint.run.path}: class similarity needs at least two classes")
    if not means.isfinite().all():
        raise RunError(f"{checkpoint.run.path}: the features are not finite")
    centred = means - flattened.global_mean()
    within, between = flattened.variances()
    has_ratio = between and len(subset) > len(means)  # with one image per class, there is no variance within classes
    content = {
        "class_similarity": mean_pairwise_cosine(means),
        "class_similarity_pooled": mean_pairwise_cosine(pooled.means()),
        "class_similarity_centred": mean_pairwise_cosine(centred),
        "within_class_variance": within,
        "between_class_variance": between,
        "within_over_between": within / between if has_ratio else None,
        "classes": list(checkpoint.dataset.classes),
        "matrix": cosine_matrix(means).tolist(),
        "matrix_pooled": cosine_matrix(pooled.means()).tolist(),
        "matrix_centred": cosine_matrix(centred).tolist(),
        "feature_dimension": means.shape[1],
        "num_samples": len(subset),
        "sample_indices_sha256": indices_hash,
        "seconds": time.perf_counter() - start,
    }
    _report(checkpoint, args, content)
    return content


def _feature_moments(
    checkpoint: Checkpoint, subset: Split, args: argparse.Namespace
) -> tuple[ClassMoments, ClassMoments]:
    """Return the moments of the flattened features and of the features as the classifier pools them."""
    model, num_classes = checkpoint.model, len(checkpoint.dataset.classes)
    flattened, pooled = ClassMoments(num_classes), ClassMoments(num_classes)
    with progress_bar(len(subset), "features") as bar, full_float32():
        for images, labels in checkpoint.batches(subset, args.batch_size):
            features = model.features(images.to(getattr(torch, args.dtype)))
            flattened.update(features, labels)
            pooled.update(model.pool(features), labels)
            bar.update(len(labels))
    return flattened, pooled


def _report(checkpoint: Checkpoint, args: argparse.Namespace, content: dict[str, Any]) -> None:
    ratio = content["within_over_between"]
    print(
        f"{checkpoint.run.path.name} epoch {checkpoint.epoch}: class similarity {content['class_similarity']:.4f}, "
        f"pooled {content['class_similarity_pooled']:.4f}, centred {content['class_similarity_centred']:.4f}, "
        f"within/between variance {'undefined' if ratio is None else f'{ratio:.4g}'} "
        f"({content['num_samples']} {args.split} images, {content['seconds']:.1f} s)",
        flush=True,
    )


CLASS_SIMILARITY = Measurement(
    "class_similarity", measure_class_similarity, draw_class_similarity, draw_class_similarity_over_training
)

"""Similarity of the features of different classes: the content of class_similarity.json for one checkpoint."""

import argparse
import copy
import math
import time
from typing import Any

import torch

from normstudy.cli import RunError, progress_bar
from normstudy.curvature import full_float32
from normstudy.datasets import Split, fewest_samples
from normstudy.measures.checkpoints import Checkpoint, Subset
from normstudy.measures.measure_runs import Measurement
from normstudy.plots import draw_class_similarity, draw_class_similarity_over_training
from utils import ClassMoments, class_means, cosine_matrix, mean_pairwise_cosine, neural_collapse


@torch.no_grad()
def measure_class_similarity(checkpoint: Checkpoint, args: argparse.Namespace) -> dict[str, Any]:
    """Compute the content of class_similarity.json for one checkpoint.

    Raises RunError if a class has no images, if there are fewer than two classes, or if the features are not finite.
    """
    start = time.perf_counter()
    subset = checkpoint.subset(getattr(checkpoint.dataset, args.split), args)
    _check_classes(checkpoint, subset, args)
    moments, pooled, labels = _features(checkpoint, subset.images, args)
    means = moments.means()
    if not means.isfinite().all():
        raise RunError(f"{checkpoint.run.path}: the features are not finite")
    centred = means - means.mean(0)  # each class counts equally, however many images it has
    within, between = moments.variances()
    classifier = copy.deepcopy(checkpoint.model.classifier).cpu().double()
    predictions = classifier(pooled).argmax(1)
    pooled_means = class_means(pooled, labels, len(means))
    has_ratio = between and len(labels) > len(means)  # with one image per class, there is no variance within classes
    content = {
        "class_similarity": mean_pairwise_cosine(means),
        "class_similarity_pooled": mean_pairwise_cosine(pooled_means),
        "class_similarity_centred": mean_pairwise_cosine(centred),
        "within_class_variance": within,
        "between_class_variance": between,
        "within_over_between": within / between if has_ratio else None,
        **neural_collapse(pooled, labels, classifier.weight, predictions),
        "classes": list(checkpoint.dataset.classes),
        "matrix": cosine_matrix(means).tolist(),
        "matrix_pooled": cosine_matrix(pooled_means).tolist(),
        "matrix_centred": cosine_matrix(centred).tolist(),
        "feature_dimension": means.shape[1],
        **subset.describe(),
        "seconds": time.perf_counter() - start,
    }
    _report(checkpoint, args, content)
    return content


def _check_classes(checkpoint: Checkpoint, subset: Subset, args: argparse.Namespace) -> None:
    """Raise RunError, naming a class without images and what to do, or if there are fewer than two classes."""
    run, classes = checkpoint.run.path, checkpoint.dataset.classes
    if len(classes) < 2:
        raise RunError(f"{run}: class similarity needs at least two classes")
    for label, name in enumerate(classes):
        if not subset.all_counts[label]:
            flag = f"{args.split}_samples"
            few = getattr(checkpoint.config, flag)
            why = "" if few is None else f", because it was trained with --{flag}={few}"
            raise RunError(f"{run}: class {name} has no {args.split} images{why}, so class similarity is not defined")
    for label, name in enumerate(classes):
        if not subset.counts[label]:
            enough = fewest_samples(subset.all_counts, args.balance)
            raise RunError(
                f"{run}: --samples={args.samples} takes no image of class {name}, but class similarity needs one of "
                f"each; use --samples={enough} or more" + (", or --balance=equal" if args.balance != "equal" else "")
            )


def _features(
    checkpoint: Checkpoint, subset: Split, args: argparse.Namespace
) -> tuple[ClassMoments, torch.Tensor, torch.Tensor]:
    """Return the moments of the flattened features, the features that the classifier reads (N, D), and the labels.

    The latter two are on the CPU, the features in float64.
    """
    model = checkpoint.model
    moments, pooled, names = ClassMoments(len(checkpoint.dataset.classes)), [], []
    with progress_bar(len(subset), "features") as bar, full_float32():
        for images, labels in checkpoint.batches(subset, args.batch_size):
            features = model.features(images.to(getattr(torch, args.dtype)))
            moments.update(features, labels)
            pooled.append(model.pool(features).cpu().double())
            names.append(labels.cpu())
            bar.update(len(labels))
    return moments, torch.cat(pooled), torch.cat(names)


def _report(checkpoint: Checkpoint, args: argparse.Namespace, content: dict[str, Any]) -> None:
    ratio, collapse = content["within_over_between"], content["nc1"]
    print(
        f"{checkpoint.run.path.name} epoch {checkpoint.epoch}: class similarity {content['class_similarity']:.4f}, "
        f"pooled {content['class_similarity_pooled']:.4f}, centred {content['class_similarity_centred']:.4f}, "
        f"within/between variance {'undefined' if ratio is None else f'{ratio:.4g}'}, "
        f"nc1 {'undefined' if math.isnan(collapse) else f'{collapse:.4g}'} "
        f"({content['num_samples']} {args.split} images, {content['seconds']:.1f} s)",
        flush=True,
    )


CLASS_SIMILARITY = Measurement(
    "class_similarity", measure_class_similarity, draw_class_similarity, draw_class_similarity_over_training
)

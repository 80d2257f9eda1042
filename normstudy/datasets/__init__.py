"""Data sets as uint8 tensors on the device, and batches of them."""

from normstudy.datasets.batches import evaluation_batches, to_network_input, training_batch, training_order
from normstudy.datasets.loading import load
from normstudy.datasets.splits import (
    Dataset,
    Split,
    balanced_subset,
    deal_blocks,
    describe_counts,
    fewest_samples,
    seeded_generator,
    shares_of_classes,
)

__all__ = [
    "Dataset",
    "Split",
    "balanced_subset",
    "deal_blocks",
    "describe_counts",
    "evaluation_batches",
    "fewest_samples",
    "load",
    "seeded_generator",
    "shares_of_classes",
    "to_network_input",
    "training_batch",
    "training_order",
]

"""Data sets as uint8 tensors on the device, and batches of them."""

from normstudy.datasets.batches import evaluation_batches, to_network_input, training_batch, training_order
from normstudy.datasets.loading import load
from normstudy.datasets.splits import Dataset, Split, balanced_subset, deal_blocks, seeded_generator

__all__ = [
    "Dataset",
    "Split",
    "balanced_subset",
    "deal_blocks",
    "evaluation_batches",
    "load",
    "seeded_generator",
    "to_network_input",
    "training_batch",
    "training_order",
]

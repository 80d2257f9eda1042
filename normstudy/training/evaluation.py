"""Loss and accuracy over a split, in eval mode."""

import itertools

import torch
from torch.nn import functional as F

from config import EVALUATION_BATCH
from normstudy.cli import progress_bar
from normstudy.datasets import evaluation_batches
from normstudy.training.processes import World
from normstudy.training.training_step import forward_in_precision


@torch.no_grad()
def evaluate(config, model, split, pause=lambda: None, world=None):
    """(mean cross-entropy, accuracy) over a split, in eval mode, unaugmented; pause() is called between batches, which
    the processes of a world take in turn."""
    world = world or World()
    world.broadcast(model.buffers())
    model.eval()
    losses, correct = [], []
    own = evaluation_batches(split, config.image_size, first=world.rank, every=world.size)
    with progress_bar(len(split), "evaluating") as bar:
        for _ in range(0, len(split), EVALUATION_BATCH * world.size):
            for images, labels in itertools.islice(own, 1):
                logits = forward_in_precision(config, model, images)
                losses.append(F.cross_entropy(logits, labels, reduction="sum"))
                correct.append((logits.argmax(1) == labels).sum())
                bar.update(len(labels) * world.size)
            pause()
    sums = [torch.stack(values).cpu().double().sum().item() if values else 0.0 for values in (losses, correct)]
    loss, right = world.sum(torch.tensor(sums, dtype=torch.float64)).tolist()
    return loss / len(split), right / len(split)

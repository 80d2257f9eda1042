"""Loss and accuracy over a split, in eval mode."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from config import EVALUATION_BATCH, Config
from models import Network
from normstudy.cli import progress_bar
from normstudy.datasets import Split, evaluation_batches
from normstudy.training.processes import ALONE, World
from normstudy.training.training_step import forward_in_precision


@torch.no_grad()
def evaluate(
    config: Config, model: Network, split: Split, pause: Callable[[], object] = lambda: None, world: World = ALONE
) -> tuple[float, float]:
    """Return (mean cross-entropy, accuracy) over a split, in eval mode, without augmentation.

    The processes of a world take the batches in turn, and all of them call pause() after each turn.
    """
    world.broadcast(model.buffers())
    model.eval()
    losses, correct = [], []
    own_batches = evaluation_batches(split, config.image_size, first=world.rank, every=world.size)
    with progress_bar(len(split), "evaluating") as bar:
        for _ in range(0, len(split), EVALUATION_BATCH * world.size):
            batch = next(own_batches, None)  # in the last turn, some processes may get no batch
            if batch is not None:
                images, labels = batch
                logits = forward_in_precision(config, model, images)
                losses.append(F.cross_entropy(logits, labels, reduction="sum"))
                correct.append((logits.argmax(1) == labels).sum())
                bar.update(len(labels) * world.size)
            pause()
    sums = [torch.stack(values).cpu().double().sum().item() if values else 0.0 for values in (losses, correct)]
    loss, right = world.sum(torch.tensor(sums, dtype=torch.float64)).tolist()
    return loss / len(split), right / len(split)

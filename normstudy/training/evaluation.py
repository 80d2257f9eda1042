"""Loss and accuracy over a split, in eval mode."""

from collections.abc import Callable

import torch
from torch.nn import functional as F

from config import EVALUATION_BATCH, Config
from models import Network
from normstudy.cli import progress_bar
from normstudy.datasets import Split, to_network_input
from normstudy.training.cuda_graphs import Graphed, Graphs
from normstudy.training.processes import ALONE, World
from normstudy.training.training_step import forward_in_precision


class Evaluation:
    """The evaluation of one network, without augmentation.

    With `graphs`, full batches are launched as one CUDA graph. The processes of a world take the batches in turn.
    """

    def __init__(self, config: Config, model: Network, world: World = ALONE, graphs: Graphs | None = None) -> None:
        self.config, self.model, self.world, self.graphs = config, model, world, graphs
        self.graphed: Graphed[torch.Tensor] | None = None
        self.images = self.labels = torch.empty(0)

    @torch.no_grad()
    def __call__(self, split: Split, pause: Callable[[], object] = lambda: None) -> tuple[float, float]:
        """Return (mean cross-entropy, accuracy) over a split. All processes call pause() after each turn."""
        world = self.world
        world.broadcast(self.model.buffers())
        self.model.eval()
        sums = []
        with progress_bar(len(split), "evaluating") as bar:
            for turn in range(0, len(split), EVALUATION_BATCH * world.size):
                start = turn + world.rank * EVALUATION_BATCH
                batch = slice(start, start + EVALUATION_BATCH)
                images, labels = split.images[batch], split.labels[batch]
                if len(labels):  # in the last turn, some processes may get no batch
                    sums.append(self.sums_of(images, labels))
                    bar.update(len(labels) * world.size)
                pause()
        total = torch.stack(sums).cpu().double().sum(0) if sums else torch.zeros(2, dtype=torch.float64)
        loss, correct = world.sum(total).tolist()
        return loss / len(split), correct / len(split)

    def sums_of(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return (the sum of losses, the number of correct predictions) of uint8 images (N, 3, H, W): (2,)."""
        if self.graphs is None or len(labels) != EVALUATION_BATCH:
            return self.compute(images, labels)
        if self.graphed is None:
            self.images, self.labels = images.clone(), labels.clone()
            self.graphed = Graphed(lambda: self.compute(self.images, self.labels), self.graphs)
        self.images.copy_(images)
        self.labels.copy_(labels)
        return self.graphed().clone()

    def compute(self, images: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return sums_of, without a graph."""
        inputs = to_network_input(images, image_size=self.config.image_size)
        logits = forward_in_precision(self.config, self.model, inputs)
        loss = F.cross_entropy(logits, labels, reduction="sum")
        return torch.stack([loss, (logits.argmax(1) == labels).sum().to(loss.dtype)])

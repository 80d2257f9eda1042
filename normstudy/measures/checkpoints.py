"""A finished run's network at one epoch."""

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import torch

from config import Config
from models import Network, build_from_config
from normstudy.cli import RunError
from normstudy.datasets import Dataset, Split, balanced_subset, evaluation_batches
from normstudy.storage import RunDirectory, read_torch


class Checkpoint:
    """A finished run's network at one epoch, and the images it was trained and tested on."""

    def __init__(
        self,
        run: RunDirectory,
        config: Config,
        path: Path,
        sha256: str | None,
        dataset: Dataset,
        dtype: torch.dtype,
        device: torch.device,
        pause: Callable[[], object],
    ) -> None:
        self.run = run
        self.config = config
        self.epoch = epoch_of(path)
        self.dataset = dataset
        self.device = device
        self.pause = pause
        model = _load_model(config, path, sha256, len(dataset.classes)).eval()
        self.model = model.to(device, dtype).to(memory_format=torch.channels_last)

    def subset(self, split: Split, samples: int, seed: int) -> tuple[Split, str]:
        """A class-balanced subset of a Split and the SHA-256 of its indices; all of it where it has no more.

        Raises RunError where the classes cannot give equally many.
        """
        indices = torch.arange(len(split))
        if samples < len(split):
            try:
                indices = balanced_subset(split.labels.cpu(), samples, len(self.dataset.classes), seed)
            except ValueError as error:
                raise RunError(f"--samples={samples} of {len(split)} images: {error}; lower --samples") from None
        chosen = split.take(indices.to(split.labels.device))
        return chosen, hashlib.sha256(indices.numpy().astype("<i8").tobytes()).hexdigest()

    def batches(self, split: Split, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """(images, labels) of a Split in order, prepared as for this network; a signal ends the walk between two."""
        for batch in evaluation_batches(split, self.config.image_size, batch_size):
            self.pause()
            yield batch


def epoch_of(path: Path) -> int:
    """The epoch of a checkpoint, from its name."""
    return int(path.stem.removeprefix("epoch_"))


def _load_model(config: Config, path: Path, sha256: str | None, num_classes: int) -> Network:
    """The network of a checkpoint. Raises RunError where they do not fit, and for values that are not finite."""
    state = read_torch(path, sha256)
    try:
        model = build_from_config(config, num_classes)
        model.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()[:120]
        raise RunError(f"{path} does not fit the network of {path.parents[1] / 'config.json'} ({reason})") from None
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise RunError(f"{path} holds values in {name} that are not finite")
    return model

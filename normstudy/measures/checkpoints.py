"""The network of a finished run at one epoch."""

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
    """The network of a finished run at one epoch, and the images that it was trained and tested on.

    target: the JSON file of the measurement.
    """

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
        target: Path,
    ) -> None:
        self.run = run
        self.config = config
        self.epoch = epoch_of(path)
        self.dataset = dataset
        self.device = device
        self.pause = pause
        self.target = target
        self.sha256 = sha256
        model = _load_model(config, path, sha256, len(dataset.classes)).eval()
        self.model = model.to(device, dtype).to(memory_format=torch.channels_last)

    def subset(self, split: Split, samples: int, seed: int) -> tuple[Split, str]:
        """Return a class-balanced subset of a Split and the SHA-256 of its indices.

        If the Split has at most `samples` images, all of them are taken. Raises RunError if a class has too few images.
        """
        indices = torch.arange(len(split))
        if samples < len(split):
            try:
                indices = balanced_subset(split.labels.cpu(), samples, len(self.dataset.classes), seed)
            except ValueError as error:
                raise RunError(f"--samples={samples} of {len(split)} is too many: {error}; lower --samples") from None
        chosen = split.take(indices.to(split.labels.device))
        return chosen, hashlib.sha256(indices.numpy().astype("<i8").tobytes()).hexdigest()

    def batches(self, split: Split, batch_size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the batches (images, labels) of a Split in order, prepared for this network.

        A signal takes effect between two batches.
        """
        for batch in evaluation_batches(split, self.config.image_size, batch_size):
            self.pause()
            yield batch


def epoch_of(path: Path) -> int:
    """Return the epoch in the name of a checkpoint."""
    return int(path.stem.removeprefix("epoch_"))


def _load_model(config: Config, path: Path, sha256: str | None, num_classes: int) -> Network:
    """Load the network of a checkpoint. Raises RunError if it does not fit the Config or has non-finite values."""
    state = read_torch(path, sha256)
    try:
        model = build_from_config(config, num_classes)
        model.load_state_dict(state)
    except (RuntimeError, ValueError, TypeError, AttributeError) as error:
        reason = str(error).splitlines()[-1].strip()[:120]
        raise RunError(f"{path} does not fit the network of {path.parents[1] / 'config.json'} ({reason})") from None
    for name, tensor in model.state_dict().items():
        if not tensor.isfinite().all():
            raise RunError(f"{path} has non-finite values in {name}")
    return model

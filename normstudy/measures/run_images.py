"""The images that a run was trained on."""

from collections.abc import Sequence
from dataclasses import replace

import torch

from config import Config
from normstudy.cli import RunError, UsageError
from normstudy.datasets import Dataset, load
from normstudy.storage import RunDirectory, read_json


class RunImages:
    """A loader of the images of runs, which keeps the last data set for the next run that shares it.

    data_dir and cache_dir replace those that a run was trained with, unless they are None.
    """

    def __init__(self, data_dir: str | None, cache_dir: str | None, device: torch.device) -> None:
        self.data_dir = data_dir
        self.cache_dir = cache_dir
        self.device = device
        self._kept: tuple[Config, Dataset, str] | None = None  # the last Config, its data set and fingerprint

    def load_for(self, run: RunDirectory, config: Config) -> Dataset:
        """Return the data set of a run, on the device.

        Raises RunError if its images are missing or are not those that the run was trained on.
        """
        if self.data_dir is not None:
            config = replace(config, data_dir=self.data_dir)
        if self.cache_dir is not None:
            config = replace(config, cache_dir=self.cache_dir)
        if self._kept is None or _choice_of_images(self._kept[0]) != _choice_of_images(config):
            dataset = self._load(run, config)
            self._kept = config, dataset.to(self.device), dataset.fingerprint()
        _, dataset, fingerprint = self._kept
        stored = read_json(run.config).get("data", {})
        if stored.get("fingerprint") != fingerprint:
            theirs = _describe(stored.get("classes", ()), stored.get("train_samples", 0), stored.get("fingerprint"))
            ours = _describe(dataset.classes, len(dataset.train), fingerprint)
            raise RunError(
                f"{run.path} was trained on other images ({theirs}) than those in {config.data_dir} ({ours}); "
                "set --data_dir to the folder of its images"
            )
        return dataset

    def _load(self, run: RunDirectory, config: Config) -> Dataset:
        """Load the images that a Config names. If they are missing, raise a RunError that says how to find them."""
        try:
            return load(replace(config, download=False))
        except (RunError, UsageError) as error:
            where = f"its config.json says that they are in {config.data_dir}; set --data_dir to their present folder"
            if self.data_dir is not None:
                where = "set --data_dir to the folder of the images that it was trained on"
            raise RunError(f"the images of {run.path} cannot be loaded ({error}): {where}") from None


def _choice_of_images(config: Config) -> tuple[object, ...]:
    """Return the settings that determine the images of a run."""
    return (
        config.dataset,
        config.data_dir,
        config.train_samples,
        config.test_samples,
        config.val_fraction,
        config.balance,
        config.seed if config.dataset == "Synthetic" else None,
        config.image_size if config.dataset == "ImageFolder" else None,
    )


def _describe(classes: Sequence[str], images: int, fingerprint: str | None) -> str:
    return f"{len(classes)} classes, {images:,} training images, fingerprint {fingerprint}"

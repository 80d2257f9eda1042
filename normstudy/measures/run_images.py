"""The images that a run was trained on."""

from dataclasses import replace

from normstudy.cli import RunError, UsageError
from normstudy.datasets import load
from normstudy.storage import read_json


class RunImages:
    """Loads the images of runs, and keeps the last data set for the next run that shares it."""

    def __init__(self, data_dir, device):
        self.data_dir = data_dir
        self.device = device
        self.key = self.dataset = self.fingerprint = None

    def of(self, run, config):
        """The data set of a run, on the device. Raises RunError where the images are not those it was trained on."""
        if self.data_dir is not None:
            config = replace(config, data_dir=self.data_dir)
        key = (config.dataset, config.data_dir, config.train_samples, config.test_samples, config.val_fraction)
        key += (config.seed if config.dataset == "Synthetic" else None,)
        key += (config.image_size if config.dataset == "ImageFolder" else None,)
        if key != self.key:
            try:
                dataset = load(replace(config, download=False))
            except (RunError, UsageError) as error:
                where = f"its config.json says that they lie in {config.data_dir}; --data_dir says where they lie now"
                if self.data_dir is not None:
                    where = "--data_dir has to hold the images that it was trained on"
                raise RunError(f"{run.path} lacks its images ({error}): {where}") from None
            self.fingerprint, self.dataset, self.key = dataset.fingerprint(), dataset.to(self.device), key
        stored = read_json(run.config).get("data", {})
        if stored.get("fingerprint") != self.fingerprint:
            theirs, ours = (
                f"{len(classes)} classes, {images:,} training images, fingerprint {fingerprint}"
                for classes, images, fingerprint in (
                    (stored.get("classes", ()), stored.get("train_samples", 0), stored.get("fingerprint")),
                    (self.dataset.classes, len(self.dataset.train), self.fingerprint),
                )
            )
            raise RunError(
                f"{run.path} was trained on other images ({theirs}) than those in {config.data_dir} ({ours}): "
                "give the --data_dir where they lie"
            )
        return self.dataset

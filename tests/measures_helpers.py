"""Flags of small runs and measurements, and changes that tests make to a run before measuring it."""

import os
import shutil

import torch

from models import build_from_config
from normstudy.datasets import batches, loading, splits
from normstudy.storage import files, run_settings

SMALL = [
    "--dataset=Synthetic",
    "--image_size=8",
    "--train_samples=50",
    "--test_samples=20",
    "--batch_size=16",
    "--device=cpu",
    "--probe_layers=False",
]
QUICK = ["--lanczos_steps=2", "--trace_probes=1", "--samples=30", "--image_blocks=1"]
ONE_PRODUCT = ["--lanczos_steps=1", "--num_probes=1", "--trace_probes=0", "--samples=30", "--image_blocks=1"]
read = files.read_json


def copy(source, target):
    """Copy a folder. Checkpoints are large and therefore hard-linked: they may be replaced but not written to."""
    shutil.copytree(source, target, copy_function=lambda a, b: (os.link if a.endswith(".pt") else shutil.copy2)(a, b))


def replace(path, content):
    """Replace a file that may be a hard link."""
    path.unlink()
    path.write_bytes(content)


def reference(run, samples, epoch=6):
    """Return (model, images, labels) as a measurement should see them, built step by step in float64."""
    config = run_settings.stored_config(run)
    dataset = loading.load(config)
    model = build_from_config(config, 10).double().eval()
    model.load_state_dict(torch.load(run.checkpoint(epoch), weights_only=True))
    chosen = splits.balanced_subset(dataset.train.labels, samples, 10, seed=0)
    split = dataset.train.take(chosen)
    return model, batches.to_network_input(split.images, None, config.image_size).double(), split.labels


def damage_config(run, **changes):
    """Change settings in config.json; the value `...` removes a setting."""
    settings = read(run.config)
    run.config.unlink()
    files.write_json(run.config, {k: v for k, v in (settings | changes).items() if v is not ...})


def forget_checksums(run):
    """Remove the SHA-256 of the files from summary.json, as for checkpoints from another program."""
    summary = read(run.summary)
    del summary["files"], summary["identity"]
    run.summary.unlink()
    files.write_json(run.summary, summary)


def damage_unchecked_config(run, **changes):
    """Change settings in config.json, and remove the hashes that would reveal the change."""
    damage_config(run, **changes)
    forget_checksums(run)

"""Flags of small runs and measurements, and what a test does to a run before or beside a measurement."""

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
QUICK = ["--lanczos_steps=2", "--trace_probes=1", "--samples=30"]
ONE_PRODUCT = ["--lanczos_steps=1", "--num_probes=1", "--trace_probes=0", "--samples=30"]
read = files.read_json


def copy(source, target):
    """Copy a folder; checkpoints, which are large, are linked and may only be replaced."""
    shutil.copytree(source, target, copy_function=lambda a, b: (os.link if a.endswith(".pt") else shutil.copy2)(a, b))


def replace(path, content):
    """Replace a file that may be a link."""
    path.unlink()
    path.write_bytes(content)


def reference(run, samples, epoch=6):
    """(model, images, labels) as a measurement should see them, made step by step, in float64."""
    config = run_settings.stored_config(run)
    dataset = loading.load(config)
    model = build_from_config(config, 10).double().eval()
    model.load_state_dict(torch.load(run.checkpoint(epoch), weights_only=True))
    chosen = splits.balanced_subset(dataset.train.labels, samples, 10, seed=0)
    split = dataset.train.take(chosen)
    return model, batches.to_network_input(split.images, None, config.image_size).double(), split.labels


def damage_config(run, **changes):
    """Change settings in config.json; `...` removes one."""
    settings = read(run.config)
    run.config.unlink()
    files.write_json(run.config, {k: v for k, v in (settings | changes).items() if v is not ...})


def forget_checksums(run):
    """Leave files without their SHA-256, as where checkpoints come from somewhere else."""
    summary = read(run.summary)
    del summary["files"], summary["identity"]
    run.summary.unlink()
    files.write_json(run.summary, summary)


def damage_unchecked_config(run, **changes):
    """Change settings that no identity hash protects."""
    damage_config(run, **changes)
    forget_checksums(run)

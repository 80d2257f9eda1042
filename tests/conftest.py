"""Real runs, with a narrower VGG than any flag asks for, so that many of them fit into a minute."""

import csv

import numpy as np
import pytest
import torch
from hypothesis import settings
from PIL import Image

import config
import files
import main
import runs

settings.register_profile("default", deadline=None)  # on a busy machine a flush takes as long as it likes
settings.load_profile("default")

NARROW = (8, (8, 2), 16)
SMALL = ["--dataset=ImageFolder", "--batch_size=16", "--device=cpu"]
TIMES = ("seconds", "images_per_second")


def content(run):
    """{name: bytes, or what the clock does not decide} of every file that a run recorded."""
    found = {}
    for path in sorted(run.path.rglob("*")):
        name = run.name_of(path)
        if path.is_dir() or name in (".lock", ".owner", "curves.png", "probes.png", "checkpoints/last.pt"):
            continue
        found[name] = path.read_bytes()
    with open(run.metrics, newline="") as file:
        found["metrics.csv"] = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    summary = files.read_json(run.summary)
    del summary["seconds"], summary["files"]["metrics.csv"]
    settings = files.read_json(run.config)
    del settings["results_dir"], settings["checkpoint_minutes"]
    return found | {"summary.json": summary, "config.json": settings}


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setitem(config.VGG_LAYERS, "cfg_10", NARROW)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Flags of a small run, on images of its own."""
    folder = tmp_path_factory.mktemp("images")
    generator = np.random.default_rng(0)
    for split, count in (("train", 25), ("test", 10)):
        for name in ("cat", "dog"):
            (folder / split / name).mkdir(parents=True)
            for index in range(count):
                pixels = generator.integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / split / name / f"{index}.png")
    return [*SMALL, f"--data_dir={folder}"]


@pytest.fixture
def train(small):
    """A function that trains in this process: 6 epochs unless other flags say so."""

    def run(results_dir, *flags):
        return runs.RunDirectory(main.main([*small, "--epochs=6", f"--results_dir={results_dir}", *flags]))

    return run

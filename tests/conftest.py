"""Fixtures for real runs, with a narrower VGG than any flag gives, so that many runs fit into a minute."""

import numpy as np
import pytest
import torch
from helpers import NARROW, SMALL
from hypothesis import settings
from PIL import Image

import config
import main
from normstudy.kernels import FORMS, use_form
from normstudy.storage import run_directory

settings.register_profile("default", deadline=None)  # on a busy machine, a flush can take any time
settings.load_profile("default")


def pytest_collection_modifyitems(items):
    """Run the tests of Slurm first: they wait most of the time, and at the end no other test would use the cores."""
    items.sort(key=lambda item: item.get_closest_marker("slurm") is None)


def pytest_runtest_setup(item):
    if item.get_closest_marker("cuda") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA GPU")


@pytest.fixture
def narrow(monkeypatch):
    monkeypatch.setitem(config.VGG_LAYERS, "cfg_10", NARROW)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def small(tmp_path_factory):
    """Return the flags of a small run on images of its own."""
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
    """Return a function that trains in this process, for 6 epochs unless the flags say otherwise."""

    def run(results_dir, *flags):
        return run_directory.RunDirectory(main.main([*small, "--epochs=6", f"--results_dir={results_dir}", *flags]))

    return run


@pytest.fixture(params=FORMS)
def form(request):
    """Run the test, or every test of the module, in every form of the kernels."""
    with use_form(request.param):
        yield request.param

"""Real runs, with a narrower VGG than any flag asks for, so that many of them fit into a minute."""

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

settings.register_profile("default", deadline=None)  # on a busy machine a flush takes as long as it likes
settings.load_profile("default")


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
        return run_directory.RunDirectory(main.main([*small, "--epochs=6", f"--results_dir={results_dir}", *flags]))

    return run


@pytest.fixture(params=FORMS)
def form(request):
    """Used by a module or a test: it runs in every form of the kernels."""
    with use_form(request.param):
        yield request.param

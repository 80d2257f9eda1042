"""A small run that can be measured, and three runs that cannot."""

import pytest
from measures_helpers import SMALL, copy, read, replace

import main
from normstudy.storage import files, run_directory


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    """Results with a finished run (checkpoints of epochs 5 and 6), and an unfinished, a diverged and a damaged run."""
    results = tmp_path_factory.mktemp("trained")
    done = run_directory.RunDirectory(main.main([*SMALL, "--epochs=6", f"--results_dir={results}"]))
    unfinished, diverged, damaged = (results / name for name in ("unfinished", "diverged", "damaged"))
    for folder in (unfinished, diverged, damaged):
        copy(done.path, folder)
    (unfinished / "summary.json").unlink()
    summary = read(diverged / "summary.json")
    files.write_json(diverged / "summary.json", summary | {"status": "diverged", "diverged_at_step": 3})
    replace(damaged / "checkpoints" / "epoch_0006.pt", done.checkpoint(6).read_bytes()[:1000])
    return results


@pytest.fixture
def results(trained, tmp_path):
    """A copy of the results folder, which a test may change."""
    copy(trained, tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def run(results):
    """The finished run in `results`."""
    return run_directory.RunDirectory(next(results.glob("vgg_*")))

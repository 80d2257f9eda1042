"""docs/tour.ipynb runs in a notebook kernel, in a copy of the repository's files that it needs."""

import re
import shutil
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

ROOT = Path(__file__).parent.parent
TOUR = ROOT / "docs" / "tour.ipynb"


@pytest.fixture
def repository(tmp_path):
    """A folder with the program, the table of the shipped study and the shipped network, but no run of the tour."""
    for path in ROOT.glob("*.py"):
        shutil.copy(path, tmp_path)
    shutil.copytree(ROOT / "normstudy", tmp_path / "normstudy", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "results" / "cpu_study").mkdir(parents=True)
    shutil.copy(ROOT / "results" / "cpu_study" / "results.csv", tmp_path / "results" / "cpu_study")
    shutil.copytree(ROOT / "results" / "example", tmp_path / "results" / "example")
    (tmp_path / "docs").mkdir()
    return tmp_path


def test_the_tour_runs_from_top_to_bottom(repository):
    notebook = nbformat.read(TOUR, as_version=4)
    assert all(not cell.get("outputs") for cell in notebook.cells), "the notebook is kept without outputs"
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(repository / "docs")}}).execute()
    printed = "".join(
        output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", ()) if "text" in output
    )
    assert re.search(r"BatchNorm: filter-scaled trace [\d.e+-]+, largest eigenvalue [\d.]+", printed)
    assert re.search(r"LayerNorm: filter-scaled trace [\d.e+-]+, largest eigenvalue [\d.]+", printed)
    pictures = [
        output for cell in notebook.cells for output in cell.get("outputs", ()) if "image/png" in output.get("data", {})
    ]
    assert len(pictures) == 3

"""Runs and their table as Python objects: the starting point of a notebook."""

import dataclasses
import functools
import io
from pathlib import Path
from typing import Any

import pandas as pd

from config import Config
from models import Network, build_from_config
from normstudy.cli import RunError
from normstudy.datasets import Dataset, load
from normstudy.storage import (
    MEASUREMENTS,
    RunDirectory,
    collect_table,
    load_probes,
    read_json,
    read_summary,
    read_table,
    read_torch,
    stored_config,
)


def load_table(results_dir: str | Path = "results") -> pd.DataFrame:
    """Return the table of the runs in a folder, one row per run, with numbers and booleans as such.

    results.csv is built from the run folders if it is missing. `README.md` next to it explains the columns. Raises
    RunError if there is no such folder, or if a spreadsheet program saved the table in a form that is not clear.
    """
    folder = Path(results_dir).expanduser()
    if not folder.is_dir():
        raise RunError(f"{folder} is not a folder; give the one that contains the runs")
    path = folder / "results.csv"
    table = read_table(path if path.exists() else collect_table(folder))
    return pd.read_csv(io.StringIO(table.to_csv()))


@dataclasses.dataclass(frozen=True)
class Run:
    """One run, read from its folder. Files are read when they are asked for.

    directory: the paths of its files. config: its settings.
    """

    directory: RunDirectory
    config: Config

    @functools.cached_property
    def summary(self) -> dict[str, Any]:
        """The content of summary.json. Raises RunError if the run has not ended."""
        return read_summary(self.directory)

    @functools.cached_property
    def metrics(self) -> pd.DataFrame:
        """metrics.csv, one row per epoch. Raises RunError if no epoch was completed."""
        if not self.directory.metrics.exists():
            raise RunError(f"{self.directory.metrics} is missing: no epoch was completed")
        return pd.read_csv(self.directory.metrics)

    @functools.cached_property
    def probes(self) -> dict[str, Any] | None:
        """All probe dicts as one (see docs/files.md), or None if none were recorded."""
        return load_probes(self.directory)

    @functools.cached_property
    def measurements(self) -> dict[str, dict[str, Any]]:
        """{name of the file without .json: its content} of all measurements, such as hessian-filter_epoch_0005."""
        names = dict.fromkeys((*MEASUREMENTS, *self.directory.measurement_names()))
        paths = [path for name in names for path in self.directory.measurements(name)]
        return {path.stem: read_json(path) for path in paths}

    def model(self, epoch: int | None = None) -> Network:
        """Return the network at an epoch (default: the last checkpoint), in eval mode, on the CPU.

        Raises RunError if there is no such checkpoint, or if it is damaged.
        """
        paths = self.directory.checkpoints()
        if epoch is not None:
            paths = [path for path in paths if path == self.directory.checkpoint(epoch)]
        if not paths:
            wanted = "a checkpoint" if epoch is None else f"a checkpoint of epoch {epoch}"
            raise RunError(f"{self.directory.path} lacks {wanted}")
        classes = read_json(self.directory.config)["data"]["classes"]
        model = build_from_config(self.config, len(classes))
        model.load_state_dict(read_torch(paths[-1]))
        return model.eval()

    def dataset(self, data_dir: str | Path | None = None) -> Dataset:
        """Return the images that the run was trained and tested on; data_dir is the folder in which they are now."""
        if data_dir is None:
            return load(self.config)
        return load(dataclasses.replace(self.config, data_dir=str(Path(data_dir).expanduser())))


def load_run(path: str | Path) -> Run:
    """Return the run in a folder. Raises RunError if the folder has no readable config.json."""
    directory = RunDirectory(Path(path).expanduser())
    return Run(directory, stored_config(directory))

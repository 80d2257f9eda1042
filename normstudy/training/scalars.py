"""Scalars of every epoch for TensorBoard."""

import importlib.util
from collections.abc import Mapping

from normstudy.cli import RunError
from normstudy.storage import RunDirectory


def check_tensorboard() -> None:
    """Raise RunError if the package tensorboard is missing."""
    if importlib.util.find_spec("tensorboard") is None:
        raise RunError("--tensorboard needs the package tensorboard: run pip install tensorboard, or leave it out")


def write_scalars(run: RunDirectory, row: Mapping[str, float | None]) -> None:
    """Write the numbers of an epoch, a row of metrics.csv, into the run's folder `tensorboard`.

    Numbers of this and later epochs that an interrupted process left there are no longer shown.
    """
    from torch.utils.tensorboard import SummaryWriter

    epoch = int(row["epoch"] or 0)
    with SummaryWriter(str(run.path / "tensorboard"), purge_step=epoch) as writer:
        for name, value in row.items():
            if name != "epoch" and value is not None:
                writer.add_scalar(name, value, epoch)

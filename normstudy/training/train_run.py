"""One run from its settings to its report: open its directory, train the rest, report how it ended."""

import contextlib
from pathlib import Path

import torch

from config import Config
from normstudy.cli import RunError, place_among_processes, stops_at_safe_points
from normstudy.datasets import load
from normstudy.kernels import as_current, is_out_of_memory, own_settings, training_arithmetic
from normstudy.storage import RunDirectory, open_run, prepare_run, reads_same_folder, update_table
from normstudy.training.finished_run import Plots, damaged_outputs, has_ended, remake_outputs, report_run
from normstudy.training.loop import Training
from normstudy.training.processes import World, is_lost_process, join_processes
from normstudy.training.scalars import check_tensorboard


@own_settings()
def train_run(config: Config, plots: Plots) -> Path:
    """Train the run of a Config from its last saved state to its end; print its result and return its directory.

    `plots` is the package normstudy.plots, which draws the run's pictures.
    """
    _, processes = place_among_processes()
    config, run = open_run(config, processes)
    world, device = join_processes(config.device)
    if config.tensorboard:
        check_tensorboard()
    is_ended = world.from_first(lambda: not config.overwrite and has_ended(run))
    if not is_ended or not world.from_first(lambda: reads_same_folder(run, config)):
        try:
            _train_or_check(config, run, device, world, is_ended, plots)
        except (MemoryError, RuntimeError) as error:
            if is_lost_process(error):
                raise RunError(
                    f"another process of this run has died ({str(error).splitlines()[0][:100]}); {run.last} is "
                    "complete: run the same command again to continue"
                ) from None
            if not is_out_of_memory(error):
                raise
            raise RunError(f"{device} has too little memory: lower --batch_size or --image_size") from None
    elif world.is_first and damaged_outputs(run, plots):
        with run.lock():
            remake_outputs(run, plots)
    world.leave()
    if world.is_first:
        if is_ended:
            print("this run has already finished; --overwrite=True starts it over")
        report_run(run)
    return run.path


def _train_or_check(
    config: Config, run: RunDirectory, device: torch.device, world: World, is_ended: bool, plots: Plots
) -> None:
    """Train a run; if it has ended, only check that it used these images."""
    dataset = world.first_before_others(lambda: load(config))  # the first may download and decode for all
    with contextlib.ExitStack() as stack:

        def begin() -> str:
            stack.enter_context(run.lock())
            fingerprint = prepare_run(run, config, dataset.describe())
            if config.overwrite:
                update_table([run])  # removes its row
            return fingerprint

        fingerprint = world.from_first(begin)
        if not is_ended:
            arithmetic = training_arithmetic(device, config.precision, config.deterministic)
            with as_current(device), arithmetic, stops_at_safe_points() as points:
                Training(config, run, dataset.to(device), fingerprint, device, points, world).finish()
        if world.is_first:
            remake_outputs(run, plots)

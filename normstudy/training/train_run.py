"""One run from its settings to its report: open its directory, train what is missing, say how it ended."""

import contextlib
from pathlib import Path

import torch

from config import Config
from normstudy.cli import RunError, stops_at_safe_points
from normstudy.datasets import load
from normstudy.kernels import is_out_of_memory, keep_freed_memory
from normstudy.storage import RunDirectory, begin_run, open_run, reads_same_folder, update_table
from normstudy.training.finished_run import damaged_outputs, finished_summary, remake_outputs, report_run
from normstudy.training.loop import Training
from normstudy.training.processes import World, count_processes, is_lost_process, join_processes


def train_run(config: Config) -> Path:
    """Train the run of a Config from its last saved state to its end, and report it; return its directory."""
    config, run = open_run(config, count_processes())
    keep_freed_memory()
    world, device = join_processes(config.device)
    is_ended = world.from_first(lambda: not config.overwrite and finished_summary(run) is not None)
    if not is_ended or not world.from_first(lambda: reads_same_folder(run, config)):
        try:
            _train(config, run, device, world, is_ended)
        except (MemoryError, RuntimeError) as error:
            if is_lost_process(error):
                raise RunError(
                    f"another process of this run is gone ({str(error).splitlines()[0][:100]}); {run.last} is whole, "
                    "and the same command goes on"
                ) from None
            if not is_out_of_memory(error):
                raise
            raise RunError(f"{device} has too little memory: lower --batch_size or --image_size") from None
    elif world.is_first and damaged_outputs(run):
        with run.lock():
            remake_outputs(run)
    world.leave()
    if world.is_first:
        report_run(run)
    return run.path


def _train(config: Config, run: RunDirectory, device: torch.device, world: World, is_ended: bool) -> None:
    """Train a run; if it has ended, only check that it is a run on these images."""
    found = []
    world.from_first(lambda: found.append(load(config)))  # the first process may fetch and decode them for the others
    [dataset] = found or [load(config)]
    with contextlib.ExitStack() as stack:

        def begin() -> str:
            stack.enter_context(run.lock())
            fingerprint = begin_run(run, config, dataset)
            if config.overwrite:
                update_table([run])  # removes its row
            return fingerprint

        fingerprint = world.from_first(begin)
        if not is_ended:
            with stops_at_safe_points() as points:
                Training(config, run, dataset.to(device), fingerprint, device, points, world).finish()
        if world.is_first:
            remake_outputs(run)

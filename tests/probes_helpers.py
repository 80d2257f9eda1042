"""Helpers: record single training steps, and the statistics of one activation."""

import contextlib
import math
from collections.abc import Iterator

import torch

from normstudy.kernels import channel_variance, gram_matrix, gram_statistics
from normstudy.training.probe_recorder import ProbeRecorder


@contextlib.contextmanager
def recorded(recorder: ProbeRecorder, iteration: int) -> Iterator[None]:
    """Record one training step as `iteration`, inside a `with` block; a step that fails leaves no row."""
    with recorder.observe() as observation:
        yield
    if observation.row is not None:
        recorder.keep(iteration, observation.row, math.nan)


def activation_statistics(x: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return the four statistics of an activation that the recorder keeps."""
    variance = {"activation_variance": channel_variance(x).mean()}
    return variance | {key: value[0] for key, value in gram_statistics([gram_matrix(x)]).items()}

"""Losses of one epoch, read without waiting for the device."""

import time
from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

LOOK_SECONDS = 1.0  # minimum time between two reads of the losses
RECENT = 50  # number of last steps whose mean loss is shown


class LossesSoFar(NamedTuple):
    """A mean loss, the accuracy, and the index of the first step whose loss was not finite, or None."""

    loss: float
    accuracy: float
    bad_step: int | None


class EpochLosses:
    """Losses and correct predictions of one epoch, kept on the device and read without waiting for it."""

    def __init__(self, steps: int, device: torch.device) -> None:
        self.losses = torch.zeros(steps, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.samples = self.recorded = 0
        self.looked_at = time.perf_counter()
        # The pending read: values on their way to the CPU, the samples they cover, and on CUDA the event of arrival.
        self._begun: tuple[torch.Tensor, int, torch.cuda.Event | None] | None = None

    def record(self, loss: torch.Tensor, correct: torch.Tensor, samples: int) -> None:
        """Record the mean loss and the number of correct predictions of a step on `samples` samples."""
        self.losses[self.recorded] = loss
        self.correct += correct.to(self.correct.dtype)
        self.recorded += 1
        self.samples += samples

    def state_dict(self) -> dict[str, Any]:
        """Return the state from which another process can continue within the epoch."""
        losses = self.losses[: self.recorded].cpu()
        return {"losses": losses, "correct": int(self.correct), "samples": self.samples}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore the state that state_dict() returned."""
        self.recorded, self.samples = len(state["losses"]), state["samples"]
        self.losses[: self.recorded] = state["losses"]
        self.correct.fill_(state["correct"])

    def look(self) -> LossesSoFar | None:
        """Return the mean loss of the last steps, the accuracy so far and the first bad step.

        A read starts at most once in LOOK_SECONDS. Return None in between and while the device still computes the
        numbers, which are therefore some steps old when they arrive.
        """
        if self._begun is None and time.perf_counter() - self.looked_at >= LOOK_SECONDS:
            self._begin()
        if self._begun is None:
            return None
        values, samples, arrival = self._begun
        if arrival is not None and not arrival.query():
            return None
        self._begun = None
        self.looked_at = time.perf_counter()
        loss, correct, is_bad, bad_step = values.tolist()
        return LossesSoFar(loss, correct / samples, int(bad_step) if is_bad else None)

    def _begin(self) -> None:
        """Start to copy the current numbers to the CPU."""
        so_far = self.losses[: self.recorded]
        bad = (~so_far.isfinite()).float()  # float32 throughout: not every device has float64
        values = torch.stack([so_far[-RECENT:].mean(), self.correct.float(), bad.max(), bad.argmax().float()])
        arrival = None
        if values.device.type == "cuda":
            values = torch.empty(len(values), dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            arrival = torch.cuda.Event()
            arrival.record(torch.cuda.current_stream(self.losses.device))
        else:
            values = values.cpu()
        self._begun = values, self.samples, arrival

    def result(self, batch_size: int) -> LossesSoFar:
        """Return the mean loss over samples, the accuracy and the first bad step; wait for all recorded steps."""
        losses = self.losses[: self.recorded].cpu().double()
        bad = (~losses.isfinite()).nonzero()
        sizes = torch.full_like(losses, batch_size)
        sizes[-1] = self.samples - batch_size * (self.recorded - 1)
        mean = (losses @ sizes / self.samples).item()
        return LossesSoFar(mean, self.correct.item() / self.samples, int(bad[0]) if len(bad) else None)

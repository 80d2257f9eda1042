"""The losses of an epoch, read without waiting for the device."""

import time

import torch

LOOK_SECONDS = 1.0  # between looks at the losses
RECENT = 50  # steps whose mean loss is shown


class EpochLosses:
    """The losses and right answers of one epoch, kept on the device and looked at without waiting for it."""

    def __init__(self, steps, device):
        self.losses = torch.zeros(steps, device=device)
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.samples = self.recorded = 0
        self.looked = time.perf_counter()
        self._begun = None

    def record(self, loss, correct, samples):
        """Keeps what a step gave for a batch of `samples`."""
        self.losses[self.recorded] = loss
        self.correct += correct.to(self.correct.dtype)
        self.recorded += 1
        self.samples += samples

    def state_dict(self):
        """What the next process needs to go on within the epoch."""
        losses = self.losses[: self.recorded].cpu()
        return {"losses": losses, "correct": int(self.correct), "samples": self.samples}

    def load_state_dict(self, state):
        """Takes back what state_dict() gave."""
        self.recorded, self.samples = len(state["losses"]), state["samples"]
        self.losses[: self.recorded] = state["losses"]
        self.correct.fill_(state["correct"])

    def look(self):
        """(mean loss of the last steps, accuracy so far, first step that was not finite or None), or None: at most
        once in LOOK_SECONDS, and of some steps ago on a device that is still at work."""
        if self._begun is None and time.perf_counter() - self.looked >= LOOK_SECONDS:
            self._begin()
        if self._begun is None:
            return None
        values, samples, event = self._begun
        if event is not None and not event.query():
            return None
        self._begun = None
        self.looked = time.perf_counter()
        loss, correct, bad, first_bad = values.tolist()
        return loss, correct / samples, int(first_bad) if bad else None

    def _begin(self):
        """Starts to copy what look() tells, and notes when it will be there."""
        so_far = self.losses[: self.recorded]
        bad = (~so_far.isfinite()).float()  # float32 throughout: not every device has float64
        values = torch.stack([so_far[-RECENT:].mean(), self.correct.float(), bad.max(), bad.argmax().float()])
        event = None
        if values.device.type == "cuda":
            values = torch.empty(len(values), dtype=values.dtype, pin_memory=True).copy_(values, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        elif values.device.type != "cpu":
            values = values.cpu()
        self._begun = values, self.samples, event

    def result(self, batch_size):
        """(mean loss over samples, accuracy, first step that was not finite or None) of the whole epoch."""
        losses = self.losses[: self.recorded].cpu().double()
        bad = (~losses.isfinite()).nonzero()
        sizes = torch.full_like(losses, batch_size)
        sizes[-1] = self.samples - batch_size * (self.recorded - 1)
        mean = (losses @ sizes / self.samples).item()
        return mean, self.correct.item() / self.samples, int(bad[0]) if len(bad) else None

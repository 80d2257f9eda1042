"""The finished probes of a measurement that was stopped, in a file next to it."""

import argparse
import hashlib
import json
import time
from typing import Any

from normstudy.cli import RunError
from normstudy.curvature import ProbeState
from normstudy.measures.checkpoints import Checkpoint
from normstudy.measures.measure_runs import settings_of
from normstudy.storage import package_versions, read_torch, write_torch

SECONDS = 5.0  # between two writes; a file is as large as a checkpoint


class ProbeStore:
    """The file of a checkpoint's finished probes, such as hessian.partial.pt.

    It belongs to the settings, the checkpoint, the device and the version of PyTorch; a file of others is not used.
    """

    def __init__(self, checkpoint: Checkpoint, args: argparse.Namespace) -> None:
        self.path = checkpoint.target.with_suffix(".partial.pt")
        identity: list[Any] = [
            settings_of(args),
            checkpoint.sha256,
            str(checkpoint.device),
            package_versions()["torch"],
            checkpoint.dataset.fingerprint(),
        ]
        self.identity = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        self.saved_at = time.monotonic()

    def load(self) -> ProbeState | None:
        """Return the finished probes, or None if there are none for this measurement."""
        if not self.path.exists():
            return None
        try:
            content = read_torch(self.path)
            if content["identity"] != self.identity:
                return None
            state = ProbeState(**content["state"])
        except (RunError, KeyError, TypeError):
            return None
        print(f"continuing after {len(state.squares)} probes from {self.path.name}", flush=True)
        return state

    def save(self, state: ProbeState) -> None:
        """Write the finished probes, if the last write was long ago."""
        if time.monotonic() - self.saved_at >= SECONDS:
            write_torch(self.path, {"identity": self.identity, "state": dict(vars(state))})
            self.saved_at = time.monotonic()

    def remove(self) -> None:
        """Delete the file."""
        self.path.unlink(missing_ok=True)

"""Helpers that several test files use."""

import csv
import os
import time

import pytest

from normstudy.cli import RunError
from normstudy.storage import read_json

NARROW = (8, (8, 2), 16)
SMALL = ["--dataset=ImageFolder", "--batch_size=16", "--device=cpu"]
TIMES = ("seconds", "images_per_second")


def content(run):
    """Return {name: content} of every file that a run recorded.

    Tables and settings leave out the entries that depend on the clock or the command line. Pictures and the checkpoint
    to resume from are left out as well.
    """
    found = {}
    for path in sorted(run.path.rglob("*")):
        name = run.name_of(path)
        if path.is_dir() or name in (".lock", ".owner", "curves.png", "probes.png", "checkpoints/last.pt"):
            continue
        found[name] = path.read_bytes()
    with open(run.metrics, newline="") as file:
        found["metrics.csv"] = [{k: v for k, v in row.items() if k not in TIMES} for row in csv.DictReader(file)]
    summary = read_json(run.summary)
    del summary["seconds"], summary["files"]["metrics.csv"]
    settings = read_json(run.config)
    del settings["results_dir"], settings["checkpoint_minutes"]
    return found | {"summary.json": summary, "config.json": settings}


class Payload:
    """Unpickling this object creates a folder, as code in an untrusted file would."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def complaint(call):
    """Return the one-line message of the RunError that `call` raises."""
    with pytest.raises(RunError) as caught:
        call()
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    return lines[0]


def wait_until(condition, seconds=60.0):
    """Wait until a condition is met; fail after a time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"the condition is not met after {seconds:g} s"
        time.sleep(0.02)

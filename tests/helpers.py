"""Helpers that several test files use."""

import csv
import os

import pytest

from normstudy.cli import RunError
from normstudy.storage import read_json

NARROW = (8, (8, 2), 16)
SMALL = ["--dataset=ImageFolder", "--batch_size=16", "--device=cpu"]
TIMES = ("seconds", "images_per_second")


def content(run):
    """{name: bytes, or what the clock does not decide} of every file that a run recorded."""
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
    """Unpickling it makes a folder: what foreign code in a file would do."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


def complaint(call):
    """The one line with which `call` says what a user can repair."""
    with pytest.raises(RunError) as caught:
        call()
    lines = str(caught.value).splitlines()
    assert len(lines) == 1
    return lines[0]

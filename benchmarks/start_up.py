"""Measure the start-up time of main.py, from the command to the first step, on CIFAR-10 files with random pixels."""

import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.common import ROOT, Table

PROGRAM = """
import hashlib, os, sys, time
folder, began = sys.argv[1], float(sys.argv[2])
from main import main
from normstudy.training.training_step import Step

def with_checksum(name):
    content = open(os.path.join(folder, "cifar-10-batches-py", name), "rb").read()
    return [name, hashlib.md5(content).hexdigest()]

if not os.path.exists(os.path.join(folder, "CIFAR-10-decoded-images.pt")):
    from torchvision.datasets import CIFAR10
    CIFAR10.train_list = [with_checksum(name) for name, _ in CIFAR10.train_list]
    CIFAR10.test_list = [with_checksum(name) for name, _ in CIFAR10.test_list]
    CIFAR10.meta = CIFAR10.meta | {"md5": with_checksum("batches.meta")[1]}

def first_step(self, *arguments):
    print(time.time() - began, flush=True)
    os._exit(0)

Step.__call__ = first_step
main(["--dataset=CIFAR-10", f"--data_dir={folder}", f"--results_dir={folder}/results"])
"""


def start_up(repeats: int) -> dict[str, Table]:
    """Time the command to the first step: imports, CIFAR-10 from its cache, network, optimizer."""
    seconds = []
    with tempfile.TemporaryDirectory() as folder:
        write_random_cifar(Path(folder))
        for _ in range(repeats + 1):
            shutil.rmtree(Path(folder) / "results", ignore_errors=True)
            command = [sys.executable, "-c", PROGRAM, folder, str(time.time())]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
            seconds.append(float(done.stdout.split()[-1]))
    return {"main.py": {"first step": {"median_seconds": statistics.median(seconds[1:]), "target_seconds": 6}}}


def write_random_cifar(folder: Path) -> None:
    """Write CIFAR-10 files with random pixels; PROGRAM gives torchvision their checksums."""
    generator = np.random.default_rng(0)
    target = folder / "cifar-10-batches-py"
    target.mkdir()
    for name in ("data_batch_1", "data_batch_2", "data_batch_3", "data_batch_4", "data_batch_5", "test_batch"):
        pixels = generator.integers(0, 256, (10000, 3072), dtype=np.uint8)
        content = {"data": pixels, "labels": generator.integers(0, 10, 10000).tolist()}
        (target / name).write_bytes(pickle.dumps(content))
    names = {"label_names": [f"class {index}" for index in range(10)]}
    (target / "batches.meta").write_bytes(pickle.dumps(names))

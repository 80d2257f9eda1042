"""Measure training with one thread for each core, alone and beside a busy program: does waiting in a loop hold it up?

    python benchmarks/busy_cores.py [--repeats=3]

main.py lets threads that wait give their core away after microseconds (`normstudy.cli.loading_modules`); GNU OpenMP's
default is milliseconds. The busy program belongs to another session, as one of another user does. The two take turns.
Writes benchmarks/results/busy-cores-<machine>.json.
"""

import argparse
import contextlib
import os
import re
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import DEVICE, ROOT, Table, machine, machine_name
from normstudy.kernels import is_bf16_emulated
from normstudy.storage import write_json

SPIN_COUNTS = {"ours": "3000", "default": "300000"}  # iterations of the loop; the second is GNU OpenMP's own
FLAGS = ["--dataset=Synthetic", "--train_samples=640", "--test_samples=100", "--batch_size=64", "--epochs=1"]


def images_per_second(precision: str, spin_count: str) -> float:
    """Train a VGG for ten steps in a new process, and return the speed that it prints."""
    environment = os.environ | {"GOMP_SPINCOUNT": spin_count, "OMP_NUM_THREADS": str(os.cpu_count())}
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "main.py", *FLAGS, f"--precision={precision}", f"--results_dir={folder}"]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=True)
    [speed] = re.findall(r"trained ([\d,]+) img/s", done.stdout)
    return float(speed.replace(",", ""))


@contextlib.contextmanager
def busy_program() -> Iterator[None]:
    """A context in which a process of another session computes all the time, on one core."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"], start_new_session=True)
    try:
        yield
    finally:
        process.kill()
        process.wait()


def measure(repeats: int) -> dict[str, Table]:
    """Return {case: {contender: the median and all speeds in images per second}}."""
    report: dict[str, Table] = {}
    for case in ("alone", "beside a busy program"):
        for precision in ("fp32",) if is_bf16_emulated(DEVICE) else ("fp32", "bf16"):
            speeds: dict[str, list[float]] = {name: [] for name in SPIN_COUNTS}
            with contextlib.nullcontext() if case == "alone" else busy_program():
                for _ in range(repeats):
                    for name, spin_count in SPIN_COUNTS.items():
                        speeds[name].append(images_per_second(precision, spin_count))
            report[f"{precision}, {case}"] = {
                name: {"median_images_per_second": statistics.median(values), "all": values}
                for name, values in speeds.items()
            }
            print(f"{precision}, {case}: {speeds}", flush=True)
    return report


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3, help="runs of each contender in each case (default: 3)")
    report = measure(parser.parse_args().repeats)
    path = ROOT / "benchmarks" / "results" / f"busy-cores-{machine_name()}.json"
    write_json(path, {"machine": machine(), "report": report})
    print(f"wrote {path}")

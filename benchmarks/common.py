"""Shared functions of the benchmarks: alternating timings, medians, memory figures, and the machine's name."""

import platform
import re
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from normstudy.kernels import free_memory
from normstudy.storage import package_versions

ROOT = Path(__file__).resolve().parent.parent
DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
Functions = Mapping[str, Callable[[], object]]  # {contender: its function}
Table = dict[str, dict[str, Any]]  # {contender: its figures}


def synchronize() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def alternated(functions: Functions, repeats: int, warm_up: int = 1) -> dict[str, list[float]]:
    """Return {name: seconds of each repeat}. The functions take turns, after `warm_up` unmeasured calls of each."""
    seconds: dict[str, list[float]] = {name: [] for name in functions}
    for repeat in range(warm_up + repeats):
        for name, function in functions.items():
            synchronize()
            start = time.perf_counter()
            function()
            synchronize()
            if repeat >= warm_up:
                seconds[name].append(time.perf_counter() - start)
    return seconds


def compared(seconds: Mapping[str, list[float]], reference: str) -> Table:
    """Return {name: median seconds, median ratio to the reference of the same turn, and the sorted ratios}."""
    table: Table = {}
    for name, values in seconds.items():
        ratios = [value / other for value, other in zip(values, seconds[reference], strict=True)]
        table[name] = {
            "median_seconds": statistics.median(values),
            "median_ratio": statistics.median(ratios),
            "ratios": [round(ratio, 3) for ratio in sorted(ratios)],
        }
    return table


def status(key: str) -> int:
    """Return a memory figure of this process in bytes, as the kernel reports it: VmRSS or VmHWM."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line.split()[1] for line in lines if line.startswith(key)))


def stolen_and_all() -> tuple[int, int]:
    """Return the processor time that other guests of the host took and the total, in ticks since the start-up."""
    path = Path("/proc/stat")
    ticks = [int(value) for value in path.read_text().split("\n", 1)[0].split()[1:9]] if path.exists() else [0] * 8
    return ticks[7], sum(ticks)


def processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    return next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.processor())


def machine() -> dict[str, object]:
    """Return the description of the machine that is stored with the figures."""
    gpu: dict[str, object] = {"gpu": torch.cuda.get_device_name()} if DEVICE.type == "cuda" else {}
    return gpu | {
        "processor": processor(),
        "threads": torch.get_num_threads(),
        "free_memory_gib": round(free_memory(torch.device("cpu")) / 2**30),
        "versions": package_versions(),
    }


def machine_name() -> str:
    """Return a file name for the machine, from its GPU or its processor and threads."""
    name = torch.cuda.get_device_name() if DEVICE.type == "cuda" else f"{processor()} {torch.get_num_threads()} threads"
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\([^)]*\)", "", name).lower()).strip("-")

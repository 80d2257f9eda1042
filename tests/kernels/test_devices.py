"""The devices of the machine, and keeping freed memory for the next tensor."""

import ctypes
import math
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from normstudy.cli import UsageError, processes_sharing, sharing_environment
from normstudy.kernels import devices

ROOT = Path(__file__).parents[2]
FAULTS = """
import resource, torch
from normstudy.kernels import keep_freed_memory
if {keeps}:
    keep_freed_memory()
x = torch.ones(1 << 24)
for repeat in range(20):
    if repeat == 10:  # until then the heap grows
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    y = x * 2
    del y
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def test_auto_is_a_device_that_is_there():
    device = devices.pick_device("auto")
    assert torch.ones(2, device=device).sum().item() == 2


@pytest.mark.parametrize("name", ["cuda:99", "cpu:7", "toaster"])
def test_a_device_that_is_not_there_is_refused(name):
    with pytest.raises(UsageError, match=name):
        devices.pick_device(name)


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="no list of the processor's instructions")
def test_bf16_is_emulated_where_the_processor_has_no_instructions_for_it():
    flags = set(Path("/proc/cpuinfo").read_text().split())
    assert not devices.is_bf16_emulated(torch.device("meta"))
    if flags & {"amx_bf16", "avx512_bf16", "bf16"}:
        assert not devices.is_bf16_emulated(torch.device("cpu"))
    elif "avx512bw" not in flags:
        assert devices.is_bf16_emulated(torch.device("cpu"))


def test_free_memory_is_that_of_this_machine():
    free = devices.free_memory(torch.device("cpu"))
    assert 1e7 < free <= 1e15 or free == math.inf


def test_processes_of_a_sweep_share_the_free_memory(monkeypatch):
    cpu = torch.device("cpu")
    for name, value in sharing_environment(on_machine=8, on_gpu=2).items():
        monkeypatch.setenv(name, value)
    assert (processes_sharing("cpu"), processes_sharing("cuda")) == (8, 2)
    part = devices.free_memory(cpu)
    monkeypatch.undo()
    assert (processes_sharing("cpu"), processes_sharing("cuda")) == (1, 1)
    assert part < 0.5 * devices.free_memory(cpu) or part == math.inf


def test_only_a_gpu_becomes_the_current_device():
    with devices.as_current(torch.device("cpu")), devices.as_current(torch.device("meta")):
        pass


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallopt"), reason="the C library is not glibc")
def test_freed_memory_is_kept_for_the_next_tensor():
    def faults(keeps):
        command = [sys.executable, "-c", FAULTS.format(keeps=keeps)]
        return int(subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout)

    assert faults(True) < faults(False) / 10

"""Provenance of a result: versions of packages, the program's commit, and the history of a run."""

from __future__ import annotations

import functools
import importlib.metadata
import platform
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def package_versions() -> dict[str, str]:
    """Return {package: version} for Python and the packages that the numbers depend on."""
    import torch

    others = {name: importlib.metadata.version(name) for name in ("torchvision", "numpy")}
    return {"python": platform.python_version(), "torch": str(torch.__version__)} | others


@functools.cache
def git_commit() -> str | None:
    """Return the commit of this program, with `+` if files differ from it, or None outside a git checkout."""
    home = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=home, capture_output=True, text=True, check=True)
        status = ["git", "status", "--porcelain", "--untracked-files=no"]
        changes = subprocess.run(status, cwd=home, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if changes.stdout.strip() else "")


def history_entry(step: int, device: torch.device, processes: int) -> dict[str, Any]:
    """Return the history entry for the software and hardware that train a run from global step `step` on."""
    return {
        "step": step,
        "versions": package_versions(),
        "git_commit": git_commit(),
        "device": device.type,
        "processes": processes,
    }


def add_to_history(history: list[dict[str, Any]], entry: dict[str, Any]) -> None:
    """Append an entry if it differs from the last one in more than its step.

    A change of program version, device or number of processes is reported on stderr.
    """
    before = history[-1] if history else entry
    names = {"git_commit": "version of this program", "device": "device", "processes": "number of processes"}
    for name, words in names.items():
        if name in before and before[name] != entry[name]:
            print(f"this run continues with a different {words}: {before[name]}, now {entry[name]}", file=sys.stderr)
    if not history or before | {"step": 0} != entry | {"step": 0}:
        history.append(entry)

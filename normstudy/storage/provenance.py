"""What a result was made with: versions of packages and the program's commit."""

import functools
import importlib.metadata
import platform
import subprocess
from pathlib import Path


def versions():
    """{package: version} of what the numbers depend on."""
    import torch

    others = {name: importlib.metadata.version(name) for name in ("torchvision", "numpy")}
    return {"python": platform.python_version(), "torch": str(torch.__version__)} | others


@functools.cache
def git_commit():
    """The commit of this program, with `+` where its files differ from it; None outside a git checkout."""
    home = Path(__file__).resolve().parent
    try:
        commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=home, capture_output=True, text=True, check=True)
        status = ["git", "status", "--porcelain", "--untracked-files=no"]
        dirty = subprocess.run(status, cwd=home, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit.stdout.strip() + ("+" if dirty.stdout.strip() else "")

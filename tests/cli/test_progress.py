"""Progress bars on terminals."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def test_a_terminal_that_does_not_tell_its_width_shows_a_bar():
    pty = pytest.importorskip("pty")
    ours, theirs = pty.openpty()  # 0 columns
    os.set_blocking(ours, False)
    program = (
        "from normstudy.cli import progress_bar\n"
        "bar = progress_bar(10, 'epoch'); bar.update(5); bar.refresh(); bar.close()"
    )
    subprocess.run([sys.executable, "-c", program], cwd=ROOT, stderr=theirs, check=True)
    assert b"epoch:  50%" in os.read(ours, 4096)
    os.close(ours)
    os.close(theirs)

"""A copy of the folder normstudy/curvature gives the same numbers elsewhere; it requires only torch."""

import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PROGRAM = """
import sys
sys.path = [path for path in sys.path if path != {root!r}]
import torch
from torch import nn
from {package} import hessian_matvec, lanczos, loss_and_gradient, spectrum

torch.manual_seed(0)
model = nn.Sequential(
    nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LayerNorm(64), nn.Linear(64, 5)
).double()
batches = [(torch.randn(n, 3, 6, 6, dtype=torch.float64), torch.arange(n) % 5) for n in (6, 6)]
for options in ({{}}, {{"keep_graphs": True}}, {{"curvature": "ggn"}}, {{"bn_mode": "train"}}):
    matvec, dimension = hessian_matvec(model, batches, **options)
    found = spectrum(matvec, dimension, 2, 8, torch.Generator().manual_seed(1), trace_probes=2)
    print(found)
    print(lanczos(matvec, torch.ones(dimension, dtype=torch.float64), 5))
print(loss_and_gradient(model, batches))
assert not any(name in sys.modules for name in ("config", "layer_defs", "models", "scipy", "pandas")), sys.modules
"""


def said(folder, package):
    program = PROGRAM.format(root=str(ROOT), package=package)
    done = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_copy_in_an_empty_folder_gives_the_same_numbers(tmp_path):
    shutil.copytree(ROOT / "normstudy" / "curvature", tmp_path / "curvature")
    copied = said(tmp_path, "curvature")
    assert "Spectrum(trace=" in copied
    shutil.rmtree(tmp_path / "curvature")
    shutil.copytree(ROOT / "normstudy", tmp_path / "normstudy")
    assert copied == said(tmp_path, "normstudy.curvature")

"""Allowed imports of the top-level modules, which import-linter does not check, and what an import loads."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# {module: the modules of the project that it may import}
ALLOWED = {
    "config": {"normstudy.cli"},
    "layer_defs": {"normstudy.kernels"},
    "transformer_model": {"config", "layer_defs", "normstudy.kernels"},
    "models": {"config", "layer_defs", "transformer_model", "normstudy.kernels"},
    "utils": set(),
    "main": {"config", "normstudy.cli", "normstudy.plots", "normstudy.training"},
    "run_class_similarity": {"normstudy.cli", "normstudy.measures"},
    "run_measures": {"normstudy.cli", "normstudy.kernels", "normstudy.measures"},
    "run_hessian": {"normstudy.cli", "normstudy.measures"},
    "run_landscape": {"normstudy.cli", "normstudy.measures"},
    "run_report": {"config", "normstudy.cli", "normstudy.report", "normstudy.storage"},
    "run_sweep": {"normstudy.cli", "normstudy.sweeps"},
}
FOLDERS = sorted(path.parent.name for path in ROOT.glob("normstudy/*/__init__.py"))


def imported(path):
    """Yield the modules that a file imports, at any place in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module == "normstudy":
            yield from (f"normstudy.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.module or ""


def of_the_project(names):
    own = {path.stem for path in ROOT.glob("*.py")}
    return {name for name in names if name.partition(".")[0] in own | {"normstudy"}}


def test_the_top_level_is_the_commands_and_the_modules_that_have_a_name():
    assert {path.stem for path in ROOT.glob("*.py")} == set(ALLOWED)


@pytest.mark.parametrize("module", ALLOWED)
def test_a_top_level_module_imports_what_it_may(module):
    assert of_the_project(imported(ROOT / f"{module}.py")) <= ALLOWED[module]


@pytest.mark.parametrize("folder", FOLDERS)
def test_a_folder_names_what_it_offers(folder):
    """`__init__.py` imports exactly the names in its __all__."""
    tree = ast.parse((ROOT / "normstudy" / folder / "__init__.py").read_text(encoding="utf-8"))
    names = [alias.name for node in tree.body if isinstance(node, ast.ImportFrom) for alias in node.names]
    [offered] = [ast.literal_eval(node.value) for node in tree.body if isinstance(node, ast.Assign)]
    assert sorted(names) == sorted(offered)
    assert len(set(offered)) == len(offered)


HEAVY = {"torch", "numpy", "pandas", "scipy", "matplotlib", "torchvision", "submitit", "PIL"}


@pytest.mark.parametrize(
    "statement",
    ["import normstudy", "import config", *(f"import {name}" for name in ALLOWED if name.startswith(("main", "run_")))],
)
def test_what_answers_at_once_loads_nothing_heavy(statement):
    program = f"{statement}; import sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not HEAVY & set(done.stdout.split())


@pytest.mark.parametrize("folder", ["cli", "storage", "sweeps"])
def test_folders_that_plan_need_no_torch(folder):
    program = f"import normstudy.{folder}, sys; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "pandas", "scipy", "matplotlib"} & set(done.stdout.split())

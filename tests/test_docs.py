"""README.md and docs/ stay true: their commands are accepted, their Python runs, and what they name exists."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torchvision
from helpers import NARROW

import main
import run_class_similarity
import run_hessian
import run_landscape
import run_measures
import run_report
from config import NORM_TYPES, parse_args
from normstudy.cli import flag_tables
from normstudy.sweeps import parse_command, runs_of

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXTS = {path.relative_to(ROOT).as_posix(): path.read_text(encoding="utf-8") for path in PAGES}
README = TEXTS["README.md"]
PARSERS = {
    "run_hessian.py": run_hessian.build_parser(),
    "run_class_similarity.py": run_class_similarity.build_parser(),
    "run_measures.py": run_measures.build_parser(),
    "run_landscape.py": run_landscape.build_parser(),
    "run_report.py": run_report.build_parser(),
}


def commands(script):
    """Every command line with a script in the code blocks of all pages, without its comment."""
    blocks = [block for text in TEXTS.values() for block in re.findall(r"```\n(.*?)```", text, re.DOTALL)]
    lines = [line.partition("#")[0].strip() for block in blocks for line in block.splitlines()]
    return sorted({line for line in lines if re.match(rf"(python|torchrun .*?) {re.escape(script)}( |$)", line)})


def flags(command, script):
    """The words of a command line after the script."""
    return shlex.split(command.partition(script)[2])


@pytest.mark.parametrize("command", commands("main.py"))
def test_every_training_command_is_accepted(command):
    assert flags(command, "main.py") == ["--help"] or parse_args(flags(command, "main.py"))


@pytest.mark.parametrize("command", commands("run_sweep.py"))
def test_every_sweep_command_means_runs(command):
    assert runs_of(parse_command(flags(command, "run_sweep.py")))[0]


@pytest.mark.parametrize("command", [command for script in PARSERS for command in commands(script)])
def test_every_measuring_and_reporting_command_is_accepted(command):
    [script] = [script for script in PARSERS if f" {script}" in command]
    assert PARSERS[script].parse_args(flags(command, script))


def test_there_are_commands():
    assert len(commands("main.py")) >= 8
    assert len(commands("run_hessian.py")) >= 4
    assert len(commands("run_sweep.py")) >= 5


def test_the_make_commands_exist():
    used = set(re.findall(r"^make (\w+)", "\n".join(TEXTS.values()), re.MULTILINE))
    makefile = (ROOT / "Makefile").read_text()
    assert {"demo", "test", "lint"} <= used
    assert all(f"\n{target}:" in makefile for target in used)


def test_the_readme_is_short_and_leads_to_every_page():
    assert len(README.splitlines()) <= 150
    assert all(f"]({name})" in README for name in TEXTS if name != "README.md")


@pytest.mark.parametrize("name", [name for name in TEXTS if name.startswith("docs/")])
def test_a_page_begins_with_something_to_run(name):
    assert re.match(r"# [^\n]+\n```(python)?\n\w", TEXTS[name])


def anchors(text):
    """The anchors that GitHub gives to the headings of a page."""
    headings = re.findall(r"^#+ (.*)", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("name", TEXTS)
def test_every_link_and_picture_exists(name):
    for target in re.findall(r"\]\(([^)\s]+)\)", TEXTS[name]):
        path, _, anchor = target.partition("#")
        linked = (ROOT / name).parent / path if path else ROOT / name
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked.read_text(encoding="utf-8")), target


def test_the_flag_tables_are_the_parsers(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert flag_tables.main(["--check"]) == 0, "run python -m normstudy.cli.flag_tables"


def test_every_command_has_its_flag_tables():
    scripts = {path.name for path in ROOT.glob("*.py") if path.name.startswith(("main", "run_"))}
    assert scripts == set(flag_tables.PARSER_MODULES)
    assert scripts == set(re.findall(r"flags of (\S+): generated", TEXTS["docs/flags.md"]))


def test_a_stale_flag_table_is_found_and_updated(tmp_path, monkeypatch, capsys):
    (tmp_path / "docs").mkdir()
    page = tmp_path / "docs" / "flags.md"
    page.write_text(TEXTS["docs/flags.md"].replace("| `--seed` |", "| `--sead` |", 1), encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert flag_tables.main(["--check"]) == 1
    assert "flag_tables" in capsys.readouterr().err
    assert flag_tables.main([]) == 0
    assert page.read_text(encoding="utf-8") == TEXTS["docs/flags.md"]


def test_every_norm_has_its_row_and_is_counted():
    table = TEXTS["docs/training.md"].partition("\n## Normalization layers\n")[2].partition("\n## ")[0]
    rows = " ".join(row.partition("|")[0] for row in re.findall(r"^\| (`.*)", table, re.MULTILINE))
    assert sorted(re.findall(r"`(\w+)`", rows)) == sorted(NORM_TYPES)
    assert f"any of {len(NORM_TYPES) - 1} normalization layers, or none" in README


def python_blocks(name):
    return re.findall(r"```python\n(.*?)```", TEXTS[name], re.DOTALL)


def run_python(program):
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_pieces_of_python_measure_a_foreign_network_one_after_another():
    measure, _, regression, tokens, density, similarity, generalization, _ = python_blocks("docs/python.md")
    shown = "print([len(each) for each in largest])"
    said = run_python("\n".join([measure, regression, tokens, density, similarity, shown, generalization]))
    assert len(re.findall(r"^loss [\d.]+ with", said, re.MULTILINE)) == 2
    assert re.search(r"^trace \S+ ± \S+ \(s.e. over 6 probes\)\nlargest eigenvalue \S+ \(residual", said, re.MULTILINE)
    assert re.search(r"^layer4.1.conv2: \S+ ± ", said, re.MULTILINE)
    assert "the density integrates to 1.000" in said
    assert "class similarity 0." in said
    assert "[3, 3]" in said
    assert re.search(r"^adaptive_sharpness_l2 0\.\d", said, re.MULTILINE)


def test_the_pieces_of_python_measure_other_models_losses_and_batches(tmp_path):
    _, checkpoint, regression, tokens, *_ = python_blocks("docs/python.md")
    state = torchvision.models.resnet18(num_classes=10).state_dict()
    path = tmp_path / "theirs.pt"
    torch.save({"epoch": 3, "state_dict": {f"module.{name}": value for name, value in state.items()}}, path)
    said = run_python(checkpoint.replace("theirs.pt", str(path)))
    assert re.search(r"^loss [\d.]+, gradient norm [\d.]+$", said, re.MULTILINE)
    said = run_python(regression)
    assert re.search(r"^hessian: eigenvalues from -\S+ to \S+\nggn: eigenvalues from -?\S+ to \S+$", said, re.MULTILINE)
    said = run_python(tokens)
    assert said.startswith("3074 ['embedding', 'block.self_attn']")


def test_the_pieces_of_python_measure_a_run(tmp_path, small, narrow):
    """In a process of their own, but for the width of the network and the number of images."""
    run = main.main([*small, "--epochs=1", f"--results_dir={tmp_path}"])
    measure, *_, load_run = python_blocks("docs/python.md")
    load_run = load_run.replace("results/RUN", str(run)).replace("100, len(", "20, len(")
    imports = measure.partition("model = ")[0]
    measured = "for mode" + measure.partition("for mode")[2]
    narrower = f"import config\nconfig.VGG_LAYERS['cfg_10'] = {NARROW}"
    assert "blocks.0.conv: " in run_python("\n".join([narrower, load_run, imports, measured]))


def test_every_line_about_reliability_names_tests_that_exist():
    lines = [line for line in TEXTS["docs/reliability.md"].splitlines() if "`tests/" in line and line.startswith("|")]
    named = [re.findall(r"`(tests/[\w/]+\.py)::(?:\w+::)?(\w+)`", line) for line in lines]
    assert len(lines) > 40
    assert all(named)
    assert [
        (path, name)
        for pairs in named
        for path, name in pairs
        if f"def {name}(" not in (ROOT / path).read_text(encoding="utf-8")
    ] == []


def test_every_place_in_the_map_exists():
    section = TEXTS["docs/architecture.md"].partition("\n## The places\n")[2].partition("\n## ")[0]
    names = re.findall(r"`([\w./]+(?:\.py|/))`", section)
    assert all((ROOT / name).exists() for name in names)
    top = {path.name for path in ROOT.glob("*.py")} | {
        f"{path.relative_to(ROOT).as_posix()}/" for path in ROOT.glob("normstudy/*") if (path / "__init__.py").exists()
    }
    assert top <= set(names)

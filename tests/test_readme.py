"""README.md stays true: its flags are the parser's, its commands are accepted, the files it names exist."""

import argparse
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from helpers import NARROW

import main
import run_class_similarity
import run_hessian
import run_report
from config import FLAGS, NORM_TYPES, parse_args
from normstudy.sweeps import build_parser, expand
from run_sweep import OWN

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
FLAGS_PAGE = (ROOT / "docs" / "flags.md").read_text(encoding="utf-8")


def flags_table():
    """The table of flags as the parser's fields give it."""
    lines = ["| flag | values | default | meaning |", "|---|---|---|---|"]
    for option in FLAGS:
        kind = option.metadata["type"].__name__
        values = {"boolean": "True, False", "str": "text", "device_name": "text", "parse": "number"}[kind]
        if option.metadata["choices"]:
            values = ", ".join(f"`{choice}`" for choice in option.metadata["choices"])
        names = ", ".join(f"`{name}`" for name in (f"--{option.name}", *option.metadata["flags"]))
        default = "" if option.default is None else f"`{option.default}`"
        lines.append(f"| {names} | {values} | {default} | {option.metadata['help']} |")
    return "\n".join(lines)


def measurement_table(parser, names=None):
    """The table of a command's flags, or some of them, as its parser gives it."""
    lines = ["| flag | default | meaning |", "|---|---|---|"]
    for action in parser._actions:
        if action.option_strings and action.dest != "help" and (names is None or action.dest in names):
            default = "" if action.default in (None, "", argparse.SUPPRESS) else f"`{action.default}`"
            meaning = action.help.replace("%%", "%")
            meaning = meaning.partition(" (default")[0] if default else meaning
            lines.append(f"| `{action.option_strings[0]}` | {default} | {meaning} |")
    return "\n".join(lines)


def commands(script):
    """Every `python SCRIPT …` line of the README."""
    lines = [line for line in README.splitlines() if line.startswith(f"python {script}")]
    return [line.partition("#")[0].strip() for line in lines]


def test_the_table_of_flags_is_the_parsers():
    assert flags_table() in README, f"the README's table should read\n{flags_table()}"


def test_every_norm_has_its_row_and_is_counted():
    table = README.partition("\n## Normalization layers\n")[2].partition("\n### ")[0]
    rows = " ".join(row.partition("|")[0] for row in re.findall(r"^\| (`.*)", table, re.MULTILINE))
    assert sorted(re.findall(r"`(\w+)`", rows)) == sorted(NORM_TYPES)
    assert f"any of {len(NORM_TYPES)} normalization layers" in README


PARSERS = {"run_hessian.py": run_hessian.build_parser(), "run_class_similarity.py": run_class_similarity.build_parser()}
PARSERS["run_report.py"] = run_report.build_parser()


@pytest.mark.parametrize("parser", PARSERS.values(), ids=PARSERS)
def test_the_tables_of_measuring_flags_are_the_parsers(parser):
    assert measurement_table(parser) in FLAGS_PAGE, f"docs/flags.md should read\n{measurement_table(parser)}"


def test_the_table_of_sweep_flags_is_the_parsers():
    table = measurement_table(build_parser(), OWN)
    assert table in FLAGS_PAGE, f"docs/flags.md should read\n{table}"


@pytest.mark.parametrize("command", commands("run_sweep.py"))
def test_every_sweep_command_means_runs(command):
    given = vars(build_parser().parse_args(shlex.split(command)[2:]))
    preset = given.get("preset")
    assert expand({name: value for name, value in given.items() if name not in OWN}, preset)[0]


def test_there_are_commands():
    assert len(commands("main.py")) >= 5
    assert len(commands("run_hessian.py")) >= 3
    assert len(commands("run_class_similarity.py")) >= 2


@pytest.mark.parametrize("command", commands("main.py"))
def test_every_command_is_accepted(command):
    words = shlex.split(command)[2:]
    assert words == ["--help"] or parse_args(words)


def test_every_torchrun_command_is_accepted():
    lines = [line for line in README.splitlines() if line.startswith("torchrun ")]
    assert lines
    assert all(parse_args(shlex.split(line)[3:]) for line in lines)


@pytest.mark.parametrize("command", [command for script in PARSERS for command in commands(script)])
def test_every_measuring_and_reporting_command_is_accepted(command):
    _, script, *flags = shlex.split(command)
    assert PARSERS[script].parse_args(flags)


def test_its_python_measures_a_foreign_network():
    [program] = re.findall(r"```python\n(import torch\n.*?)```", README, re.DOTALL)
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert re.fullmatch(r"trace -?[\d.e+]+ ± [\d.e+]+, largest eigenvalue [\d.e+]+\n", done.stdout), done.stderr


def test_the_pieces_for_python_run_one_after_another(tmp_path, small, narrow):
    """On a small run, and in a process of their own, but for the width of the network."""

    run = main.main([*small, "--epochs=1", f"--results_dir={tmp_path}"])
    page = (
        (ROOT / "docs" / "python.md").read_text(encoding="utf-8").replace("results/RUN", str(run)).replace("100", "20")
    )
    pieces = "\n".join(re.findall(r"```python\n(.*?)```", page, re.DOTALL))
    program = f"import config\nconfig.VGG_LAYERS['cfg_10'] = {NARROW}\n{pieces}\nprint(density.sum(), len(largest))"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert re.search(r"^trace .* probes\)\nlargest eigenvalue", done.stdout)
    assert "blocks.0.conv: " in done.stdout
    assert "class similarity 0." in done.stdout


def test_the_make_commands_exist():
    targets = re.findall(r"^make (\w+)", README, re.MULTILINE)
    makefile = (ROOT / "Makefile").read_text()
    assert targets == ["demo", "test"]
    assert all(f"\n{target}:" in makefile for target in targets)


def test_every_file_in_the_map_exists():
    section = README.partition("\n## Files\n")[2].partition("\n## ")[0]
    names = re.findall(r"`([\w./]+)`", section)
    assert all((ROOT / name).exists() for name in names)
    top = {path.name for path in ROOT.glob("*.py")} | {
        f"{path.relative_to(ROOT).as_posix()}/" for path in ROOT.glob("normstudy/*") if (path / "__init__.py").exists()
    }
    assert top <= set(names)


def test_every_picture_exists():
    pictures = re.findall(r"!\[[^]]*\]\(([^)]+)\)", README)
    assert pictures
    assert all((ROOT / picture).exists() for picture in pictures)

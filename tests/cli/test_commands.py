"""How commands end: with one line and an exit code for what a user can cause, and for a signal at any moment."""

import contextlib
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from normstudy.cli import loading_modules
from normstudy.cli.signals import STOP_SIGNALS, raise_stop, stop_handlers

ROOT = Path(__file__).parents[2]
EXIT_CODES = [(number, 130 if number == signal.SIGINT else 99) for number in STOP_SIGNALS]
SLOW_MODULE = """
import time
print("loading", flush=True)
try:
    time.sleep(60)
except BaseException:
    print("the module swallowed the signal", flush=True)
"""


@pytest.fixture
def start(tmp_path):
    """Return a function that starts a script, command.py in tmp_path, whose main() consists of the given lines."""
    processes = []

    def run(*lines, **variables):
        text = "\n    ".join(["def main():", *lines])
        head = "import os, signal, sys, threading, time\nfrom normstudy.cli import *"
        (tmp_path / "command.py").write_text(f"{head}\n\n{text}\n\nif __name__ == '__main__':\n    run_command(main)\n")
        environment = os.environ | {"PYTHONPATH": str(ROOT)} | variables
        command = [sys.executable, tmp_path / "command.py"]
        process = subprocess.Popen(
            command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
        )
        processes.append(process)
        return process

    yield run
    for process in processes:
        process.kill()
        process.communicate()


def ending(process):
    """Return (exit code, stdout, stderr) of a process that ends by itself."""
    stdout, stderr = process.communicate(timeout=30)
    return process.returncode, stdout, stderr


@pytest.mark.parametrize(
    ("line", "code", "message"),
    [
        ("raise UsageError('--seed is wrong')", 2, "command.py: error: --seed is wrong\n"),
        ("raise RunError('two\\nlines')", 1, "command.py: error: two lines\n"),
        ("open('nowhere')", 1, "command.py: error: No such file or directory (nowhere)\n"),
        ("return 3", 3, ""),
        ("return 'a path'", 0, ""),
        (
            "os.kill(os.getpid(), signal.SIGINT)",
            130,
            "command.py: interrupted; run the same command again to continue\n",
        ),
        (
            "os.kill(os.getpid(), signal.SIGTERM)",
            99,
            "command.py: stopped by a signal; run the same command again to continue\n",
        ),
        ("raise KeyboardInterrupt('3 measured')", 130, "command.py: interrupted; 3 measured\n"),
    ],
)
def test_a_command_ends_with_one_line_and_an_exit_code(start, line, code, message):
    assert ending(start(line)) == (code, "", message)


def test_an_ascii_terminal_shows_other_characters_as_escapes(start):
    process = start("print('±'); raise RunError('100 ≤ 50')", PYTHONIOENCODING="ascii", LC_ALL="C", PYTHONUTF8="0")
    assert ending(process) == (1, "\\xb1\n", "command.py: error: 100 \\u2264 50\n")


def test_a_closed_standard_output_is_no_error(start, tmp_path):
    start("print('done')").wait()  # writes the script
    command = f'"{sys.executable}" "{tmp_path / "command.py"}" >&-'
    done = subprocess.run(command, shell=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
    assert (done.returncode, done.stderr) == (0, b"")


def test_an_error_of_the_program_keeps_its_traceback(start):
    code, _, stderr = ending(start("raise ValueError('a bug')"))
    assert (code, stderr.splitlines()[0]) == (1, "Traceback (most recent call last):")


@pytest.mark.parametrize("line", ["import no_such_module", "with loading_modules(): import no_such_module"])
def test_a_package_that_is_not_installed_is_one_line(start, line):
    how = "run pip install -r requirements.txt with the pip of this Python"
    assert ending(start(line)) == (1, "", f"command.py: error: the module no_such_module is not installed: {how}\n")


@pytest.mark.parametrize("package", ["torch", "filelock", "tqdm"])
def test_packages_load_after_the_flags_are_checked(package):
    """Importing the commands, or the folders that plan and collect, does not import these packages."""
    commands = "main, run_hessian, run_class_similarity, run_measures, run_landscape, run_sweep, run_report"
    code = f"import sys, {commands}; sys.exit(sys.argv[1] in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code, package], cwd=ROOT).returncode == 0


def test_one_of_several_processes_does_not_repeat_that_it_was_stopped(start):
    process = start("os.kill(os.getpid(), signal.SIGTERM)", RANK="1", WORLD_SIZE="2")
    assert ending(process) == (99, "", "")


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
def test_a_signal_while_modules_load_ends_the_process_at_once(start, tmp_path, number, code):
    (tmp_path / "slow_module.py").write_text(SLOW_MODULE)
    process = start("with loading_modules():", "    import slow_module", "print('main goes on')")
    assert process.stdout.readline() == "loading\n"
    process.send_signal(number)
    name = "interrupted" if code == 130 else "stopped by a signal"
    assert ending(process) == (code, "", f"{name} before any work started\n")


@pytest.mark.parametrize(("number", "code"), EXIT_CODES)
@pytest.mark.parametrize("is_loaded", [True, False], ids=["loaded", "missing"])
def test_a_signal_after_modules_were_loaded_is_handled_as_before(start, number, code, is_loaded):
    module = "json" if is_loaded else "no_such_module"
    lines = ["try:", "    with loading_modules():", f"        import {module}", "except ImportError:", "    pass"]
    returned, _, stderr = ending(start(*lines, f"os.kill(os.getpid(), {number:d})"))
    assert (returned, stderr.count("\n")) == (code, 1)
    assert "run the same command again to continue" in stderr


def test_a_signal_after_the_end_changes_no_exit_code(start):
    lines = ["import atexit", "atexit.register(os.kill, os.getpid(), signal.SIGINT)", "raise RunError('failed')"]
    assert ending(start(*lines)) == (1, "", "command.py: error: failed\n")


def current_handlers():
    return {number: signal.getsignal(number) for number in STOP_SIGNALS}


def test_outside_a_command_loading_leaves_signals_alone():
    before = current_handlers()
    with loading_modules():
        assert current_handlers() == before
    assert current_handlers() == before


def test_threads_spin_briefly_unless_the_user_says_how_they_wait(monkeypatch):
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    with loading_modules():
        assert int(os.environ["GOMP_SPINCOUNT"]) < 10_000
    assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setenv("OMP_WAIT_POLICY", "active")
    with loading_modules():
        assert "GOMP_SPINCOUNT" not in os.environ
    monkeypatch.setenv("GOMP_SPINCOUNT", "7")
    with loading_modules():
        assert os.environ["GOMP_SPINCOUNT"] == "7"
    assert os.environ["GOMP_SPINCOUNT"] == "7"


def test_inside_a_command_loading_takes_signals_and_gives_them_back():
    before = current_handlers()
    with stop_handlers(raise_stop):
        with contextlib.suppress(ImportError), loading_modules():
            assert raise_stop not in current_handlers().values()
            raise ImportError
        assert set(current_handlers().values()) == {raise_stop}
    assert current_handlers() == before


def test_a_thread_may_load_modules_and_run_commands(start):
    """Python allows no signal handler to be set in a thread; a signal still stops the command in the main thread."""
    lines = [
        "def work():",
        "    with loading_modules(), stops_at_safe_points():",
        "        print('loaded', flush=True)",
        "thread = threading.Thread(target=work)",
        "thread.start(); thread.join()",
        "thread = threading.Thread(target=run_command, args=[lambda: print('ran', flush=True)])",
        "thread.start(); thread.join()",
        "os.kill(os.getpid(), signal.SIGTERM)",
    ]
    message = "command.py: stopped by a signal; run the same command again to continue\n"
    assert ending(start(*lines)) == (99, "loaded\nran\n", message)

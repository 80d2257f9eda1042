"""How the processes of a run meet: who is missing is said, the wait ends, and a signal ends it at once."""

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from normstudy.cli import (
    RunError,
    UsageError,
    is_first_process,
    is_one_of_several,
    launcher_number,
    place_among_processes,
)
from normstudy.training import rendezvous

ROOT = Path(__file__).parents[2]
MEET = """
from normstudy.cli import run_command
from normstudy.training import rendezvous
rendezvous.SILENT_SECONDS = 0
run_command(rendezvous.meet)
"""
VARIABLES = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT", "LOCAL_WORLD_SIZE")


@pytest.fixture
def variables(monkeypatch):
    """Return a function that sets a launcher's variables, given as text."""

    def set_them(text):
        for name in VARIABLES:
            monkeypatch.delenv(name, raising=False)
        for pair in text.split():
            monkeypatch.setenv(*pair.split("="))

    return set_them


@pytest.fixture
def port():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


@pytest.mark.parametrize(
    ("text", "place"),
    [
        ("", (0, 1)),
        ("WORLD_SIZE=2", (0, 1)),
        ("RANK=", (0, 1)),
        ("RANK= WORLD_SIZE=", (0, 1)),
        ("RANK=1 WORLD_SIZE=3", (1, 3)),
    ],
)
def test_the_place_of_a_process_is_that_of_its_launcher(variables, text, place):
    variables(text)
    assert place_among_processes() == place
    assert (is_first_process(), is_one_of_several()) == (place[0] == 0, place[1] > 1)


@pytest.mark.parametrize("text", ["RANK=0", "RANK=1 WORLD_SIZE=", "RANK=x WORLD_SIZE=2", "RANK=2 WORLD_SIZE=2"])
def test_variables_that_name_no_process_are_said(variables, text):
    variables(text)
    with pytest.raises(UsageError, match=r"RANK=.* torchrun; for one process, unset RANK and WORLD_SIZE"):
        place_among_processes()
    assert is_first_process()
    assert not is_one_of_several()


def test_a_number_of_a_launcher_may_be_empty_but_no_word(variables):
    variables("LOCAL_WORLD_SIZE=")
    assert launcher_number("LOCAL_WORLD_SIZE", 7) == 7
    variables("LOCAL_WORLD_SIZE=x")
    with pytest.raises(UsageError, match="LOCAL_WORLD_SIZE=x is not a number"):
        launcher_number("LOCAL_WORLD_SIZE", 7)


@pytest.mark.parametrize("place", ["", "MASTER_ADDR=localhost", "MASTER_ADDR=localhost MASTER_PORT=x"])
def test_processes_without_a_place_to_meet_do_not_wait(variables, place):
    variables(f"RANK=0 WORLD_SIZE=2 {place}")
    with pytest.raises(UsageError, match="name no place to meet"):
        rendezvous.meet()


@pytest.mark.parametrize(("rank", "state"), [(0, "1 of 2 here"), (1, "the first process is not here yet")])
def test_who_is_missing_is_said_and_the_wait_ends(variables, port, rank, state, monkeypatch, capsys):
    variables(f"RANK={rank} WORLD_SIZE=2 MASTER_ADDR=localhost MASTER_PORT={port}")
    monkeypatch.setattr(rendezvous, "SILENT_SECONDS", 0)
    monkeypatch.setattr(rendezvous, "LONGEST_MEETING", 0.3)
    with pytest.raises(RunError, match=rf"localhost:{port} \({state}\): check that all 2 are running.*MASTER_PORT"):
        rendezvous.meet()
    assert capsys.readouterr().err == f"waiting for the other processes at localhost:{port} ({state})...\n"


def test_a_host_without_an_address_is_said_at_once(variables, port):
    variables(f"RANK=0 WORLD_SIZE=2 MASTER_ADDR=no.such.host.invalid MASTER_PORT={port}")
    with pytest.raises(RunError, match=r"cannot meet at no\.such\.host\.invalid"):
        rendezvous.meet()


def test_processes_meet_in_any_order_and_a_signal_ends_the_wait(port):
    def start(rank):
        place = {"RANK": str(rank), "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
        environment = os.environ | place | {"PYTHONPATH": str(ROOT)}
        return subprocess.Popen([sys.executable, "-c", MEET], env=environment, stderr=subprocess.PIPE, text=True)

    late, early = start(0), start(1)
    assert [process.wait(60) for process in (early, late)] == [0, 0]
    interrupted = start(0)
    assert interrupted.stderr is not None
    assert interrupted.stderr.readline().endswith("(1 of 2 here)...\n")
    interrupted.send_signal(signal.SIGTERM)
    assert interrupted.wait(10) == 99

"""The page of run_sweep.py --status. It only reads, so that it can be called while the sweep runs elsewhere."""

import shlex
import shutil
import textwrap
from collections.abc import Sequence

from normstudy.cli import format_count
from normstudy.sweeps.command import SweepCommand
from normstudy.sweeps.durations import describe_duration
from normstudy.sweeps.estimates import Estimates
from normstudy.sweeps.last_sweep import read_last_sweep, sweep_to_look_at
from normstudy.sweeps.run_states import DONE, FAILED, RUNNING, WAITING, RunState, all_runs, read_states

WIDTH = 80  # of the page, unless the terminal is wider
INDENT = 15  # columns before the name of a run


def show_status(command: SweepCommand) -> int:
    """Print the state of each run of a sweep, the time left, and the number of runs in each state; return 0."""
    command = sweep_to_look_at(command)
    runs, later = all_runs(command)
    states, estimates = read_states(runs, command.options["retries"])
    width = max(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns)
    for line in (*describe_sweep(command), ""):
        print("\n".join(textwrap.wrap(line, width, subsequent_indent="  ", break_on_hyphens=False)))
    for state in (DONE, WAITING, RUNNING, FAILED):  # what needs attention stands at the end
        for each in states:
            if each.state == state:
                print("\n".join(run_lines(each, width)))
    for line in (time_left(command, states, later, estimates), totals(states, later)):
        print("\n".join(textwrap.wrap(line, width, subsequent_indent="  ")))
    return 0


def describe_sweep(command: SweepCommand) -> list[str]:
    """Return the command line of a sweep, and whether a process executes it."""
    line = f"python run_sweep.py {shlex.join(command.argv)}"
    last = read_last_sweep(command.results_dir)
    if last is None:
        return [line]
    where = f"process {last.owner.process} on {last.owner.machine}"
    words = {True: f"{where} is executing it", False: "no process is executing it", None: f"started by {where}"}
    is_local = command.options["cluster"] == "local"
    state = words[last.is_running] if is_local else "its jobs were queued on Slurm"
    return [line, f"the last sweep in {command.results_dir}: {state}"]


def run_lines(state: RunState, width: int) -> list[str]:
    """Return the line of a run, with a name that is too long shortened in the middle, and the lines of its detail."""
    name, room = state.run.directory.path.name, width - INDENT
    if len(name) > room:
        name = f"{name[: room - 21]}…{name[-20:]}"
    detail = textwrap.wrap(state.detail, room, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False)
    return [f"{state.number:>5}  {state.state:<8}{name}", *(" " * INDENT + line for line in detail)]


def time_left(command: SweepCommand, states: Sequence[RunState], later: int, estimates: Estimates) -> str:
    """Return the line with the time left. later: the number of runs that wait for the choice of a rate."""
    ahead = [state for state in states if state.state in (RUNNING, WAITING)]
    if not ahead and not later:
        return "nothing is left to do" + "; --retry_failed runs the failed runs again" * has_failed(states)
    running = sum(state.state == RUNNING for state in ahead)
    jobs = command.options["jobs"] or (1 if command.options["cluster"] == "local" else len(ahead))
    at_once = max(1, running, min(len(ahead), jobs))
    seconds = [state.seconds_left for state in ahead]
    unknown = {part for state in ahead for part in state.unknown_parts}
    missing = sorted(unknown) + [f"{format_count(later, 'run')} at rates still to be chosen"] * bool(later)
    words = "time left: not known yet"
    if any(seconds):
        words = f"time left: about {describe_duration(max(max(seconds), sum(seconds) / at_once))}"
        words += f" and the time of {', '.join(missing)}" if missing else ""
        words += f", with {at_once} at once"
        words += f", estimated from {format_count(estimates.num_runs, 'finished run')}" if estimates.num_runs else ""
    return words if running else f"{words}; none is running: give the sweep's command again"


def has_failed(states: Sequence[RunState]) -> bool:
    return any(state.state == FAILED for state in states)


def totals(states: Sequence[RunState], later: int) -> str:
    """Return the number of runs in each state."""
    numbers = {name: sum(state.state == name for state in states) for name in (DONE, RUNNING, WAITING, FAILED)}
    numbers[WAITING] += later
    parts = ", ".join(f"{number} {name}" for name, number in numbers.items())
    return f"{format_count(len(states) + later, 'run')}: {parts}"

"""How a command ends: with one line on stderr and an exit code for everything that a user can cause."""

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from types import FrameType
from typing import NoReturn

from normstudy.cli.errors import RunError, UsageError, describe_os_error
from normstudy.cli.launcher import is_first_process, is_one_of_several
from normstudy.cli.outcome import report_outcome
from normstudy.cli.signals import PREEMPTIONS, Preempted, raise_stop, set_stop_handlers, stop_handlers

REQUEUE = 99  # Grid Engine runs a job with this exit code again; Slurm's RequeueExit and LSF's bsub -Q can do the same
INTERRUPTED = 130
SPIN_COUNT = "GOMP_SPINCOUNT"


def run_command(main: Callable[[], object]) -> NoReturn:
    """Run a script's main(), then end the process, with one line on stderr for an error that a user can cause.

    The exit code is 2 for wrong flags, 1 for a failure, 130 on Ctrl-C, and 99 on SIGTERM, SIGUSR1 or SIGUSR2.
    Otherwise it is the return value of main() if that is a whole number, and else 0.

    A script calls this at its top level. If a notebook, a console or a debugger runs the script in its own process,
    that process keeps its signal handlers and streams, and only SystemExit is raised.
    """
    is_guest = _is_guest(sys._getframe(1))
    with _escaping_streams():
        code = _call(main, is_guest)
    if is_guest:
        sys.exit(code)
    end_process(code)


def _is_guest(script: FrameType) -> bool:
    """Return whether another program, such as a notebook, runs this script; `script` is the frame of its top level."""
    below = script.f_back
    while below is not None and below.f_globals.get("__name__") == "runpy":  # python -m
        below = below.f_back
    return below is not None or bool(sys.flags.inspect)


@contextlib.contextmanager
def _escaping_streams() -> Iterator[None]:
    """A context in which stdout and stderr show characters that they cannot encode, and bytes in paths, as escapes."""
    streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, io.TextIOWrapper)]
    before = [stream.errors for stream in streams]
    for stream in streams:
        stream.reconfigure(errors="backslashreplace")
    try:
        yield
    finally:
        for stream, errors in zip(streams, before, strict=True):
            with contextlib.suppress(OSError, ValueError):  # of a stream that was closed meanwhile
                stream.reconfigure(errors=errors)


def _call(main: Callable[[], object], is_guest: bool) -> int:
    """Call main(), print one line for an error that a user can cause, and return the exit code."""
    script = sys.argv[0].rpartition("/")[2]
    code: object = 0
    kind, message = RunError.kind, None
    try:
        if not is_guest:
            set_stop_handlers(raise_stop)
        code = main()
        if sys.stdout is not None:
            sys.stdout.flush()
    except UsageError as error:
        code, kind, message = 2, error.kind, f"error: {error}"
    except RunError as error:
        code, kind, message = 1, error.kind, f"error: {error}"
    except ModuleNotFoundError as error:
        how = "run pip install -r requirements.txt with the pip of this Python"
        code, message = 1, f"error: the module {error.name} is not installed: {how}"
    except BrokenPipeError:  # for example after `| head`
        if not is_guest:  # Python would report the error once more at exit
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code, message = 1, "error: standard output was closed; run the same command again to continue"
    except OSError as error:
        code, message = 1, f"error: {describe_os_error(error)}"
    except KeyboardInterrupt as stop:
        kind = "stopped"
        code, message = _code_and_name(isinstance(stop, Preempted))
        message += f"; {stop}" if str(stop) else "; run the same command again to continue"
    except Exception as error:  # a bug: Python prints the traceback
        report_outcome(RunError.kind, "".join(traceback.format_exception_only(error)))
        raise
    if not is_guest:
        set_stop_handlers(signal.SIG_IGN)  # the exit code is decided
    if message is not None and (kind != "stopped" or is_first_process()):
        line = f"{script}: {' '.join(message.splitlines())}"
        report_outcome(kind, line)
        print(line, file=sys.stderr)
    return code if isinstance(code, int) else 0


def end_process(code: int) -> NoReturn:
    """End the process with an exit code.

    If it is one of several processes, it ends immediately, without the interpreter's clean-up, in which threads of gloo
    can abort the process (pytorch/pytorch #179291).
    """
    if not is_one_of_several():
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    os._exit(code)


@contextlib.contextmanager
def loading_modules() -> Iterator[None]:
    """A context in which a command imports its modules, after checking its flags so that --help is immediate.

    As no work has started, a signal ends the process immediately, without an exception, which an import could swallow.
    Outside run_command, as in a notebook, signal handlers stay as they are.
    """
    is_command = signal.getsignal(signal.SIGINT) is raise_stop
    with stop_handlers(_end_at_once) if is_command else contextlib.nullcontext(), _brief_spinning():
        yield


@contextlib.contextmanager
def _brief_spinning() -> Iterator[None]:
    """A context for the import of torch, whose threads (GNU OpenMP) then spin for microseconds while they wait.

    By default they spin for milliseconds, and thereby use up their session's share of cores that another session uses
    as well: beside one busy program, training then takes two to eight times as long as with brief spinning
    (benchmarks/busy_cores.py). The library reads the variable once, when it is loaded. A user's own setting stays.
    """
    if "OMP_WAIT_POLICY" in os.environ or SPIN_COUNT in os.environ:
        yield
        return
    os.environ[SPIN_COUNT] = "3000"
    try:
        yield
    finally:
        os.environ.pop(SPIN_COUNT, None)


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    code, message = _code_and_name(number in PREEMPTIONS)
    os.write(2, f"{message} before any work started\n".encode())
    os._exit(code)


def _code_and_name(is_preempted: bool) -> tuple[int, str]:
    return (REQUEUE, "stopped by a signal") if is_preempted else (INTERRUPTED, "interrupted")

"""How a command ends: one line on stderr and an exit code for whatever a user can cause."""

import contextlib
import io
import os
import signal
import sys
import traceback
from collections.abc import Callable
from types import FrameType
from typing import NoReturn

from normstudy.cli.errors import RunError, UsageError, describe_os_error
from normstudy.cli.outcome import report_outcome
from normstudy.cli.signals import PREEMPTIONS, Preempted, raise_stop, set_stop_handlers, stop_handlers

REQUEUE = 99  # tells Grid Engine to run the job again; Slurm's RequeueExit and LSF's bsub -Q can be told to
INTERRUPTED = 130


def run_command(main: Callable[[], object]) -> NoReturn:
    """Run a script's main(), then end the process: one line on stderr and the exit code for what a user can cause.

    The exit code is 2 for wrong flags, 1 for a failure, 130 on Ctrl-C, 99 on SIGTERM, SIGUSR1 or SIGUSR2, what main()
    returns if that is a whole number, and 0 otherwise.
    """
    script = sys.argv[0].rpartition("/")[2]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths that are no text
    code: object = 0
    kind, message = RunError.kind, None
    try:
        set_stop_handlers(raise_stop)
        code = main()
        sys.stdout.flush()
    except UsageError as error:
        code, kind, message = 2, error.kind, f"error: {error}"
    except RunError as error:
        code, kind, message = 1, error.kind, f"error: {error}"
    except ModuleNotFoundError as error:
        how = "pip install -r requirements.txt, with the pip of the Python that runs this"
        code, message = 1, f"error: Python has no {error.name}: {how}"
    except BrokenPipeError:  # as `| head` leaves it; Python itself would complain once more on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code, message = 1, "error: standard output was closed; the same command goes on"
    except OSError as error:
        code, message = 1, f"error: {describe_os_error(error)}"
    except KeyboardInterrupt as stop:
        kind = "stopped"
        code, message = _code_and_name(isinstance(stop, Preempted))
        message += f"; {stop}" if str(stop) else "; the same command goes on"
    except Exception as error:  # a bug: Python prints the traceback
        report_outcome(RunError.kind, "".join(traceback.format_exception_only(error)))
        raise
    set_stop_handlers(signal.SIG_IGN)  # the exit code is decided
    if message is not None and not (kind == "stopped" and os.environ.get("RANK", "0") != "0"):
        line = f"{script}: {' '.join(message.splitlines())}"
        report_outcome(kind, line)
        print(line, file=sys.stderr)
    end_process(code if isinstance(code, int) else 0)


def end_process(code: int) -> NoReturn:
    """End the process with an exit code.

    One of several processes ends at once, without the interpreter's clean-up, which the threads of gloo can abort
    (pytorch/pytorch #179291).
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def loading_modules() -> contextlib.AbstractContextManager[None]:
    """A block in which a command imports its modules, after its flags are checked: --help answers at once.

    No work has begun, so a signal ends the process at once; an exception could be swallowed inside an import. Outside
    run_command, as in a notebook, signals stay as they are.
    """
    is_command = signal.getsignal(signal.SIGINT) is raise_stop
    return stop_handlers(_end_at_once) if is_command else contextlib.nullcontext()


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    code, message = _code_and_name(number in PREEMPTIONS)
    os.write(2, f"{message} before anything began\n".encode())
    os._exit(code)


def _code_and_name(is_preempted: bool) -> tuple[int, str]:
    return (REQUEUE, "stopped by a signal") if is_preempted else (INTERRUPTED, "interrupted")

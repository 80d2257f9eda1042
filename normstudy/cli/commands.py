"""How a command ends: with one line on stderr and an exit code for everything that a user can cause."""

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

REQUEUE = 99  # Grid Engine runs a job with this exit code again; Slurm's RequeueExit and LSF's bsub -Q can do the same
INTERRUPTED = 130


def run_command(main: Callable[[], object]) -> NoReturn:
    """Run a script's main(), then end the process, with one line on stderr for an error that a user can cause.

    The exit code is 2 for wrong flags, 1 for a failure, 130 on Ctrl-C, and 99 on SIGTERM, SIGUSR1 or SIGUSR2.
    Otherwise it is the return value of main() if that is a whole number, and else 0.
    """
    script = sys.argv[0].rpartition("/")[2]
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")  # for paths that are not valid text
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
        how = "run pip install -r requirements.txt with the pip of this Python"
        code, message = 1, f"error: the module {error.name} is not installed: {how}"
    except BrokenPipeError:  # for example after `| head`; without dup2, Python would report the error once more at exit
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
    set_stop_handlers(signal.SIG_IGN)  # the exit code is decided
    if message is not None and not (kind == "stopped" and os.environ.get("RANK", "0") != "0"):
        line = f"{script}: {' '.join(message.splitlines())}"
        report_outcome(kind, line)
        print(line, file=sys.stderr)
    end_process(code if isinstance(code, int) else 0)


def end_process(code: int) -> NoReturn:
    """End the process with an exit code.

    If it is one of several processes, it ends immediately, without the interpreter's clean-up, in which threads of gloo
    can abort the process (pytorch/pytorch #179291).
    """
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def loading_modules() -> contextlib.AbstractContextManager[None]:
    """Return a context in which a command imports its modules, after checking its flags so that --help is immediate.

    As no work has started, a signal ends the process immediately, without an exception, which an import could swallow.
    Outside run_command, as in a notebook, signal handlers stay as they are.
    """
    is_command = signal.getsignal(signal.SIGINT) is raise_stop
    return stop_handlers(_end_at_once) if is_command else contextlib.nullcontext()


def _end_at_once(number: int, frame: FrameType | None) -> NoReturn:
    code, message = _code_and_name(number in PREEMPTIONS)
    os.write(2, f"{message} before any work started\n".encode())
    os._exit(code)


def _code_and_name(is_preempted: bool) -> tuple[int, str]:
    return (REQUEUE, "stopped by a signal") if is_preempted else (INTERRUPTED, "interrupted")

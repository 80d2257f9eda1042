"""What a user can cause: said in one line on stderr, with an exit code, and without a traceback."""

import contextlib
import errno
import os
import signal
import sys

PREEMPTIONS = [getattr(signal, name) for name in ("SIGTERM", "SIGUSR1", "SIGUSR2") if hasattr(signal, name)]
REQUEUE = 99  # tells Grid Engine to run the job again; Slurm's RequeueExit and LSF's bsub -Q can be told to
INTERRUPTED = 130


class UsageError(Exception):
    """Flags that are wrong or cannot be honoured together (exit code 2)."""


class RunError(Exception):
    """What a user can cause and mend, said in one line (exit code 1)."""


class Preempted(KeyboardInterrupt):
    """SIGTERM, SIGUSR1 or SIGUSR2: a scheduler wants the machine back (exit code REQUEUE)."""


def run_command(command):
    """Runs a script's main(): one line on stderr and the exit code for whatever a user can cause.

    2 for flags, 1 for a failure, 130 on Ctrl-C, 99 on SIGTERM, SIGUSR1 or SIGUSR2, what main() returns where that is a
    whole number, 0 otherwise.
    """
    for number in (signal.SIGINT, *PREEMPTIONS):
        signal.signal(number, _raise_stop)
    script = sys.argv[0].rpartition("/")[2]
    sys.stdout.reconfigure(errors="backslashreplace")  # for paths that are no text
    try:
        code, message = command(), None
        sys.stdout.flush()
    except UsageError as error:
        code, message = 2, f"error: {error}"
    except RunError as error:
        code, message = 1, f"error: {error}"
    except BrokenPipeError:  # as `| head` leaves it; Python itself would complain once more on its way out
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        code, message = 1, "error: standard output was closed; the same command goes on"
    except OSError as error:
        code, message = 1, f"error: {describe_os_error(error)}"
    except KeyboardInterrupt as stop:
        code, message = _code_and_name(isinstance(stop, Preempted))
        message += f"; {stop}" if str(stop) else "; the same command goes on"
    for number in (signal.SIGINT, *PREEMPTIONS):
        signal.signal(number, signal.SIG_IGN)  # what is done is done: the exit code says how
    if message is not None and not (code in (INTERRUPTED, REQUEUE) and os.environ.get("RANK", "0") != "0"):
        print(f"{script}: {' '.join(message.splitlines())}", file=sys.stderr)
    end_process(code if isinstance(code, int) else 0)


def end_process(code):
    """Ends with an exit code; one of several processes ends at once, without the interpreter's way out, in which what
    gloo's threads still hold can abort it (pytorch/pytorch #179291)."""
    if os.environ.get("WORLD_SIZE", "1") == "1":
        sys.exit(code)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def describe_os_error(error):
    """What an OSError says, of which file, and how to go on, in one line."""
    where = f" ({error.filename})" if error.filename else ""
    hint = ""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        hint = "; nothing written before is lost: free some space, and the same command goes on"
    return f"{error.strerror or error}{where}{hint}"


def start_script():
    """While modules load there is nothing to save and nobody to tell: Ctrl-C and the like end the process at once. A
    package that is missing is said in one line."""

    def end_with_trace_or_line(kind, error, trace):
        if isinstance(error, ModuleNotFoundError):
            script = sys.argv[0].rpartition("/")[2]
            how = "pip install -r requirements.txt, with the pip of the Python that runs this"
            print(f"{script}: error: Python has no {error.name}: {how}", file=sys.stderr)
        else:
            sys.__excepthook__(kind, error, trace)

    sys.excepthook = end_with_trace_or_line

    def end(number, frame):
        code, message = _code_and_name(number in PREEMPTIONS)
        os.write(2, f"{message} before anything began\n".encode())
        os._exit(code)

    for number in (signal.SIGINT, *PREEMPTIONS):
        signal.signal(number, end)


def _code_and_name(is_preempted):
    return (REQUEUE, "stopped by a signal") if is_preempted else (INTERRUPTED, "interrupted")


def _raise_stop(number, frame):
    raise Preempted if number in PREEMPTIONS else KeyboardInterrupt


class SafePoints:
    """Signals that have come and wait for a moment at which stopping loses nothing."""

    def __init__(self):
        self.signals = []

    def signal(self):
        """The number of the first signal that has come, or 0."""
        return self.signals[0] if self.signals else 0

    def check(self, number=None):
        """Raises KeyboardInterrupt, or Preempted, where a signal has come: the given one, which 0 says is none, or that
        of this process."""
        number = self.signal() if number is None else number
        if number:
            _raise_stop(number, None)

    def note(self, number, frame):
        """The handler. A second Ctrl-C does not wait; schedulers, which may repeat themselves, do."""
        if self.signals and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signals.append(number)


@contextlib.contextmanager
def stops_at_safe_points():
    """Gives the SafePoints of a block, within which signals wait; the last one is its end.

    What strikes while PyTorch calls back into Python can be swallowed there, or end the process.
    """
    points = SafePoints()
    previous = {}
    try:
        for number in (signal.SIGINT, *PREEMPTIONS):
            previous[number] = signal.signal(number, points.note)
    except ValueError:  # not in the main thread, where no signal arrives
        yield points
        return
    try:
        yield points
        points.check()
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)

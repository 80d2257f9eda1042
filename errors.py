"""What a user can cause: said in one line on stderr, with an exit code, and without a traceback."""

import contextlib
import signal
import sys


class UsageError(Exception):
    """Flags that are wrong or cannot be honoured together (exit code 2)."""


class RunError(Exception):
    """What a user can cause and mend, said in one line (exit code 1)."""


def run_command(command):
    """Runs a script's main(): one line on stderr and the exit code for whatever a user can cause.

    2 for flags, 1 for a failure, 130 on Ctrl-C, what main() returns where that is a whole number, 0 otherwise.
    """
    script = sys.argv[0].rpartition("/")[2]
    try:
        code = command()
    except UsageError as error:
        code, message = 2, str(error)
    except RunError as error:
        code, message = 1, str(error)
    except OSError as error:
        where = f" ({error.filename})" if error.filename else ""
        code, message = 1, f"{error.strerror or error}{where}"
    except KeyboardInterrupt as interrupt:
        code, message = 130, f"interrupted{'; ' if str(interrupt) else ''}{interrupt}"
    else:
        sys.exit(code if isinstance(code, int) else 0)
    print(f"{script}: error: {message}" if code != 130 else f"{script}: {message}", file=sys.stderr)
    sys.exit(code)


@contextlib.contextmanager
def interrupts_at_safe_points():
    """Gives a function that raises KeyboardInterrupt where Ctrl-C was pressed; a second Ctrl-C does not wait for it.

    An interrupt that strikes while PyTorch calls back into Python can be swallowed there, or end the process.
    """
    pending = []

    def check():
        if pending:
            raise KeyboardInterrupt

    def interrupt(number, frame):
        check()
        pending.append(number)

    try:
        previous = signal.signal(signal.SIGINT, interrupt)
    except ValueError:  # not in the main thread, where no signal arrives
        yield check
        return
    try:
        yield check
        check()
    finally:
        signal.signal(signal.SIGINT, previous)

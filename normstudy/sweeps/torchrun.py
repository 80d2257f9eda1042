"""torchrun, with an exit code that says which signal ended a process: 137 (128 + 9) after SIGKILL, as shells have it.

    python -m normstudy.sweeps.torchrun --standalone --nproc_per_node=2 main.py ...

torchrun itself ends with 1 in this case, and only its log has the reason.
"""

import sys
from collections.abc import Sequence


def main(argv: Sequence[str] | None = None) -> int:
    """Run torchrun on a command line; return the exit code of the process that failed first, or 0."""
    from torch.distributed import run
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

    try:
        run.main(argv)
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return 128 - failure.exitcode if failure.exitcode < 0 else failure.exitcode
    return 0


if __name__ == "__main__":
    sys.exit(main())

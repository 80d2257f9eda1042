"""Why parts of a run failed, and how often they were tried: the lines of logs/<run>.failed.

A line is such as "training, attempt 2: <reason>" or "hessian, attempt 1, not repeated: <reason>".
"""

import contextlib
import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from normstudy.storage import write_bytes
from normstudy.sweeps.grid import SweepRun
from normstudy.sweeps.run_parts import TRAINING, failure_path, is_trained, missing_parts


class Failure(NamedTuple):
    """The last failure of one part of a run.

    attempts: how often the part has failed. is_certain: whether the next attempt would fail in the same way.
    """

    reason: str
    attempts: int = 1
    is_certain: bool = False

    def is_final(self, retries: int) -> bool:
        """Return whether the part is tried again only on request."""
        return self.is_certain or self.attempts > retries


def read_failures(run: SweepRun) -> dict[str, Failure]:
    """Return {part: its failure}. Failures of parts that have succeeded since, in any way, are left out."""
    failures = _read(run)
    missing = missing_parts(run) if failures else []
    found = {part: failure for part, failure in failures.items() if part in missing}
    if TRAINING in failures and missing and not _has_new_outputs(run):
        found[TRAINING] = failures[TRAINING]
    return found


def _has_new_outputs(run: SweepRun) -> bool:
    """Return whether a trained run has files that are newer than its failure, such as a picture."""
    directory = run.directory
    outputs = (
        directory.summary,
        directory.metrics,
        directory.curves,
        directory.probes_picture,
        directory.probes_summary,
    )
    with contextlib.suppress(FileNotFoundError):
        noted = failure_path(run).stat().st_mtime_ns
        return is_trained(run) and any(path.exists() and path.stat().st_mtime_ns > noted for path in outputs)
    return False


def note_failure(run: SweepRun, part: str, reason: str, is_certain: bool = False) -> Failure:
    """Add a failure of a part to the run's file; return it with its number of attempts."""
    earlier = _read(run).get(part)
    failure = Failure(reason, earlier.attempts + 1 if earlier else 1, is_certain)
    _write(run, {**read_failures(run), part: failure})
    return failure


def note_success(run: SweepRun, part: str) -> None:
    """Remove a part's failure from the run's file, if it has one."""
    failures = _read(run)
    if failures.pop(part, None):
        _write(run, failures)


def forget_failures(runs: Iterable[SweepRun]) -> None:
    """Remove the failures of runs, so that their attempts are counted anew."""
    for run in runs:
        failure_path(run).unlink(missing_ok=True)


def describe_failures(failures: Mapping[str, Failure]) -> str:
    """Return the reasons of failures in one line; those of measurements begin with their names."""
    return "; ".join(reason if part == TRAINING else f"{part}: {reason}" for part, (reason, *_) in failures.items())


def _read(run: SweepRun) -> dict[str, Failure]:
    """Return {part: failure} of the run's file. A line of another form is the reason of a training."""
    failures = {}
    with contextlib.suppress(FileNotFoundError):
        for line in failure_path(run).read_text(encoding="utf-8", errors="replace").splitlines():
            found = re.fullmatch(r"([\w-]+), attempt (\d+)(, not repeated)?: (.*)", line)
            if found:
                failures[found[1]] = Failure(found[4], int(found[2]), found[3] is not None)
            elif line:
                failures[TRAINING] = Failure(line)
    return failures


def _write(run: SweepRun, failures: Mapping[str, Failure]) -> None:
    lines = [
        f"{part}, attempt {attempts}{', not repeated' * is_certain}: {reason}\n"
        for part, (reason, attempts, is_certain) in failures.items()
    ]
    if lines:
        write_bytes(failure_path(run), "".join(lines).encode(errors="backslashreplace"))
    else:
        failure_path(run).unlink(missing_ok=True)

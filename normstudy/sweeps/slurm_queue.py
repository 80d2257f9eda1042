"""What Slurm's queue says about the runs of a results folder."""

import json
import subprocess
from pathlib import Path

from normstudy.cli import UsageError


def jobs_path(results_dir: Path, job: str) -> Path:
    """Return the path of the file that lists the runs of each task of a job array."""
    return results_dir / "logs" / f"slurm-{job}.json"


def submitted_runs(results_dir: Path) -> set[str]:
    """Return the names of all runs in results_dir that were ever submitted to Slurm."""
    paths = (results_dir / "logs").glob("slurm-*.json")
    return {name for path in paths for task in json.loads(path.read_text(encoding="utf-8")) for name in task}


def queued_runs(results_dir: Path) -> dict[str, bool] | None:
    """Return {run name: is running} of the runs in results_dir whose jobs are queued or running.

    The result is None if Slurm does not answer. Raises UsageError without squeue.
    """
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %t"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except FileNotFoundError:
        raise UsageError("--cluster=slurm needs squeue, which is not on this machine") from None
    except subprocess.CalledProcessError:
        return None
    found: dict[str, bool] = {}
    for line in lines:
        job, state = line.split()
        array, _, task = job.partition("_")
        path = jobs_path(results_dir, array)
        if path.exists():
            is_running = state not in ("PD", "CF")
            for name in json.loads(path.read_text(encoding="utf-8"))[int(task or 0)]:
                found[name] = is_running or found.get(name, False)
    return found

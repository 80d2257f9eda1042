"""Sweeps on a Slurm cluster, through submitit: one job array, whose jobs write all results themselves.

A job whose time is up, or that is preempted, saves the state of its run and is queued again.
"""

from __future__ import annotations

import contextlib
import io
import json
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from normstudy.cli import RunError, UsageError, progress_bar
from normstudy.storage import write_bytes
from normstudy.sweeps.grid import SweepRun
from normstudy.sweeps.run_status import failure_path, runs_by_status
from normstudy.sweeps.workers import FAILED, PROJECT, STOPPED, Worker, thread_environment

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

MOST_TASKS = 1000  # maximum tasks of an array, by Slurm's default MaxArraySize; with more runs, a task executes several
MOST_TIMEOUTS = 1000  # maximum number of timeouts after which a job is queued again
LOOK_SECONDS = 3.0  # interval at which the queue and the files of the runs are read


class JobRuns:
    """The runs of one job. submitit calls it on the node, and it executes them in their order.

    options: the sweep's own flags.
    """

    def __init__(self, runs: Iterable[SweepRun], options: Mapping[str, Any]) -> None:
        self.runs, self.options = list(runs), options

    def __call__(self) -> None:
        self.worker = Worker(self.options, is_detached=False)
        signal.signal(signal.SIGTERM, lambda number, frame: self.worker.stop())
        failed = []
        for run in list(self.runs):
            result, reason = self.worker.work_off(run, thread_environment(self.options["processes"]))
            if result == STOPPED:
                sys.exit(99)
            if result == FAILED:
                failed.append(f"{run.directory.path.name}: {reason}")
            self.runs.remove(run)
        if failed:
            raise RunError("; ".join(failed))

    def checkpoint(self) -> DelayedSubmission:
        """Make the current run save its state; return the rest of the job, which submitit queues again."""
        import submitit

        self.worker.stop()
        self.worker.wait()
        return submitit.helpers.DelayedSubmission(JobRuns(self.runs, self.options))


def submit_jobs(runs: Sequence[SweepRun], options: Mapping[str, Any]) -> str:
    """Queue jobs for the runs; return the ID of their job array.

    Raises UsageError without sbatch or for malformed --slurm_flags, and RunError if Slurm rejects the jobs.
    """
    import submitit

    if shutil.which("sbatch") is None:
        raise UsageError("--cluster=slurm needs sbatch, which is not on this machine")
    logs = runs[0].directory.path.parent / "logs"
    tasks = min(len(runs), MOST_TASKS)
    shares = [runs[index::tasks] for index in range(tasks)]
    executor = submitit.AutoExecutor(logs / "slurm", cluster="slurm", slurm_max_num_timeout=MOST_TIMEOUTS)
    parameters = {
        "time": options["slurm_time"],
        "partition": options["slurm_partition"],
        "account": options["slurm_account"],
        "gpus_per_node": options["slurm_gpus"],
        "cpus_per_task": options["slurm_cpus"],
        "mem": options["slurm_mem"],
        "array_parallelism": options["jobs"] or tasks,
        "stderr_to_stdout": True,
        "setup": [f"export PYTHONPATH={shlex.quote(str(PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}"],
        "additional_parameters": {"requeue": True} | _parse_flags(options["slurm_flags"]),
    }
    executor.update_parameters(
        name="normalization", **{f"slurm_{name}": value for name, value in parameters.items() if value is not None}
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # the error it prints is raised below
            jobs = [executor.submit(JobRuns(share, options)) for share in shares]
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, OSError) as error:
        words = [line for line in str(error).splitlines() if "sbatch: error" in line] or str(error).splitlines()
        raise RunError(f"Slurm rejected the jobs: {words[0].removeprefix('sbatch: error: ')}") from None
    array = jobs[0].job_id.partition("_")[0]
    names = [[run.directory.path.name for run in share] for share in shares]
    write_bytes(logs / f"slurm-{array}.json", json.dumps(names).encode())
    return array


def _parse_flags(text: str) -> dict[str, str | bool]:
    """Return sbatch flags as {name: value}. Raises UsageError for words of another form."""
    flags: dict[str, str | bool] = {}
    for word in shlex.split(text):
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UsageError(f"--slurm_flags: {word!r} is not of the form --name=value")
        flags[name] = value or True
    return flags


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
    active: dict[str, dict[str, bool]] = {}  # {array: {task: is running}}
    for line in lines:
        job, state = line.split()
        array, _, task = job.partition("_")
        active.setdefault(array, {})[task] = state not in ("PD", "CF")
    found: dict[str, bool] = {}
    for array, tasks in active.items():
        path = results_dir / "logs" / f"slurm-{array}.json"
        if path.exists():
            names = json.loads(path.read_text())
            for task, is_running in tasks.items():
                found |= dict.fromkeys(names[int(task or 0)], is_running)
    return found


def run_on_slurm(
    runs: Sequence[SweepRun], ahead: Sequence[SweepRun], options: Mapping[str, Any], results_dir: Path
) -> None:
    """Queue the runs in `ahead`; with --wait, follow all `runs` until none of them is in the queue."""
    for run in ahead:
        failure_path(run).unlink(missing_ok=True)
    if ahead:
        array = submit_jobs(ahead, options)
        print(f"queued {len(ahead)} runs as job array {array}; its output goes to {results_dir / 'logs'}", flush=True)
    if options["wait"]:
        try:
            follow_jobs(runs, options, results_dir)
        except KeyboardInterrupt as stop:
            raise type(stop)(
                "the jobs continue: run the same command again to follow them, or scancel to end them"
            ) from None


def follow_jobs(runs: Sequence[SweepRun], options: Mapping[str, Any], results_dir: Path) -> None:
    """Show the progress of the jobs until all of these runs have left the queue."""
    names = {run.directory.path.name for run in runs}
    by_status = runs_by_status(runs)
    said = {name: {run.directory.path.name for run in by_status[name]} for name in ("done", "failed")}
    with progress_bar(len(runs), "sweep", len(said["done"] | said["failed"]), unit="run") as bar:
        while True:
            queued = queued_runs(results_dir)
            by_status = runs_by_status(runs, queued or {})
            for name in said:
                for run in by_status[name]:
                    if run.directory.path.name not in said[name]:
                        said[name].add(run.directory.path.name)
                        bar.write(f"{name}: {run.directory.path.name}")
                        bar.update()
            running = sum((queued or {}).get(run.directory.path.name, False) for run in by_status["queued"])
            waiting = len(by_status["queued"]) - running
            bar.set_postfix_str(f"{running} running, {waiting} queued, {len(by_status['failed'])} failed")
            if queued is not None and names.isdisjoint(queued):
                return
            time.sleep(LOOK_SECONDS)

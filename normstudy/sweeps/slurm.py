"""Sweeps on a Slurm cluster, through submitit: one job array trains, and one measures, each task after its training.

The jobs write all results themselves. A job whose time is up, or that is preempted, saves the state of its run and is
queued again; its measuring job then waits on.
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
from typing import TYPE_CHECKING, Any

from normstudy.cli import RunError, UsageError, progress_bar
from normstudy.storage import write_bytes
from normstudy.sweeps.failures import describe_failures, read_failures
from normstudy.sweeps.flag_values import sbatch_flags
from normstudy.sweeps.grid import SweepRun
from normstudy.sweeps.run_parts import is_trained
from normstudy.sweeps.run_status import runs_by_status
from normstudy.sweeps.slurm_queue import jobs_path, queued_runs
from normstudy.sweeps.workers import FAILED, PROJECT, STOPPED, Worker, thread_environment

if TYPE_CHECKING:
    from submitit.core.utils import DelayedSubmission

MOST_TASKS = 1000  # maximum tasks of an array, by Slurm's default MaxArraySize; with more runs, a task executes several
MOST_TIMEOUTS = 1000  # maximum number of timeouts after which a job is queued again
LOOK_SECONDS = 3.0  # interval at which the queue and the files of the runs are read
SAVING_SECONDS = 90  # time between the signal to save the state and the time limit of a job …
SAVING_SHARE = 0.25  # … or this share of a short time limit; Slurm may send the signal a minute earlier


class JobRuns:
    """The runs of one job, which trains or measures them in their order. submitit calls it on the node.

    options: the sweep's own flags. is_training: whether the job trains or measures. seconds: {run: the time it has
    taken in earlier starts of this job}. has_succeeded: whether the job has finished a run already.
    """

    def __init__(
        self,
        runs: Iterable[SweepRun],
        options: Mapping[str, Any],
        is_training: bool,
        seconds: Mapping[str, float] | None = None,
        has_succeeded: bool = False,
    ) -> None:
        self.runs, self.options, self.is_training = list(runs), options, is_training
        self.seconds, self.has_succeeded = dict(seconds or {}), has_succeeded
        self.worker: Worker | None = None  # exists on the node only, as it cannot be pickled
        self.begun = 0.0

    def __call__(self) -> None:
        worker = self.worker = Worker(self.options, is_detached=False)
        signal.signal(signal.SIGTERM, lambda number, frame: worker.stop())
        failed = []
        for run in list(self.runs):
            reason = self.work_off(run, worker) if self.is_training or is_trained(run) else None
            if reason is None:
                self.has_succeeded = True
            else:
                failed.append(f"{run.directory.path.name}: {reason}")
            self.runs.remove(run)
        if failed and not self.has_succeeded:  # else the measurements of the other runs would not be started
            raise RunError("; ".join(failed))

    def work_off(self, run: SweepRun, worker: Worker) -> str | None:
        """Execute one run, again after a failure; return why it failed, or None. Ends the process if it is stopped."""
        self.begun = time.monotonic()
        while True:
            result = worker.work_off(
                run,
                thread_environment(self.options["processes"]),
                has_training=self.is_training,
                has_measuring=not self.is_training,
                seconds=self.seconds.get(run.directory.path.name, 0.0),
            )
            if result.kind == STOPPED:
                sys.exit(99)
            if result.kind != FAILED or result.is_final:
                return result.reason if result.kind == FAILED else None

    def checkpoint(self) -> DelayedSubmission:
        """Make the current run save its state; return the rest of the job, which submitit queues again."""
        import submitit

        if self.worker is not None:
            self.worker.stop()
            self.worker.wait()
            if self.runs:
                name = self.runs[0].directory.path.name
                self.seconds[name] = self.seconds.get(name, 0.0) + time.monotonic() - self.begun
        rest = JobRuns(self.runs, self.options, self.is_training, self.seconds, self.has_succeeded)
        return submitit.helpers.DelayedSubmission(rest)


class Cluster:
    """Executes runs as jobs on Slurm. options: the sweep's own flags."""

    is_stopped = False

    def __init__(self, options: Mapping[str, Any]) -> None:
        self.options = options

    def work(self, runs: Sequence[SweepRun], ahead: Sequence[SweepRun]) -> None:
        """Queue the runs in `ahead`; with --wait, follow all `runs` until none of them is in the queue.

        Raises UsageError without sbatch, and RunError if Slurm rejects the jobs.
        """
        if ahead:
            self.submit(ahead)
        if self.options["wait"]:
            try:
                follow_jobs(runs, self.options)
            except KeyboardInterrupt as stop:
                raise type(stop)(
                    "the jobs continue: run the same command again to follow them, or scancel to end them"
                ) from None

    def submit(self, ahead: Sequence[SweepRun]) -> None:
        """Queue one array of jobs for the trainings, and one for the measurements, which depend on them."""
        untrained = [run for run in ahead if not is_trained(run)]
        trained = [run for run in ahead if is_trained(run)]
        logs = ahead[0].directory.log.parent
        if untrained:
            array = submit_jobs(untrained, self.options, is_training=True)
            print(f"queued {len(untrained)} runs as job array {array}; its output goes to {logs}", flush=True)
            if any(run.measurements for run in untrained):
                array = submit_jobs(untrained, self.options, is_training=False, after=array)
                print(f"queued their measurements as job array {array}, each after its training", flush=True)
        if trained:
            array = submit_jobs(trained, self.options, is_training=False)
            print(f"queued the measurements of {len(trained)} trained runs as job array {array}", flush=True)


def submit_jobs(
    runs: Sequence[SweepRun], options: Mapping[str, Any], is_training: bool, after: str | None = None
) -> str:
    """Queue jobs that train or measure the runs; return the ID of their job array.

    after: a job array that trains the same runs. Each job begins when the array's job for its runs has succeeded, and
    is removed from the queue if that job has failed. Raises UsageError without sbatch, and RunError if Slurm rejects
    the jobs.
    """
    import submitit

    if shutil.which("sbatch") is None:
        raise UsageError("--cluster=slurm needs sbatch, which is not on this machine")
    results_dir = runs[0].directory.path.parent
    tasks = min(len(runs), MOST_TASKS)
    shares = [runs[index::tasks] for index in range(tasks)]
    executor = submitit.AutoExecutor(
        results_dir / "logs" / "slurm", cluster="slurm", slurm_max_num_timeout=MOST_TIMEOUTS
    )
    dependency: dict[str, str | bool] = {}
    if after is not None:
        dependency["dependency"] = f"{'aftercorr' if tasks > 1 else 'afterok'}:{after}"
        dependency["kill-on-invalid-dep"] = "yes"
    parameters = {
        "time": options["slurm_time"],
        "signal_delay_s": min(SAVING_SECONDS, int(60 * options["slurm_time"] * SAVING_SHARE)),
        "partition": options["slurm_partition"],
        "account": options["slurm_account"],
        "gpus_per_node": options["slurm_gpus"],
        "cpus_per_task": options["slurm_cpus"],
        "mem": options["slurm_mem"],
        "array_parallelism": options["jobs"] or tasks,
        "stderr_to_stdout": True,
        "setup": [f"export PYTHONPATH={shlex.quote(str(PROJECT))}${{PYTHONPATH:+:$PYTHONPATH}}"],
        "additional_parameters": {"requeue": True} | sbatch_flags(options["slurm_flags"]) | dependency,
    }
    executor.update_parameters(
        name="training" if is_training else "measuring",
        **{f"slurm_{name}": value for name, value in parameters.items() if value is not None},
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # the error it prints is raised below
            jobs = [executor.submit(JobRuns(share, options, is_training)) for share in shares]
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, OSError) as error:
        words = [line for line in str(error).splitlines() if "sbatch: error" in line] or str(error).splitlines()
        raise RunError(f"Slurm rejected the jobs: {words[0].removeprefix('sbatch: error: ')}") from None
    array = jobs[0].job_id.partition("_")[0]
    names = [[run.directory.path.name for run in share] for share in shares]
    write_bytes(jobs_path(results_dir, array), json.dumps(names).encode())
    return str(array)


def follow_jobs(runs: Sequence[SweepRun], options: Mapping[str, Any]) -> None:
    """Show the progress of the jobs until all of these runs have left the queue."""
    results_dir, retries = runs[0].directory.path.parent, options["retries"]
    names = {run.directory.path.name for run in runs}
    by_status = runs_by_status(runs, retries)
    said = {name: {run.directory.path.name for run in by_status[name]} for name in ("done", "failed")}
    with progress_bar(len(runs), "sweep", len(said["done"] | said["failed"]), unit="run") as bar:
        while True:
            queued = queued_runs(results_dir)
            by_status = runs_by_status(runs, retries, queued or {})
            for name in said:
                for run in by_status[name]:
                    if run.directory.path.name not in said[name]:
                        said[name].add(run.directory.path.name)
                        reason = f": {describe_failures(read_failures(run))}" if name == "failed" else ""
                        bar.write(f"{name}: {run.directory.path.name}{reason}")
                        bar.update()
            running = sum((queued or {}).get(run.directory.path.name, False) for run in by_status["queued"])
            waiting = len(by_status["queued"]) - running
            bar.set_postfix_str(f"{running} running, {waiting} queued, {len(by_status['failed'])} failed")
            if queued is not None and names.isdisjoint(queued):
                return
            time.sleep(LOOK_SECONDS)

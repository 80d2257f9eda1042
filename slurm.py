"""Sweeps on a Slurm cluster, through submitit: one job array, whose jobs write everything themselves.

A job that is told that its time is up, or that it is preempted, saves the state of its run, and is queued again.
"""

import contextlib
import io
import json
import shlex
import shutil
import signal
import subprocess
import sys

from errors import RunError, UsageError
from files import write_bytes
from workers import FAILED, HERE, STOPPED, Worker, threads

MOST_TASKS = 1000  # of an array, by Slurm's default MaxArraySize; each task works off several runs where there are more
MOST_TIMEOUTS = 1000  # after which a job is not queued again


class Share:
    """The runs that one job works off, in their order: what submitit calls on the node."""

    def __init__(self, runs, own):
        self.runs, self.own = list(runs), own

    def __call__(self):
        self.worker = Worker(self.own, is_detached=False)
        signal.signal(signal.SIGTERM, lambda number, frame: self.worker.stop())
        failed = []
        for run in list(self.runs):
            kind, reason = self.worker.work_off(run, threads(self.own["processes"]))
            if kind == STOPPED:
                sys.exit(99)
            if kind == FAILED:
                failed.append(f"{run.directory.path.name}: {reason}")
            self.runs.remove(run)
        if failed:
            raise RunError("; ".join(failed))

    def checkpoint(self):
        """Has the run at work save its state, and gives submitit what is left to do."""
        import submitit

        self.worker.stop()
        self.worker.wait()
        return submitit.helpers.DelayedSubmission(Share(self.runs, self.own))


def submit(runs, own):
    """Queues jobs that work off the runs, and returns the number of the array. Raises UsageError, RunError."""
    import submitit

    if shutil.which("sbatch") is None:
        raise UsageError("--cluster=slurm needs sbatch, which is not on this machine")
    logs = runs[0].directory.path.parent / "logs"
    tasks = min(len(runs), MOST_TASKS)
    shares = [runs[index::tasks] for index in range(tasks)]
    executor = submitit.AutoExecutor(logs / "slurm", cluster="slurm", slurm_max_num_timeout=MOST_TIMEOUTS)
    parameters = {
        "time": own["slurm_time"],
        "partition": own["slurm_partition"],
        "account": own["slurm_account"],
        "gpus_per_node": own["slurm_gpus"],
        "cpus_per_task": own["slurm_cpus"],
        "mem": own["slurm_mem"],
        "array_parallelism": own["jobs"] or tasks,
        "stderr_to_stdout": True,
        "setup": [f"export PYTHONPATH={shlex.quote(str(HERE))}${{PYTHONPATH:+:$PYTHONPATH}}"],
        "additional_parameters": {"requeue": True} | _parse_flags(own["slurm_flags"]),
    }
    executor.update_parameters(
        name="normalization", **{f"slurm_{name}": value for name, value in parameters.items() if value is not None}
    )
    try:
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():  # what sbatch complains of is said below
            jobs = [executor.submit(Share(share, own)) for share in shares]
    except (submitit.core.utils.FailedJobError, subprocess.CalledProcessError, OSError) as error:
        words = [line for line in str(error).splitlines() if "sbatch: error" in line] or str(error).splitlines()
        raise RunError(f"Slurm did not take the jobs: {words[0].removeprefix('sbatch: error: ')}") from None
    array = jobs[0].job_id.partition("_")[0]
    names = [[run.directory.path.name for run in share] for share in shares]
    write_bytes(logs / f"slurm-{array}.json", json.dumps(names).encode())
    return array


def _parse_flags(text):
    """{name: value} of flags of sbatch. Raises UsageError."""
    flags = {}
    for word in shlex.split(text):
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--"):
            raise UsageError(f"--slurm_flags: {word!r} is not of the form --name=value")
        flags[name] = value or True
    return flags


def queue(results_dir):
    """{run name: is running} of the runs in results_dir whose jobs are queued or running; None where Slurm does not
    answer. Raises UsageError where there is no Slurm."""
    command = ["squeue", "--me", "--noheader", "--array", "--format=%i %t"]
    try:
        lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    except FileNotFoundError:
        raise UsageError("--cluster=slurm needs squeue, which is not on this machine") from None
    except subprocess.CalledProcessError:
        return None
    active = {}
    for line in lines:
        job, state = line.split()
        array, _, task = job.partition("_")
        active.setdefault(array, {})[task] = state not in ("PD", "CF")
    found = {}
    for array, tasks in active.items():
        path = results_dir / "logs" / f"slurm-{array}.json"
        if path.exists():
            names = json.loads(path.read_text())
            for task, is_running in tasks.items():
                found |= dict.fromkeys(names[int(task or 0)], is_running)
    return found

"""A folder with a main.py and a run_class_similarity.py that train and measure nothing, for tests of sweeps.

What they do with a run is read from plan.json, {seed: one of the words below}, each time they start.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
EPOCHS = 4
MAIN = """
import json, os, signal, sys, time
from pathlib import Path
from config import parse_args
from normstudy.cli import RunError, UsageError, run_command
from normstudy.storage import METRICS_COLUMNS, directory_of, write_csv, write_json

HERE = Path(__file__).parent

def main():
    settings = parse_args(sys.argv[1:])
    run = directory_of(settings)
    if run.summary.exists():
        return
    plan = json.loads((HERE / "plan.json").read_text()).get(str(settings.seed), "")
    with run.lock():
        stored = {name: value for name, value in vars(settings).items() if name != "given"}
        write_json(run.config, {**stored, "data": {"train_samples": 50}})
        epochs = settings.epochs if not plan else 1
        write_csv(run.metrics, METRICS_COLUMNS, [{"epoch": epoch + 1, "seconds": 10.0} for epoch in range(epochs)])
        print("an epoch", flush=True)
        if plan == "waits":
            begun = time.monotonic()
            while not (HERE / "go").exists() and time.monotonic() < begun + 120:
                time.sleep(0.02)
        if plan == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if plan == "fails":
            raise RunError("no images")
        if plan == "wrong":
            raise UsageError("--a needs --b")
        if plan == "hangs":
            try:
                time.sleep(60)
            except KeyboardInterrupt:
                (HERE / "saved").touch()
                raise
        status = "diverged" if plan == "diverges" else "done"
        write_json(run.summary, {"status": status, "seconds": 40.0, "validation_accuracy": settings.init_lr})

run_command(main)
"""
MEASURE = """
import json, sys
from pathlib import Path
from normstudy.cli import RunError, run_command
from normstudy.storage import write_json

def main():
    seed = json.loads((Path(sys.argv[1]) / "config.json").read_text())["seed"]
    if json.loads(Path(__file__).with_name("plan.json").read_text()).get(str(seed)) == "unmeasured":
        raise RunError("too few images")
    tag = [word.removeprefix("--tag=") for word in sys.argv if word.startswith("--tag=")]
    write_json(Path(sys.argv[1]) / ("-".join(["class_similarity", *tag]) + ".json"), {"seconds": 20.0})

run_command(main)
"""
SWEEP = """
import sys
from pathlib import Path
import run_sweep
from normstudy.cli import run_command
from normstudy.sweeps import workers
workers.PROJECT = Path(sys.argv[1])
run_command(lambda: run_sweep.main(sys.argv[2:]))
"""


class PretendedSweeps:
    """Sweeps in `folder` whose runs, with one seed each, do what `plan` says: {seed: what its training does}."""

    def __init__(self, folder):
        self.folder, self.results = folder, folder / "results"
        (folder / "main.py").write_text(MAIN)
        (folder / "run_class_similarity.py").write_text(MEASURE)
        self.plan({})

    def plan(self, plan):
        (self.folder / "plan.json").write_text(json.dumps(plan))

    def go(self):
        """Let the runs that wait end."""
        (self.folder / "go").touch()

    def flags(self, *seeds):
        return [
            f"--seed={','.join(map(str, seeds))}",
            f"--epochs={EPOCHS}",
            "--measure=class_similarity",
            f"--results_dir={self.results}",
        ]

    def start(self, *argv):
        """Start a sweep in a process of its own."""
        return subprocess.Popen(
            [sys.executable, "-c", SWEEP, str(self.folder), *argv],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=os.environ | {"PYTHONPATH": str(ROOT)},
        )

    def run_of(self, seed):
        """Return the directory of the run with a seed, which has begun."""
        [path] = self.results.glob(f"vgg_*_seed{seed}_*")
        return path

"""Time a results folder of 10,000 runs: planning a sweep, rebuilding the table of runs, and adding a row to it.

    python benchmarks/scale.py                  about five minutes, and 1.5 GB in a temporary folder

One small run is trained and measured. The others are copies of its files with the settings, names and checksums of the
runs of a grid. Prints the medians of three and writes benchmarks/results/scale.json.
"""

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from benchmarks.common import ROOT, machine
from normstudy.cli import count
from normstudy.storage import RunDirectory, identity_hash, read_json, write_json
from normstudy.sweeps import SweepRun, expand, parse_command

TRAIN = ["--dataset=Synthetic", "--train_samples=100", "--test_samples=50", "--image_size=8", "--epochs=1"]
MEASURE = ["--samples=20", "--lanczos_steps=30", "--num_probes=2", "--trace_probes=2"]
VALUES = {
    "norm_type": "BatchNorm,LayerNorm,Plain,InstanceNorm",
    "batch_size": "16,32,64,128,256",
    "momentum": "0.9,0",
    "weight_decay": "1e-4,0",
    "init_lr": "0.5,1",
}


def seconds_of(*argv: str) -> float:
    """Run Python on one of the project's commands, or on `-c CODE`; return the seconds that it takes."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, *argv], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def copy(model: RunDirectory, run: SweepRun) -> None:
    """Give `run` the small files of the run directory `model`, as if it had been trained."""
    for path in (model.config, model.summary, model.measurement("hessian"), model.measurement("class_similarity")):
        content = read_json(path)
        if path == model.config:
            content |= dataclasses.asdict(run.config)
        if path == model.summary:
            content["identity"] = identity_hash(run.config)
        write_json(run.directory.path / path.name, content)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=count, default=10_000)
    number = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        seconds_of("main.py", *TRAIN, f"--results_dir={folder}/model")
        seconds_of("run_hessian.py", f"--results_dir={folder}/model", *MEASURE)
        seconds_of("run_class_similarity.py", f"--results_dir={folder}/model")
        model = RunDirectory(next(Path(folder, "model").glob("vgg_*")))
        seeds = ",".join(map(str, range(-(-number // 160))))
        grid = [*TRAIN, *(f"--{name}={values}" for name, values in VALUES.items()), f"--seed={seeds}"]
        grid += [f"--results_dir={folder}/results"]
        found, _ = expand(parse_command(grid).grid)
        for run in found:
            copy(model, run)
        last = found[-1].directory.path
        add = f"from normstudy.storage import RunDirectory, update_table; update_table([RunDirectory({str(last)!r})])"
        commands = {
            "plan": ("run_sweep.py", *grid, "--dry_run"),
            "rebuild the table": ("run_report.py", "--collect", f"--results_dir={folder}/results"),
            "add a row": ("-c", add),
        }
        seconds: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(3):
            for name, command in commands.items():
                seconds[name].append(seconds_of(*command))
    medians = {name: statistics.median(each) for name, each in seconds.items()}
    for name, median in medians.items():
        print(f"{name} ({len(found):,} runs): {median:.1f} s, including the start of Python")
    write_json(
        Path(__file__).parent / "results" / "scale.json",
        {"runs": len(found), "seconds": medians, "machine": machine()},
    )


if __name__ == "__main__":
    main()

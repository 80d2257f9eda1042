"""A results folder of 10,000 runs: how long a sweep takes to plan, and the table to be rebuilt and added to.

    python benchmarks/scale.py                  about five minutes, and 1.5 GB in a temporary folder

One small run is trained and measured; the others are copies of its files, under the settings, names and checksums of
the runs of a grid. Prints the medians of three and writes benchmarks/results/scale.json.
"""

import argparse
import dataclasses
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common import ROOT, machine

from normstudy.cli import count
from normstudy.storage import read_json, run_directory, write_json
from normstudy.sweeps import build_parser, expand
from run_sweep import OWN

TRAIN = ["--dataset=Synthetic", "--train_samples=100", "--test_samples=50", "--image_size=8", "--epochs=1"]
MEASURE = ["--samples=20", "--lanczos_steps=30", "--num_probes=2", "--trace_probes=2"]
VALUES = {
    "norm_type": "BatchNorm,LayerNorm,Plain,InstanceNorm",
    "batch_size": "16,32,64,128,256",
    "momentum": "0.9,0",
    "weight_decay": "1e-4,0",
    "init_lr": "0.5,1",
}


def script(*argv):
    """Runs one of the project's commands and returns its seconds."""
    begun = time.perf_counter()
    subprocess.run([sys.executable, ROOT / argv[0], *argv[1:]], check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - begun


def copy(model, run):
    """Gives `run` the small files of the run directory `model`, as if it had been trained."""
    for path in (model.config, model.summary, model.measurement("hessian"), model.measurement("class_similarity")):
        content = read_json(path)
        if path == model.config:
            content |= dataclasses.asdict(run.config)
        if path == model.summary:
            content["identity"] = run_directory.identity_hash(run.config)
        write_json(run.directory.path / path.name, content)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=count, default=10_000)
    number = parser.parse_args().runs
    with tempfile.TemporaryDirectory() as folder:
        script("main.py", *TRAIN, f"--results_dir={folder}/model")
        script("run_hessian.py", f"--results_dir={folder}/model", *MEASURE)
        script("run_class_similarity.py", f"--results_dir={folder}/model")
        model = run_directory.RunDirectory(next(Path(folder, "model").glob("vgg_*")))
        seeds = ",".join(map(str, range(-(-number // 160))))
        grid = [*TRAIN, *(f"--{name}={values}" for name, values in VALUES.items()), f"--seed={seeds}"]
        grid += [f"--results_dir={folder}/results"]
        given = vars(build_parser().parse_args(grid))
        found, _ = expand({name: value for name, value in given.items() if name not in OWN})
        for run in found:
            copy(model, run)
        last = found[-1].directory.path
        add = ["-c", f"import table, runs; table.update([runs.RunDirectory({str(last)!r})])"]
        seconds = {"plan": [], "rebuild the table": [], "add a row": []}
        for _ in range(3):
            seconds["plan"].append(script("run_sweep.py", *grid, "--dry_run"))
            seconds["rebuild the table"].append(script("run_report.py", "--collect", f"--results_dir={folder}/results"))
            begun = time.perf_counter()
            subprocess.run([sys.executable, *add], check=True, cwd=ROOT)
            seconds["add a row"].append(time.perf_counter() - begun)
    medians = {what: statistics.median(each) for what, each in seconds.items()}
    for what, median in medians.items():
        print(f"{what} of {len(found):,} runs: {median:.1f} s, start of Python included")
    write_json(
        Path(__file__).parent / "results" / "scale.json",
        {"runs": len(found), "seconds": medians, "machine": machine()},
    )


if __name__ == "__main__":
    main()

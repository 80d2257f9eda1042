"""Test and measure the project on a machine with one CUDA GPU, PyTorch 2.6 or newer and pytest; no network is needed.

    benchmarks/gpu.sh --minutes=8 --images=cifar10.tar.xz

The parts are: tests marked `cuda`; the speed of training steps; Hessian products against other libraries; and, with
images (a folder, or a tar of one, with train/<class>/ and test/<class>/), full training of VGG with one norm after the
other and of ResNet-56. Each part has its own share of the time. Every result is written as soon as it is known, to
gpu-<GPU>.json and .md in --output. --smoke tries the script on a CPU, in under two minutes.
"""

import argparse
import importlib.util
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import config
from benchmarks.common import DEVICE, ROOT, machine, machine_name
from benchmarks.gpu_tables import markdown
from normstudy.cli import path_name
from normstudy.storage import read_csv, read_json, write_bytes, write_json

SHARES = {"tests": 0.3, "speed": 0.3, "hessian": 0.15, "training": 1.0}  # of the time left when a part begins
PACKAGES = ("torchvision", "pandas", "scipy", "filelock", "pytest", "hypothesis", "submitit", "pyhessian", "curvlinops")
SPARE, GRACE = 15, 10  # seconds for the end of the script, and for a command that is asked to end


class Session:
    """The time that is left, and the report, which is written at every change."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        self.end = time.monotonic() + 60 * args.minutes - SPARE
        self.path = args.output / f"gpu-{machine_name()}.json"
        self.report: dict[str, Any] = {"machine": machine(), "minutes": args.minutes}

    def left(self) -> float:
        """Return the seconds until the script has to end."""
        return self.end - time.monotonic()

    def save(self) -> None:
        write_json(self.path, self.report)
        write_bytes(self.path.with_suffix(".md"), markdown(self.report).encode())

    def lines(self, command: Sequence[str | Path], limit: float, on_line: Callable[[str], object]) -> int | None:
        """Run a Python command and call on_line for each line that it prints; return its code, None at the limit.

        A command that takes longer is asked to end, as by Ctrl-C, and killed GRACE seconds later.
        """
        limit = max(1.0, min(limit, self.left()))
        process = subprocess.Popen(
            [sys.executable, "-u", *map(str, command)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        assert process.stdout is not None
        timers = [threading.Timer(limit, process.send_signal, [signal.SIGINT])]
        timers += [threading.Timer(limit + GRACE, os.killpg, [process.pid, signal.SIGKILL])]
        begun = time.monotonic()
        for timer in timers:
            timer.start()
        try:
            for line in process.stdout:
                on_line(line.rstrip("\n"))
            code = process.wait()
        finally:
            for timer in timers:
                timer.cancel()
            if process.poll() is None:  # this script was interrupted
                os.killpg(process.pid, signal.SIGTERM)
        return None if time.monotonic() - begun >= limit else code


def run_tests(session: Session, limit: float) -> None:
    """Run the tests that are marked `cuda`; keep their counts and the reason of every failure."""
    result: dict[str, Any] = {"failures": [], "summary": ""}
    session.report["tests"] = result
    paths = ["tests/test_on_cuda.py", "tests/training", "tests/storage"]
    command = ["-m", "pytest", "-q", "-m", "cuda", "-p", "no:cacheprovider", "--tb=short", "-rfE"]

    def keep(line: str) -> None:
        if line.startswith(("FAILED", "ERROR")):
            print(line[:300], flush=True)
            result["failures"].append(line[:500])
        if re.search(r"\d (passed|failed|skipped|error|deselected).* in ", line):
            result["summary"] = line.strip("= ")
        log.write(line + "\n")

    with open(session.path.with_suffix(".tests.log"), "w", encoding="utf-8") as log:
        code = session.lines([*command, *paths], limit, keep)
    result["code"] = "time limit" if code is None else code
    print("tests:", result["summary"] or result["code"], flush=True)
    session.save()


def measure_speed(session: Session, limit: float) -> None:
    """Measure training steps, the most important settings first (see gpu_speed.py)."""
    rows: list[dict[str, Any]] = []
    session.report["speed"] = rows
    _json_lines(session, [Path(__file__).parent / "gpu_speed.py", f"--seconds={limit - 5:.0f}"], limit, rows)


def measure_hessian(session: Session, limit: float) -> None:
    """Time Hessian products against those of the libraries that are installed (see gpu_hessian.py)."""
    rows: list[dict[str, Any]] = []
    session.report["hessian"] = rows
    _json_lines(session, [Path(__file__).parent / "gpu_hessian.py"], limit, rows)


def _json_lines(session: Session, command: Sequence[str | Path], limit: float, rows: list[dict[str, Any]]) -> None:
    """Add every line of JSON that a command prints to `rows`; print the others."""

    def keep(line: str) -> None:
        print(line, flush=True)
        if line.startswith("{"):
            rows.append(json.loads(line))
            session.save()

    session.lines([*command, *(["--smoke"] if session.args.smoke else [])], limit, keep)


def train(session: Session, limit: float) -> None:
    """Train VGG/BatchNorm with the full schedule, other norms while time lasts, and ResNet-56/BatchNorm."""
    rows: list[dict[str, Any]] = []
    session.report["training"] = rows
    with tempfile.TemporaryDirectory() as folder:
        images = _images(session, Path(folder))
        speed = {row["arch"]: row for row in reversed(session.report.get("speed", [])) if row.get("images_per_second")}
        vgg = ["--arch=vgg", "--norm_type=BatchNorm"]
        first = _train_one(session, vgg, images, Path(folder), rows)
        resnet_seconds = first * 4.5
        if "vgg" in speed and "resnet-56" in speed:
            resnet_seconds = first * speed["vgg"]["images_per_second"] / speed["resnet-56"]["images_per_second"]
        has_resnet = resnet_seconds < session.left()
        if session.args.smoke:
            return
        for norm in config.NORM_TYPES:
            if norm != "BatchNorm" and session.left() - 1.5 * first > (1.1 * resnet_seconds if has_resnet else 0):
                _train_one(session, ["--arch=vgg", f"--norm_type={norm}"], images, Path(folder), rows)
        _train_one(session, ["--arch=resnet-56", "--norm_type=BatchNorm"], images, Path(folder), rows)


def _images(session: Session, folder: Path) -> list[str]:
    """Return the flags that name the images; a tar is unpacked into `folder`."""
    if session.args.images is None:
        return ["--dataset=Synthetic", "--train_samples=64", "--test_samples=32", "--image_size=8"]
    images = session.args.images
    if images.is_file():
        begun = time.monotonic()
        with tarfile.open(images) as tar:
            tar.extractall(folder / "images", filter="data")
        print(f"unpacked {images.name} in {time.monotonic() - begun:.0f} s", flush=True)
        images = folder / "images"
    return ["--dataset=ImageFolder", f"--data_dir={images}"]


def _train_one(
    session: Session, network: list[str], images: list[str], folder: Path, rows: list[dict[str, Any]]
) -> float:
    """Train one run and keep its result; return its seconds."""
    if session.left() < 10:
        print("no time left for", *network, flush=True)
        return 0.0
    begun, last = time.monotonic(), [""]
    flags = [*network, *images, f"--device={DEVICE.type}", f"--results_dir={folder / 'results'}", "--keep=last"]
    flags += ["--precision=bf16", "--probe_every=10"]
    if session.args.smoke:
        flags += ["--epochs=2", "--precision=fp32"]
    code = session.lines(["main.py", *flags], session.left(), lambda line: last.append(line) if line.strip() else None)
    seconds = time.monotonic() - begun
    names = [each.partition("=")[2] for each in network]
    row: dict[str, Any] = {"run": "/".join(names), "seconds": round(seconds, 1)}
    run = next((folder / "results").glob(f"{names[0]}_{names[1]}_*"))
    epochs = read_csv(run / "metrics.csv") if (run / "metrics.csv").exists() else []
    row["epochs"] = len(epochs)
    if epochs:
        row["images_per_second"] = round(max(float(epoch["images_per_second"]) for epoch in epochs))
        row["test_accuracy"] = [round(float(epoch["test_accuracy"]), 4) for epoch in epochs]
    if code == 0:
        row |= {key: read_json(run / "summary.json")[key] for key in ("status", "test_loss", "train_accuracy")}
    else:
        row["status"] = "time limit" if code is None else f"code {code}: {last[-1][:200]}"
    shutil.rmtree(run)
    rows.append(row)
    print(json.dumps(row), flush=True)
    session.save()
    return seconds


def _path(text: str) -> Path:
    return Path(path_name(text))


PARTS = {"tests": run_tests, "speed": measure_speed, "hessian": measure_hessian, "training": train}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.0, help="time limit of the whole script (default: 8)")
    parser.add_argument("--images", type=_path, help="folder or tar with train/<class>/ and test/<class>/")
    parser.add_argument("--parts", default=",".join(PARTS), help="parts to run, separated by commas (default: all)")
    parser.add_argument("--output", type=_path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--smoke", action="store_true", help="try the script on a CPU, with tiny settings")
    args = parser.parse_args()
    if DEVICE.type != "cuda" and not args.smoke:
        parser.error("PyTorch sees no CUDA GPU here; --smoke tries the script on a CPU")
    if args.smoke and args.output == ROOT / "benchmarks" / "results":
        args.output = Path(tempfile.mkdtemp())
    args.output.mkdir(parents=True, exist_ok=True)
    session = Session(args)
    missing = [name for name in PACKAGES if importlib.util.find_spec(name) is None]
    print(json.dumps(session.report["machine"]), "\nmissing packages:", ", ".join(missing) or "none", flush=True)
    parts = args.parts.split(",")
    if not set(parts) <= set(PARTS):
        parser.error(f"--parts={args.parts} names something other than {', '.join(PARTS)}")
    if args.images is None and not args.smoke and "training" in parts:
        print("skipped: training, which needs --images", flush=True)
        parts.remove("training")
    session.report["missing_packages"] = missing
    session.save()
    for name in parts:
        limit = session.left() * (1.0 if name == parts[-1] else SHARES[name])
        if limit < 10:
            print(f"skipped: {name}, for lack of time", flush=True)
            continue
        print(f"== {name}, at most {limit:.0f} s", flush=True)
        begun = time.monotonic()
        try:
            PARTS[name](session, limit)
        except Exception as error:  # the next parts can still run
            session.report[f"{name}_error"] = f"{type(error).__name__}: {error}"
            print(session.report[f"{name}_error"], flush=True)
        session.report.setdefault("seconds", {})[name] = round(time.monotonic() - begun)
        session.save()
    print(session.path)
    print(markdown(session.report))


if __name__ == "__main__":
    main()

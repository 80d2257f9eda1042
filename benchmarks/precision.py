"""Draw the loss curves of float32 and bf16 runs of the same seeds to benchmarks/results/precision.png.

python benchmarks/precision.py DIR            DIR/train/<class>/ and DIR/test/<class>/; 15 minutes on two cores
"""

import argparse
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import config
from benchmarks.common import ROOT
from main import main as train
from normstudy.plots import new_figure, own_style, save_figure
from normstudy.storage import RunDirectory, read_csv

COLORS = dict(zip(config.PRECISIONS, ("#1f77b4", "#d95f02"), strict=True))


def curves(directory: str, precision: str, seed: int, args: argparse.Namespace) -> tuple[list[float], list[float]]:
    """Train one run; return (train losses, test accuracies) of every epoch."""
    flags = [f"--precision={precision}", f"--seed={seed}", f"--epochs={args.epochs}", "--batch_size=128"]
    flags += ["--dataset=ImageFolder", f"--data_dir={args.data_dir}", f"--train_samples={args.samples}"]
    run = RunDirectory(train([*flags, "--test_samples=2000", f"--results_dir={directory}"]))
    rows = read_csv(run.metrics)
    return [float(row["train_loss"]) for row in rows], [float(row["test_accuracy"]) for row in rows]


@own_style()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data_dir")
    parser.add_argument("--samples", type=int, default=5000)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--seeds", type=int, default=2)
    args = parser.parse_args()
    figure, [axes] = new_figure(1, 2, figsize=(9, 3.4))
    figure.subplots_adjust(left=0.08, right=0.98, bottom=0.15, top=0.88)
    with tempfile.TemporaryDirectory() as directory:
        for seed in range(args.seeds):
            for precision in config.PRECISIONS:
                for axis, values in zip(axes, curves(directory, precision, seed, args), strict=True):
                    label = precision if seed == 0 else None
                    style = "-" if precision == "fp32" else "--"
                    axis.plot(range(1, len(values) + 1), values, style, color=COLORS[precision], label=label)
    axes[0].set(xlabel="epoch", ylabel="train loss (nats per image)")
    axes[1].set(xlabel="epoch", ylabel="test accuracy")
    axes[0].legend(frameon=False)
    figure.suptitle(f"VGG cfg_10, BatchNorm, {args.samples} images, batch 128, {args.seeds} seeds")
    for axis in axes:
        axis.grid(alpha=0.3)
    path = ROOT / "benchmarks" / "results" / "precision.png"
    save_figure(figure, path, dpi=120)
    print(path.relative_to(ROOT))


if __name__ == "__main__":
    main()

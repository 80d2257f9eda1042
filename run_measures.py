"""Compute generalization measures at the checkpoints of finished runs.

    python run_measures.py                     every run in results/ that is not measured yet
    python run_measures.py results/RUN --measures=margin,weights

measures.json and measures.png are written to each run directory.
"""

import argparse
from collections.abc import Sequence

from normstudy.cli import Parser, add_flag, count, loading_modules, measurement_parser, run_command

GROUPS = {
    "margin": "margins, cross-entropy and entropy of the outputs",
    "weights": "norms of the weights and their distance from the start",
    "noise": "size of the weight noise that costs a tenth of accuracy (PAC-Bayes)",
    "sharpness": "adaptive sharpness",
    "gradients": "size and noise of gradients, and the loss along a training step",
}
SAMPLES, SAMPLES_ON_GPU = 256, 2048


def groups(text: str) -> str:
    """Return the chosen groups, in their usual order. Raises ValueError for an unknown one."""
    chosen = [name.strip().lower() for name in text.split(",") if name.strip()]
    unknown = [name for name in chosen if name not in GROUPS]
    if unknown or not chosen:
        raise ValueError(f"{unknown[0] if unknown else text!r} is not one of {', '.join(GROUPS)}")
    return ",".join(name for name in GROUPS if name in chosen)


def build_parser() -> Parser:
    """Build the parser of run_measures.py."""
    parser = measurement_parser(
        "run_measures.py",
        "measures",
        "Compute the generalization measures of the literature, defined in the same way for every norm: margins,\n"
        "norms, PAC-Bayes noise, adaptive sharpness, gradient noise, and the loss along a training step.",
        None,
        """examples:
  python run_measures.py                                          every run in results/ that is not measured yet
  python run_measures.py results/RUN --measures=margin,weights    a few seconds
  python run_measures.py results/RUN --checkpoint=all             over training""",
        f"Number of training images (default: {SAMPLES}, on a GPU {SAMPLES_ON_GPU})",
    )
    texts = "; ".join(f"{name}: {text}" for name, text in GROUPS.items())
    add_flag(parser, "measures", ",".join(GROUPS), f"Groups of measures, separated by commas. {texts}", groups)
    add_flag(
        parser,
        "batch_size",
        256,
        "Images per batch. The loss along a step uses the batch statistics of each; nothing else depends on it",
        count,
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code: 0, or 1 if a run was left out."""
    args: argparse.Namespace = build_parser().parse_args(argv)
    with loading_modules():
        from normstudy.kernels import pick_device
        from normstudy.measures import MEASURES, measure_runs
    if args.samples is None:
        args.samples = SAMPLES_ON_GPU if pick_device(args.device).type == "cuda" else SAMPLES
    return measure_runs(args, MEASURES)


if __name__ == "__main__":
    run_command(main)

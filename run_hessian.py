"""Measure the Hessian of the training loss at the checkpoints of finished runs.

    python run_hessian.py                     every run in results/ that is not measured yet
    python run_hessian.py results/RUN --checkpoint=all

hessian.json and hessian.png are written to each run directory. Other matrices than the default add to this name:
hessian-ggn.json, hessian-train-filter.json.
"""

import argparse
from collections.abc import Sequence

from normstudy.cli import (
    Parser,
    add_flag,
    boolean,
    count,
    device_name,
    loading_modules,
    measurement_parser,
    number,
    run_command,
)

BATCH_SIZE = 128
MAX_PROBE_FACTOR = 20  # with --trace_error, the number of trace probes is at most this factor times --trace_probes


def build_parser() -> Parser:
    """Build the parser of run_hessian.py."""
    parser = measurement_parser(
        "run_hessian.py",
        "hessian",
        "Measure trace, eigenvalue mean and variance, outermost eigenvalues and spectral density of the Hessian of\n"
        "the training loss, and the trace of each layer.",
        4096,
        """examples:
  python run_hessian.py                                   every run in results/ that is not measured yet
  python run_hessian.py results/RUN --checkpoint=all      curvature over training
  python run_hessian.py --samples=100 --lanczos_steps=10 --trace_probes=4     a minute on a CPU
A Lanczos probe takes lanczos_steps matrix-vector products, a trace probe takes one. A product costs as much as 2 to 3
gradients.""",
    )
    add_flag(
        parser,
        "num_probes",
        2,
        "Number of Lanczos probes (random start vectors), for eigenvalues, density and, with trace probes, the trace",
        count,
    )
    add_flag(
        parser,
        "lanczos_steps",
        30,
        "Number of Lanczos steps per probe. More steps resolve the ends of the spectrum better",
        count,
    )
    add_flag(
        parser,
        "trace_probes",
        20,
        "Number of trace probes (further random vectors, one product each), used only for trace, mean and variance",
        number(int, low=0),
    )
    add_flag(
        parser,
        "trace_error",
        None,
        "Relative standard error of the trace to reach (0.1 is 10 %). Trace probes are added until it is reached, up "
        f"to {MAX_PROBE_FACTOR} times --trace_probes (default: none are added)",
        number(float, above=0),
    )
    add_flag(
        parser,
        "image_blocks",
        10,
        "Number of blocks of images for the errors that come from the choice of images (1 for none). If it does not "
        "divide the number of images, a divisor up to twice as large is taken. With --bn_mode=train, each block is a "
        "batch",
        count,
    )
    at_once = (
        "Images per batch. It is reduced to what fits into memory and does not change the result; only with "
        "--bn_mode=train and --image_blocks=1, batch statistics are computed over these batches "
        f"(default: {BATCH_SIZE})"
    )
    add_flag(parser, "batch_size", None, at_once, count)
    modes = ("eval", "train")
    add_flag(
        parser,
        "bn_mode",
        "eval",
        "Norms with running statistics use these (eval) or those of each batch (train)",
        choices=modes,
    )
    matrices = ("hessian", "ggn", "empirical_fisher")
    add_flag(
        parser,
        "curvature",
        "hessian",
        "Matrix to measure: the Hessian, the generalized Gauss-Newton matrix (ggn), or the mean of ∇ℓ ∇ℓᵀ over images "
        "(empirical_fisher)",
        choices=matrices,
    )
    add_flag(
        parser,
        "scale",
        "none",
        "Measure D H D in place of H, with D the norm of each weight's output filter (filter) or each parameter's "
        "absolute value (element). Compare norms with these: H alone changes with the size of weights that a norm "
        "makes irrelevant",
        choices=("none", "filter", "element"),
    )
    add_flag(
        parser, "eigenvectors", 0, "Number of largest eigenvalues whose eigenvectors are computed", number(int, low=0)
    )
    add_flag(parser, "save_eigenvectors", False, "Also write the eigenvectors, to hessian_vectors.pt", boolean)
    add_flag(
        parser,
        "layer_eigenvalues",
        False,
        "Also compute the largest eigenvalue of each layer's diagonal block, with --lanczos_steps products per layer",
        boolean,
    )
    where = "Device of the Lanczos vectors (auto: the network's device if they fit into its memory, else the CPU)"
    add_flag(parser, "basis_device", "auto", where, device_name)
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Return the flags of a command line; flags that do not go together end the program with exit code 2."""
    parser = build_parser()
    args = parser.parse_args(argv)
    if args.bn_mode == "train" and args.curvature == "empirical_fisher":
        parser.error(
            "--curvature=empirical_fisher needs --bn_mode=eval: batch statistics leave an image no gradient of its own"
        )
    if args.bn_mode == "train" and args.image_blocks > 1 and args.batch_size is not None:
        parser.error("--batch_size does not apply to --bn_mode=train, where each block is a batch; use --image_blocks")
    if args.save_eigenvectors and not args.eigenvectors:
        parser.error("--save_eigenvectors needs --eigenvectors, the number of eigenvectors")
    args.batch_size = args.batch_size or BATCH_SIZE
    return args


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code: 0, or 1 if a run was left out."""
    args = parse_args(argv)
    with loading_modules():
        from normstudy.measures import hessian_measurement, measure_runs
    return measure_runs(args, hessian_measurement(MAX_PROBE_FACTOR))


if __name__ == "__main__":
    run_command(main)

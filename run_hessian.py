"""Measure the Hessian of the training loss at the checkpoints of finished runs.

    python run_hessian.py                     every run under results/ that was not measured yet
    python run_hessian.py results/RUN --checkpoint=all

Leaves hessian.json and hessian.png in each run directory.
"""

from collections.abc import Sequence

from normstudy.cli import Parser, add_flag, count, device_name, loading_modules, measurement_parser, number, run_command

MAX_PROBE_FACTOR = 20  # as many trace probes as --trace_probes says may a --trace_error take


def build_parser() -> Parser:
    """The parser of run_hessian.py."""
    parser = measurement_parser(
        "run_hessian.py",
        "hessian",
        "Trace, mean, variance and outermost eigenvalues of the Hessian of the training loss, its spectral density, "
        "and the trace of each layer.",
        4096,
        """examples:
  python run_hessian.py                                   every run not measured yet
  python run_hessian.py results/RUN --checkpoint=all      curvature over training
  python run_hessian.py --samples=512 --lanczos_steps=20  quicker, for a CPU
A Lanczos probe takes lanczos_steps Hessian-vector products (HVPs), a trace probe one; an HVP is 2 to 3 gradients.""",
    )
    add_flag(parser, "num_probes", 2, "random vectors that Lanczos starts from", count)
    add_flag(parser, "lanczos_steps", 30, "of each of them; more resolve the edges of the spectrum", count)
    add_flag(parser, "trace_probes", 20, "more random vectors, for trace, mean and variance alone", number(int, low=0))
    add_flag(
        parser,
        "trace_error",
        None,
        "go on with trace probes until the trace's standard error is at most this part of it (0.1: 10 %), or there are "
        f"{MAX_PROBE_FACTOR} times as many",
        number(float, above=0),
    )
    at_once = "images at once, fewer where memory asks for it; changes no result in eval mode"
    add_flag(parser, "batch_size", 128, at_once, count)
    modes = ("eval", "train")
    add_flag(parser, "bn_mode", "eval", "norms with running statistics use those, or each batch's", choices=modes)
    matrices = ("hessian", "ggn")
    add_flag(parser, "curvature", "hessian", "the Hessian, or the generalized Gauss-Newton matrix", choices=matrices)
    add_flag(parser, "dtype", "float32", "of all arithmetic", choices=("float32", "float64"))
    where = "where the Lanczos vectors lie (auto: with the network while they fit)"
    add_flag(parser, "basis_device", "auto", where, device_name)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code: 0, or 1 if a run was left out."""
    args = build_parser().parse_args(argv)
    with loading_modules():
        from normstudy.measures import hessian_measurement, measure_runs
    return measure_runs(args, hessian_measurement(MAX_PROBE_FACTOR))


if __name__ == "__main__":
    run_command(main)

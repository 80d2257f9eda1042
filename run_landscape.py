"""Compute the loss along lines through the weights of finished runs.

    python run_landscape.py                           around every run in results/ that is not measured yet
    python run_landscape.py results/RUN --to=results/OTHER    on the line between two runs

landscape.json and landscape.png are written to each run directory; with --to, landscape-to-<hash of OTHER>.json.
"""

import argparse
from collections.abc import Sequence

from normstudy.cli import Parser, add_flag, count, loading_modules, measurement_parser, number, path_name, run_command

DIRECTIONS, DISTANCE = 5, 0.5


def build_parser() -> Parser:
    """Build the parser of run_landscape.py."""
    parser = measurement_parser(
        "run_landscape.py",
        "landscape",
        "Compute the training loss along random directions and along the sharpest direction from a network, or on the\n"
        "line between two networks. Norms with running statistics are evaluated twice: with these statistics as they\n"
        "are, and re-estimated at each point.",
        256,
        """examples:
  python run_landscape.py                                     every run in results/ that is not measured yet
  python run_landscape.py results/RUN --to=results/OTHER      is there a barrier between the two?
  python run_landscape.py results/RUN --to=results/RUN --checkpoint=epoch_0000    from start to end of training""",
    )
    add_flag(
        parser,
        "to",
        None,
        "Another run of the same network on the same images: compute the loss on the line to its last checkpoint, in "
        "place of the losses around the network",
        path_name,
    )
    add_flag(
        parser,
        "directions",
        None,
        f"Number of random directions (default: {DIRECTIONS}). Does not apply to --to",
        count,
    )
    add_flag(
        parser,
        "distance",
        None,
        "Largest distance along random directions, which change each filter by this fraction of its norm "
        f"(default: {DISTANCE}). The sharpest direction is followed up to this distance or to where its curvature "
        "predicts a rise of 2 nats. Does not apply to --to",
        number(float, above=0, high=10),
    )
    add_flag(
        parser, "points", 6, "Number of points on each side of the network; the line of --to has twice as many", count
    )
    add_flag(
        parser,
        "batch_size",
        64,
        "Images per batch. The result does not depend on it. Re-estimated statistics take all images at once",
        count,
    )
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code: 0, or 1 if a run was left out."""
    parser = build_parser()
    args: argparse.Namespace = parser.parse_args(argv)
    for name, default in (("directions", DIRECTIONS), ("distance", DISTANCE)):
        if args.to is None and getattr(args, name) is None:
            setattr(args, name, default)
        elif args.to is not None and getattr(args, name) is not None:
            parser.error(f"--{name} does not apply to --to, which computes the loss on a line")
    with loading_modules():
        from normstudy.measures import LANDSCAPE, measure_runs, name_other_run
    name_other_run(args)
    return measure_runs(args, LANDSCAPE)


if __name__ == "__main__":
    run_command(main)

"""Train one network with one normalization layer, and record what happens inside it.

    python main.py --arch=vgg --norm_type=BatchNorm

Leaves a run directory under results/; the same command continues an unfinished run and reports a finished one.
"""

from collections.abc import Sequence
from pathlib import Path

from config import parse_args
from normstudy.cli import loading_modules, run_command


def main(argv: Sequence[str] | None = None) -> Path:
    """Train or continue the run that a command line names, or report it if it is finished; return its directory."""
    config = parse_args(argv)
    with loading_modules():
        from normstudy import plots
        from normstudy.training import train_run
    return train_run(config, plots)


if __name__ == "__main__":
    run_command(main)

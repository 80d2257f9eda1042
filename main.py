"""Train one network with one normalization layer and record statistics of its layers.

    python main.py --arch=vgg --norm_type=BatchNorm

The run directory is written under results/. Run the same command again to continue an unfinished run or to report a
finished one.
"""

from collections.abc import Sequence
from pathlib import Path

from config import parse_args
from normstudy.cli import loading_modules, run_command


def main(argv: Sequence[str] | None = None) -> Path:
    """Train or continue the run of a command line, or report it if it is finished; return its directory."""
    config = parse_args(argv)
    with loading_modules():
        from normstudy import plots
        from normstudy.training import train_run
    return train_run(config, plots)


if __name__ == "__main__":
    run_command(main)

"""Train and measure every combination of the given values of main.py's flags, several runs at once.

    python run_sweep.py --arch=vgg,resnet-56 --norm_type=BatchNorm,GroupNorm --p_grouping=8,32 --seed=0,1,2
    python run_sweep.py --status

Run the same command again to continue and to see what is done. Only the child processes load torch.
"""

import sys
from collections.abc import Sequence

from normstudy.cli import run_command
from normstudy.sweeps import execute_grid, execute_tuning, follow_log, parse_command, runs_of, show_status


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; return its exit code: 0, or 1 if a run failed or is unfinished."""
    command = parse_command(sys.argv[1:] if argv is None else argv)
    if command.options["status"]:
        return show_status(command)
    if command.options["follow"] is not None:
        return follow_log(command)
    runs, remarks = runs_of(command)
    for line in remarks:
        print(line)
    return execute_tuning(runs, command) if command.options["tune"] else execute_grid(runs, command)


if __name__ == "__main__":
    run_command(main)

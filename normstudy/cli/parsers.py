"""Parsers of the commands, which report a wrong flag in one line."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from normstudy.cli.errors import UsageError
from normstudy.cli.flag_types import (
    BALANCES,
    argparse_type,
    boolean,
    checkpoint_name,
    count,
    device_name,
    number,
    path_name,
    tag,
)
from normstudy.cli.outcome import report_outcome


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that reports a wrong flag in one line."""

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """Return the Namespace of a command line; a wrong flag ends the process."""
        words = sys.argv[1:] if args is None else list(args)
        for word in words:
            if word.startswith("--") and word.endswith("=--"):  # argparse would treat it as no value at all
                self.error(f"argument {word[:-3]}: '--' is not a value")
        return super().parse_args(words, namespace)

    def _print_message(self, message: str, file: Any = None) -> None:
        """Print help or an error; characters that the stream cannot encode are printed as escapes."""
        stream = file or sys.stderr
        encoding = getattr(stream, "encoding", None) or "utf-8"
        super()._print_message(message.encode(encoding, "backslashreplace").decode(encoding), stream)

    def error(self, message: str) -> NoReturn:
        """End the process with one line instead of argparse's usage block, and with exit code 2 as argparse does."""
        unknown = re.search(r"unrecognized arguments: (--?[\w-]+)", message)
        if unknown:
            close = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
            if close:
                meaning = str(self._option_string_actions[close[0]].help).replace("%%", "%")
                message += f"; did you mean {close[0]} ({meaning.partition(' (default')[0]})?"
        message = " ".join(message.splitlines())
        line = f"{self.prog}: error: {message} (see {self.prog} --help)"
        report_outcome(UsageError.kind, line)
        self.exit(2, f"{line}\n")


IMAGES = "Number of images to measure on. A smaller data set is used completely"


def measurement_parser(
    script: str, measurement: str, description: str, samples: int | None, examples: str, images: str = IMAGES
) -> Parser:
    """Build the parser of a command that measures runs, without the flags of its own, which add_flag adds.

    measurement: the name of the measurement's JSON file. samples: the default of --samples. images: its help.
    """
    parser = Parser(
        prog=script,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"python {script} [RUN ...] [--flag=value ...]",
        description=description,
        epilog=examples,
    )
    runs = "Run directories to measure (default: every run not measured yet)"
    parser.add_argument("runs", nargs="*", metavar="RUN", type=path_name, help=runs)
    add_flag(parser, "results_dir", "results", "Folder whose runs are measured if no RUN is given", path_name)
    add_flag(
        parser,
        "checkpoint",
        "last",
        "Checkpoints to measure: last, all (every one that the run kept), or one epoch, such as epoch_0005",
        checkpoint_name,
    )
    add_flag(parser, "samples", samples, images, count)
    add_flag(
        parser,
        "balance",
        "equal",
        "Shares of the classes in --samples, equal as far as each class has enough images, or proportional to the "
        "sizes of the classes",
        choices=BALANCES,
    )
    add_flag(parser, "seed", 0, "Seed for the choice of images and for all random numbers", number(int, low=0))
    add_flag(parser, "data_dir", None, "Folder of the run's images (default: the one used in training)", path_name)
    add_flag(
        parser,
        "cache_dir",
        None,
        "Folder for the cache of decoded images (default: the one used in training)",
        path_name,
    )
    add_flag(
        parser,
        "device",
        "auto",
        "Device to measure on: auto (cuda, else mps, else cpu), cpu, cuda, cuda:N or mps",
        device_name,
    )
    add_flag(parser, "dtype", "float32", "Floating-point type of all computations", choices=("float32", "float64"))
    add_flag(
        parser,
        "tag",
        None,
        f"Word that is added to the name of the file ({measurement}-TAG.json), to keep measurements with other "
        "settings. results.csv leaves them out",
        tag,
    )
    add_flag(parser, "overwrite", False, f"Measure again if {measurement}.json exists, and replace it", boolean)
    return parser


def add_flag(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    name: str,
    default: object,
    help: str,
    parse: Callable[[str], object] = str,
    choices: Sequence[str] | None = None,
) -> None:
    """Add a flag --name=value, with its default in the help. A boolean may be given without a value."""
    choice_text = f": {', '.join(choices)}" if choices else ""
    default_text = "" if default in (None, "") else f" (default: {default})"
    parser.add_argument(
        f"--{name}",
        type=argparse_type(parse, choices),
        default=default,
        nargs="?" if parse is boolean else None,
        const=True if parse is boolean else None,
        metavar="True|False" if parse is boolean else name.upper(),
        help=f"{help}{choice_text}{default_text}".replace("%", "%%"),
    )

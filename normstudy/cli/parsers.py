"""Parsers that report a wrong flag in one line."""

import argparse
import difflib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

from normstudy.cli.errors import UsageError
from normstudy.cli.flag_types import argparse_type, boolean, checkpoint_name, count, device_name, number
from normstudy.cli.outcome import report_outcome


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says what is wrong in one line."""

    def parse_args(self, args: Iterable[str] | None = None, namespace: Any = None) -> Any:
        """The Namespace of a command line; a wrong flag ends the process."""
        words = sys.argv[1:] if args is None else list(args)
        for word in words:
            if word.startswith("--") and word.endswith("=--"):  # which argparse takes for no value at all
                self.error(f"argument {word[:-3]}: '--' is no value")
        return super().parse_args(words, namespace)

    def error(self, message: str) -> NoReturn:
        """End the process with one line instead of argparse's usage block, and the same exit code 2."""
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


def measurement_parser(script: str, measurement: str, description: str, samples: int, examples: str) -> Parser:
    """The parser of a command that measures runs; its own flags are added with add_flag.

    measurement: the name of the measurement's JSON file. samples: the default number of images.
    """
    parser = Parser(
        prog=script,
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        usage=f"python {script} [RUN ...] [--flag=value ...]",
        description=description,
        epilog=examples,
    )
    parser.add_argument("runs", nargs="*", metavar="RUN", help="run folders (default: every one not measured yet)")
    add_flag(parser, "results_dir", "results", "folder whose runs are measured where no RUN is given")
    add_flag(
        parser,
        "checkpoint",
        "last",
        "last, all (of every fifth epoch and the last), or one such as epoch_0005",
        checkpoint_name,
    )
    add_flag(parser, "samples", samples, "images to measure on, equally many of each class", count)
    add_flag(parser, "seed", 0, "of the choice of images and of all else that is random", number(int, low=0))
    add_flag(parser, "data_dir", None, "where the run's images lie now (default: where they lay in training)")
    add_flag(parser, "device", "auto", "auto, cpu, cuda, cuda:N or mps", device_name)
    add_flag(parser, "overwrite", False, f"measure again what has its {measurement}.json", boolean)
    return parser


def add_flag(
    parser: argparse.ArgumentParser | argparse._ArgumentGroup,
    name: str,
    default: object,
    help: str,
    parse: Callable[[str], object] = str,
    choices: Sequence[str] | None = None,
) -> None:
    """Add --name=value, with its default in the help; a boolean may stand bare."""
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

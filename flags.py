"""Flags: what their values may be, and one-line errors for those that are wrong. Standard library alone."""

import argparse
import difflib
import math
import re
import sys


def _name_key(name):
    """`Instance Normalization`, `Instance_Normalization` and `instancenorm` share one key."""
    key = re.sub(r"[\s_-]", "", name.lower()).replace("normalization", "norm").replace("evonormb0", "evonormbo")
    return key.replace("evonorms0", "evonormso")


def canonical_name(name, choices):
    """The spelling of `name` in `choices`, whatever its case or older long form. Raises ValueError."""
    by_key = {_name_key(choice): choice for choice in choices}
    if _name_key(name) in by_key:
        return by_key[_name_key(name)]
    close = difflib.get_close_matches(_name_key(name), by_key, n=1)
    hint = f"; did you mean {by_key[close[0]]}?" if close else ""
    raise ValueError(f"{name!r} is none of {', '.join(choices)}{hint}")


def boolean(text):
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


def number(kind, low=None, high=None, above=None, below=None):
    """An argparse type: an int or a finite float within bounds (low, high inclusive; above, below exclusive)."""

    def parse(text):
        word = "a whole number" if kind is int else "a number"
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {word}") from None
        bounds = [
            (low, "at least", lambda: value >= low),
            (high, "at most", lambda: value <= high),
            (above, "above", lambda: value > above),
            (below, "below", lambda: value < below),
        ]
        wanted = [f"{words} {bound}" for bound, words, _ in bounds if bound is not None]
        if not math.isfinite(value) or any(bound is not None and not holds() for bound, _, holds in bounds):
            raise ValueError(f"{text} is not {word} {' and '.join(wanted)}".rstrip())
        return value

    return parse


count = number(int, low=1, high=10**9)
MOST_TIMES = 20  # as many trace probes as --trace_probes says may a --trace_error take


def device_name(text):
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", text):
        raise ValueError(f"{text!r} is none of auto, cpu, cuda, cuda:N, mps")
    return text


class Parser(argparse.ArgumentParser):
    """An ArgumentParser that says what is wrong in one line."""

    def parse_args(self, args=None, namespace=None):
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("--") and word.endswith("=--"):  # which argparse takes for no value at all
                self.error(f"argument {word[:-3]}: '--' is no value")
        return super().parse_args(args, namespace)

    def error(self, message):
        """One line instead of argparse's usage block, with the same exit code 2."""
        unknown = re.search(r"unrecognized arguments: (--?[\w-]+)", message)
        if unknown:
            close = difflib.get_close_matches(unknown[1], self._option_string_actions, n=1)
            if close:
                meaning = self._option_string_actions[close[0]].help.replace("%%", "%")
                message += f"; did you mean {close[0]} ({meaning.partition(' (default')[0]})?"
        message = " ".join(message.splitlines())
        self.exit(2, f"{self.prog}: error: {message} (see {self.prog} --help)\n")


def argparse_type(parse, choices=None):
    """A function of text for argparse, with ValueErrors turned into its message; choices may be spelled freely."""

    def convert(text):
        try:
            return canonical_name(text, choices) if choices else parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def checkpoint_name(text):
    """last, all, or epoch_0005 (epoch_5 and 5 are taken for it)."""
    if text in ("last", "all"):
        return text
    epoch = re.fullmatch(r"(?:epoch_)?(\d{1,6})(?:\.pt)?", text)
    if epoch is None:
        raise ValueError(f"{text!r} is none of last, all, epoch_0005")
    return f"epoch_{int(epoch[1]):04d}"


def measurement_parser(script, measurement, description, samples, examples):
    """The parser of a command that measures runs; its own flags are added with add_flag."""
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


def add_flag(parser, name, default, help, parse=str, choices=None):
    """--name=value with its default in the help; a boolean may stand bare."""
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


def hessian_parser():
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
        f"{MOST_TIMES} times as many",
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


def class_similarity_parser():
    """The parser of run_class_similarity.py."""
    parser = measurement_parser(
        "run_class_similarity.py",
        "class_similarity",
        "Mean cosine between the class means of the features that the classifier pools, and how far samples lie from "
        "their class mean.",
        10000,
        """examples:
  python run_class_similarity.py                                every run not measured yet
  python run_class_similarity.py results/RUN --checkpoint=all   similarity over training
  python run_class_similarity.py --split=test                   on test images""",
    )
    add_flag(parser, "split", "train", "unaugmented images to measure on", choices=("train", "test"))
    add_flag(parser, "batch_size", 256, "images at once; changes memory and speed, and no result", count)
    add_flag(parser, "dtype", "float32", "of the network's arithmetic", choices=("float32", "float64"))
    return parser

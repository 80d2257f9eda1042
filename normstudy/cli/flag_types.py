"""What the values of flags may be."""

import argparse
import difflib
import math
import re


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


def device_name(text):
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", text):
        raise ValueError(f"{text!r} is none of auto, cpu, cuda, cuda:N, mps")
    return text


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

"""The types of flags: functions that parse a flag's text and raise ValueError if it is wrong."""

import argparse
import difflib
import math
import operator
import os
import re
from collections.abc import Callable, Sequence
from typing import TypeVar

BALANCES = ("equal", "proportional")  # shares of the classes in a subset: see normstudy/datasets/splits.py

Number = TypeVar("Number", int, float)


def _name_key(name: str) -> str:
    """Return the key that the spellings of a name share: instancenorm, Instance_Normalization, …"""
    key = re.sub(r"[\s_-]", "", name.lower()).replace("normalization", "norm").replace("evonormb0", "evonormbo")
    return key.replace("evonorms0", "evonormso")


def canonical_name(name: str, choices: Sequence[str]) -> str:
    """Return the entry of `choices` that `name` spells in any case or in its older long form.

    Raises ValueError if there is none.
    """
    by_key = {_name_key(choice): choice for choice in choices}
    if _name_key(name) in by_key:
        return by_key[_name_key(name)]
    close = difflib.get_close_matches(_name_key(name), by_key, n=1)
    hint = f"; did you mean {by_key[close[0]]}?" if close else ""
    raise ValueError(f"{name!r} is not one of {', '.join(choices)}{hint}")


def boolean(text: str) -> bool:
    """Parse True or False, in any case."""
    if text.lower() not in ("true", "false"):
        raise ValueError(f"{text!r} is neither True nor False")
    return text.lower() == "true"


def number(
    kind: type[Number],
    low: float | None = None,
    high: float | None = None,
    above: float | None = None,
    below: float | None = None,
) -> Callable[[str], Number]:
    """Return a parser of ints or finite floats within bounds (low, high inclusive; above, below exclusive)."""
    word = "a whole number" if kind is int else "a number"
    comparisons = (
        ("at least", low, operator.ge),
        ("at most", high, operator.le),
        ("above", above, operator.gt),
        ("below", below, operator.lt),
    )
    bounds = [(words, bound, holds) for words, bound, holds in comparisons if bound is not None]

    def parse(text: str) -> Number:
        try:
            value = kind(text)
        except ValueError:
            raise ValueError(f"{text!r} is not {word}") from None
        is_finite = isinstance(value, int) or math.isfinite(value)
        if not is_finite or not all(holds(value, bound) for _, bound, holds in bounds):
            wanted = " and ".join(f"{words} {bound}" for words, bound, _ in bounds)
            raise ValueError(f"{text} is not {word} {wanted}".rstrip())
        return value

    return parse


count = number(int, low=1, high=10**9)


def device_name(text: str) -> str:
    """Parse auto, cpu, cuda, cuda:N or mps. Whether the machine has the device is checked when torch is loaded."""
    if not re.fullmatch(r"auto|cpu|cuda(:\d+)?|mps", text):
        raise ValueError(f"{text!r} is not one of auto, cpu, cuda, cuda:N, mps")
    return text


def path_name(text: str) -> str:
    """Return a path with the home folder in place of a leading ~, which shells leave as it is in --flag=~/folder."""
    return os.path.expanduser(text)


def path_names(text: str) -> tuple[str, ...]:
    """Return the paths of a list that is separated by commas; see path_name. Raises ValueError if there are none."""
    paths = tuple(path_name(part) for part in text.split(",") if part.strip())
    if not paths:
        raise ValueError("give the paths of files, separated by commas")
    return paths


def checkpoint_name(text: str) -> str:
    """Parse last, all, or the name of a checkpoint: epoch_0005, which may also be spelled epoch_5 or 5."""
    if text in ("last", "all"):
        return text
    epoch = re.fullmatch(r"(?:epoch_)?(\d{1,6})(?:\.pt)?", text)
    if epoch is None:
        raise ValueError(f"{text!r} is not one of last, all, epoch_0005")
    return f"epoch_{int(epoch[1]):04d}"


def argparse_type(parse: Callable[[str], object], choices: Sequence[str] | None = None) -> Callable[[str], object]:
    """Return a type for argparse: `parse`, or canonical_name if there are choices.

    It raises ArgumentTypeError, whose text argparse shows.
    """

    def convert(text: str) -> object:
        try:
            return canonical_name(text, choices) if choices else parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from None

    return convert


def tag(text: str) -> str:
    """Return a word that can be part of a file name. Raises ValueError for other text."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", text) or "epoch" in text:
        raise ValueError(f"{text!r} is not a word of letters, digits and _ (without the word epoch)")
    return text

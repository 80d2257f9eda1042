"""The values of run_sweep.py's own flags: functions that parse a flag's text and raise ValueError if it is wrong."""

import re
import shlex

from normstudy.cli import UsageError, number
from normstudy.storage import MEASUREMENTS

RATE_AXES = ("init_lr", "lr")  # flags that --tune can choose


def tuning(text: str) -> tuple[str, tuple[float, ...]]:
    """Return (axis, its rates in ascending order) of a text such as init_lr:0.1,1."""
    axis, _, values = text.partition(":")
    if axis not in RATE_AXES:
        raise ValueError(f"{text!r} does not begin with {' or '.join(f'{each}:' for each in RATE_AXES)}")
    parse = number(float, above=0)
    rates = sorted({parse(value) for value in values.split(",")})
    if len(rates) < 2:
        raise ValueError(f"{text!r} has fewer than two rates to choose from")
    return axis, tuple(rates)


def slurm_minutes(text: str) -> int:
    """Return the minutes, rounded up, of a time in Slurm's notation."""
    pattern = r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?"
    found = re.fullmatch(pattern, text)
    if found is None:
        raise ValueError(f"{text!r} is not a time as minutes, hours:minutes:seconds or days-hours")
    days, *rest = found.groups()
    parts = [int(part) for part in rest if part is not None]
    if days is None and len(parts) < 3:  # minutes, minutes:seconds
        parts = [0, *parts]
    hours, minutes, seconds = (*parts, 0, 0)[:3]
    total = 60 * (24 * int(days or 0) + hours) + minutes + (seconds > 0)
    if total < 1:
        raise ValueError(f"{text!r} is not a time above zero")
    return total


def gpu_numbers(text: str) -> tuple[str, ...]:
    """Return the numbers of a text such as 0,1."""
    numbers = text.split(",")
    if not all(number.isdecimal() for number in numbers):
        raise ValueError(f"{text!r} is not a list of numbers such as 0,1")
    return tuple(numbers)


def measurements(text: str) -> tuple[str, ...]:
    """Return the measurements of a text such as hessian,measures; none for the text none."""
    names = () if text == "none" else tuple(text.split(","))
    unknown = [name for name in names if name not in MEASUREMENTS]
    if unknown:
        raise ValueError(f"{unknown[0]!r} is not one of {', '.join(MEASUREMENTS)}, none")
    return names


def split_words(text: str, flag: str) -> list[str]:
    """Split the value of a flag into words, as a shell does. Raises UsageError if a quotation mark is not closed."""
    try:
        return shlex.split(text)
    except ValueError as error:
        raise UsageError(f"--{flag}={text!r} cannot be split into flags: {str(error).lower()}") from None


def sbatch_flags(text: str) -> dict[str, str | bool]:
    """Return flags of sbatch as {name: value}. Raises UsageError for words of another form."""
    flags: dict[str, str | bool] = {}
    for word in split_words(text, "slurm_flags"):
        name, _, value = word.removeprefix("--").partition("=")
        if not word.startswith("--") or not name:
            raise UsageError(f"--slurm_flags: {word!r} is not of the form --name=value")
        flags[name] = value or True
    return flags

"""Durations as text: those of flags, such as 90m, 2h or 1h30m, and those of messages, such as 2 h or 1 h 30 min."""

import re

SECONDS = {"d": 86400, "h": 3600, "m": 60, "s": 1}
WORDS = {"d": "d", "h": "h", "m": "min", "s": "s"}


def parse_duration(text: str) -> int:
    """Return the seconds of a text such as 90m, 2h, 1h30m or 45s; a number alone counts minutes.

    Raises ValueError for other text and for a duration of zero.
    """
    found = re.fullmatch(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m)?(?:(\d+)s)?", f"{text}m" if text.isdecimal() else text)
    if not text.isascii() or found is None:
        raise ValueError(f"{text!r} is not a duration such as 90m, 2h or 1h30m")
    seconds = sum(int(value or 0) * unit for value, unit in zip(found.groups(), SECONDS.values(), strict=True))
    if seconds == 0:
        raise ValueError(f"{text!r} is not a duration above zero")
    return seconds


def describe_duration(seconds: float) -> str:
    """Return a duration in its two largest units, rounded: 45 s, 5 min, 1 h 30 min, 2 d 4 h."""
    step = 1 if seconds < 600 else 60 if seconds < SECONDS["d"] else SECONDS["h"]
    rest = round(seconds / step) * step
    parts = []
    for unit, size in SECONDS.items():
        count, rest = divmod(rest, size)
        if count:
            parts.append(f"{count} {WORDS[unit]}")
    return " ".join(parts[:2]) or "0 s"

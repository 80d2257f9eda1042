"""Durations of flags and of messages."""

import pytest

from normstudy.sweeps import durations


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 5400), ("90m", 5400), ("2h", 7200), ("1h30m", 5400), ("45s", 45), ("1d2h", 93600)]
)
def test_durations_are_read(text, seconds):
    assert durations.parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "0h", "2x", "h", "30m1h", "-5", "1.5h", "2 h", "²"])
def test_other_texts_are_refused(text):
    with pytest.raises(ValueError, match="is not a duration"):
        durations.parse_duration(text)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (0.4, "0 s"),
        (45, "45 s"),
        (90, "1 min 30 s"),
        (7200, "2 h"),
        (5400, "1 h 30 min"),
        (7229, "2 h"),
        (86399, "1 d"),
        (200000, "2 d 8 h"),
    ],
)
def test_durations_are_described_in_two_units(seconds, text):
    assert durations.describe_duration(seconds) == text

"""Orders that several parts of the report share."""

from collections.abc import Iterable, Mapping, Sequence


def in_order(values: Iterable[str], order: Sequence[str] | Mapping[str, object]) -> list[str]:
    """Return the distinct values: those named in `order` first, in that order, then the others alphabetically."""
    distinct = set(values)
    return [name for name in order if name in distinct] + sorted(distinct - set(order), key=str)


def ordered_groupings(groupings: Iterable[float]) -> list[float]:
    """Sort groupings from one channel per group (p = 1) to one group (p → 0), then by number of groups (p > 1)."""
    return sorted(groupings, key=lambda p: (p > 1, p if p > 1 else -p))

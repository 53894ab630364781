"""Sums over readings of which some may be missing."""

from __future__ import annotations

from collections.abc import Iterable


def whole_sum(values: Iterable[float | None]) -> float | None:
    """The sum of all values; None where one is missing, since a sum over some of them is another figure, and of none."""
    known = []
    for value in values:
        if value is None:
            return None
        known.append(value)
    return sum(known) if known else None

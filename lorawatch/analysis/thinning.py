"""Curves in bins: each bin keeps its lowest and highest value, so that no spike is hidden.

`storage/expressions.py` has the same as SQL.
"""

from __future__ import annotations

import math
from array import array


def bin_number(place: float, begin: float, width: float) -> int:
    """Which bin a place on the axis falls into, from 0; places before the first bin fall into the first."""
    return max(math.floor((place - begin) / width), 0)


class Bins:
    """The lowest and the highest value of each bin; NaN where none fell into it.

    Attributes:
        low, high: Shape (bins,).
    """

    __slots__ = ("high", "low")

    def __init__(self, count: int = 0) -> None:
        self.low = array("d", [math.nan]) * count
        self.high = array("d", [math.nan]) * count

    def __len__(self) -> int:
        return len(self.low)

    def put(self, number: int, low: float, high: float) -> None:
        """Let a bin cover these values as well; bins up to it are added where they are not there yet. NaN is no value."""
        if low != low:
            return
        missing = number + 1 - len(self.low)
        if missing > 0:
            self.low.extend([math.nan] * missing)
            self.high.extend([math.nan] * missing)
        if not self.low[number] <= low:  # also where it is NaN
            self.low[number] = low
        if not self.high[number] >= high:
            self.high[number] = high

    def cover(self, first: int, last: int, low: float, high: float) -> None:
        """Let each of these bins that is there cover these values as well."""
        for number in range(max(first, 0), min(last, len(self.low) - 1) + 1):
            self.put(number, low, high)

    def columns(self) -> list[tuple[float, float] | None]:
        """(lowest, highest) of each bin; None where nothing fell into it."""
        return [(low, high) if low == low else None for low, high in zip(self.low, self.high, strict=True)]

    def drop(self, count: int) -> None:
        """Forget the first bins."""
        del self.low[:count], self.high[:count]

    def halved(self) -> Bins:
        """Bins of twice the width; an odd last bin stands alone."""
        result = Bins((len(self.low) + 1) // 2)
        for number in range(len(self.low)):
            result.put(number // 2, self.low[number], self.high[number])
        return result

    def copy(self) -> Bins:
        """A copy that does not change with this one."""
        result = Bins()
        result.low, result.high = self.low[:], self.high[:]
        return result

"""Curves of bounded size that never hide a spike: each bin keeps the lowest and the highest value that fell into it."""

from __future__ import annotations

import math
from array import array
from dataclasses import dataclass

from lorawatch.analysis.thinning import Bins, bin_number

BINS = 512
HOLD_S = 2.5  # slow readings come once a second


@dataclass(frozen=True, slots=True, eq=False)
class CurveData:
    """A curve as it was at one moment; two are equal where every bin is, empty ones too.

    Attributes:
        start: Unix time of the first bin's left edge.
        width_s: Seconds a bin covers.
        low, high: Extremes a bin, NaN where nothing was read.
    """

    start: float
    width_s: float
    low: array[float]
    high: array[float]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, CurveData):
            return NotImplemented
        return (self.start, self.width_s, self.low.tobytes(), self.high.tobytes()) == (
            other.start, other.width_s, other.low.tobytes(), other.high.tobytes()
        )  # fmt: skip

    __hash__ = None  # type: ignore[assignment]

    @property
    def end(self) -> float:
        """Unix time of the last bin's right edge."""
        return self.start + len(self.low) * self.width_s

    def columns(self, begin: float, end: float, count: int) -> list[tuple[float, float] | None]:
        """The curve between two times as `count` equal columns of (lowest, highest); None where nothing was read.

        A bin wider than a column fills every column it covers, and a value holds until the next one where that comes
        within `HOLD_S`, so that slow readings leave no holes.
        """
        bins = Bins(count)
        step = (end - begin) / count if count else 0
        if step <= 0:
            return [None] * count
        before = -1
        for index, low in enumerate(self.low):
            if low != low:  # NaN
                continue
            left = self.start + index * self.width_s
            first = int((left - begin) / step)
            if 0 <= before < first - 1 and (first - before) * step <= HOLD_S + step:
                bins.cover(before + 1, first - 1, bins.low[before], bins.high[before])
            last = max(math.ceil((left + self.width_s - begin) / step) - 1, first)
            bins.cover(first, last, low, self.high[index])
            before = min(last, count - 1)
        return bins.columns()


class Curve:
    """Takes (time, value) and keeps at most `bins` extremes.

    Args:
        width_s: A bin's width to begin with.
        bins: How many at most.
        sliding: Forget the oldest quarter when full, for an endless monitor; else bins double their width, so that the
            curve always spans everything since its first value.
    """

    __slots__ = ("_kept", "_sliding", "_start", "_width", "bins", "last")

    def __init__(self, width_s: float = 0.25, bins: int = BINS, *, sliding: bool = False) -> None:
        self.bins = bins
        self.last: float | None = None
        self._start: float | None = None
        self._width = width_s
        self._sliding = sliding
        self._kept = Bins()

    def add(self, at: float, value: float | None) -> None:
        """Take one value; None and NaN leave a gap. A time before the first counts as the first (clocks step back)."""
        if value is None or not math.isfinite(value):
            return
        self.last = value
        if self._start is None:
            self._start = at
        index = bin_number(at, self._start, self._width)
        while index >= self.bins:
            if self._sliding:
                drop = max(self.bins // 4, index - self.bins + 1)
                self._kept.drop(drop)
                self._start += drop * self._width
                index -= drop
                if index >= self.bins:
                    continue
            else:
                self._kept = self._kept.halved()
                self._width *= 2
                index = bin_number(at, self._start, self._width)
        self._kept.put(index, value, value)

    def data(self) -> CurveData | None:
        """A copy for another thread; None before the first value."""
        if self._start is None:
            return None
        kept = self._kept.copy()
        return CurveData(self._start, self._width, kept.low, kept.high)

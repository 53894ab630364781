"""Energy over a window from a card's counter, with the integral of its power beside it."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorawatch.analysis.windows import Span, length

# Two power readings further apart than this say nothing about the time between them.
MAX_GAP_S = 5.0
# A window of which less than this share was read has no energy; the rest of a larger share is taken as the read part.
MIN_COVERED = 0.95


@dataclass(frozen=True)
class Energy:
    """Energy of one device over a window, joules; None where it was not read."""

    counter_j: float | None
    """By the counter; short ends of the window that lie outside its readings come from the power's integral."""
    integral_j: float | None
    """By instant power, trapezoidal."""

    @property
    def disagreement_pct(self) -> float | None:
        """How far the integral is from the counter, percent of the counter."""
        if not self.counter_j or self.integral_j is None:
            return None
        return 100 * (self.integral_j - self.counter_j) / self.counter_j


def energy_over(
    readings: Iterable[tuple[float, float | None, float | None]], spans: Sequence[Span], *, max_gap_s: float = MAX_GAP_S
) -> Energy:
    """A device's energy over a window, in one pass over its readings.

    The counter's difference between two readings is exact but coarse (a reading a second); where an edge of the window
    lies between two readings, their difference is shared out as the integral of instant power between them goes, and
    evenly where power was not read. A counter that runs backwards (the driver was loaded anew) says nothing about that
    stretch.

    Args:
        readings: (seconds, watts or None, counter in joules or None) in order of time.
        spans: The window: in order, without overlap, seconds of the same clock.
        max_gap_s: Longest time between two power readings that is interpolated.
    """
    window = length(spans)
    if window <= 0:
        return Energy(None, None)
    inside = _Window(spans)
    counter_j = counter_s = integral_j = integral_s = 0.0
    power_at: tuple[float, float] | None = None
    counter_at: tuple[float, float] | None = None
    # since the last counter reading: joules and seconds of power read, in all and inside the window
    all_j = all_s = in_j = in_s = 0.0
    outside_j = outside_s = 0.0  # inside the window, but in no stretch between two good counter readings
    for at, watts, joules in readings:
        if watts is not None:
            if power_at is not None and 0 < at - power_at[0] <= max_gap_s:
                energy, seconds = inside.integral(power_at, (at, watts))
                integral_j += energy
                integral_s += seconds
                all_j += (watts + power_at[1]) / 2 * (at - power_at[0])
                all_s += at - power_at[0]
                in_j += energy
                in_s += seconds
            power_at = (at, watts)
        if joules is not None:
            if counter_at is not None and joules >= counter_at[1] and at > counter_at[0]:
                seconds = inside.overlap(counter_at[0], at)
                stretch = at - counter_at[0]
                shaped = all_j > 0 and all_s >= 0.9 * stretch
                share = in_j / all_j if shaped else seconds / stretch
                counter_j += (joules - counter_at[1]) * share
                counter_s += seconds
            else:
                outside_j += in_j
                outside_s += in_s
            counter_at = (at, joules)
            all_j = all_s = in_j = in_s = 0.0
    outside_j += in_j
    outside_s += in_s
    return Energy(
        _whole(counter_j + outside_j, counter_s + outside_s, window) if counter_s > 0 else None,
        _whole(integral_j, integral_s, window),
    )


def _whole(joules: float, seconds: float, window_s: float) -> float | None:
    """Energy of the whole window from that of its read part; None where too little was read."""
    if seconds < MIN_COVERED * window_s:
        return None
    return joules * window_s / seconds


class _Window:
    """A window's spans, asked in order of time or not."""

    def __init__(self, spans: Sequence[Span]) -> None:
        self._spans = spans
        self._ends = [end for _, end in spans]

    def _pieces(self, begin: float, end: float) -> Iterable[Span]:
        for index in range(bisect.bisect_right(self._ends, begin), len(self._spans)):
            low, high = self._spans[index]
            if low >= end:
                return
            yield max(low, begin), min(high, end)

    def overlap(self, begin: float, end: float) -> float:
        """Seconds of [begin, end] inside the window."""
        return length(self._pieces(begin, end))

    def integral(self, first: tuple[float, float], second: tuple[float, float]) -> tuple[float, float]:
        """Joules and seconds inside the window, of power that goes straight from one reading to the next."""
        (t0, p0), (t1, p1) = first, second
        slope = (p1 - p0) / (t1 - t0)
        joules = seconds = 0.0
        for low, high in self._pieces(t0, t1):
            middle = p0 + slope * ((low + high) / 2 - t0)
            joules += middle * (high - low)
            seconds += high - low
        return joules, seconds

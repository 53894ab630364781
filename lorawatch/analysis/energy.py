"""Energy over a window from a card's counter, with the integral of its power beside it."""

from __future__ import annotations

import bisect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from lorawatch.analysis.throughput import rate
from lorawatch.analysis.windows import Span, length

# The time between two power readings further apart than this is not interpolated.
MAX_GAP_S = 5.0
# A window of which less than this share was read has no energy; of a larger share the rest is taken to be like the read part.
MIN_COVERED = 0.95


@dataclass(frozen=True)
class Energy:
    """Energy of one device over a window, joules; None where it was not read."""

    counter_j: float | None
    """By the counter; ends of the window outside its readings come from the power's integral."""
    integral_j: float | None
    """By instant power, trapezoidal."""

    @property
    def disagreement_pct(self) -> float | None:
        """How far the integral is from the counter, percent of the counter."""
        if not self.counter_j or self.integral_j is None:
            return None
        return 100 * (self.integral_j - self.counter_j) / self.counter_j


def tok_per_j(tokens: float | None, joules: float | None) -> float | None:
    """Tokens a joule, the same number as tok/s a watt: both of the same steps and the same GPUs.

    Args:
        tokens: Or tok/s.
        joules: Or watts, where the first is a rate.
    """
    return rate(tokens, joules)


def energy_over(
    readings: Iterable[tuple[float, float | None, float | None]], spans: Sequence[Span], *, max_gap_s: float = MAX_GAP_S
) -> Energy:
    """A device's energy over a window, in one pass over its readings.

    The counter's difference between two readings is exact but coarse (a reading a second); where an edge of the window
    lies between two readings, their difference is divided in proportion to the integral of instant power between
    them, and evenly where power was not read. A stretch in which the counter runs backwards (the driver was reloaded) is
    left out.

    Args:
        readings: (seconds, watts or None, counter in joules or None) in order of time.
        spans: The window: in order, without overlap, seconds of the same clock.
        max_gap_s: Longest time between two power readings that is interpolated.
    """
    window = length(spans)
    if window <= 0:
        return Energy(None, None)
    inside = _Window(spans)
    counter = _Counter(inside)
    integral_j = integral_s = 0.0
    power_at: tuple[float, float] | None = None
    waiting: list[
        tuple[float, float]
    ] = []  # counter readings since the last power reading: they divide the next stretch
    for at, watts, joules in readings:
        if watts is not None:
            whole = power_at is not None and 0 < at - power_at[0] <= max_gap_s
            for moment, counted in waiting:
                if whole and power_at is not None and power_at[0] < moment < at:
                    between = power_at[1] + (watts - power_at[1]) * (moment - power_at[0]) / (at - power_at[0])
                    counter.power(power_at, (moment, between))
                    energy, seconds = inside.integral(power_at, (moment, between))
                    integral_j, integral_s = integral_j + energy, integral_s + seconds
                    power_at = (moment, between)
                counter.reading(moment, counted)
            waiting.clear()
            if whole and power_at is not None and power_at[0] < at:
                counter.power(power_at, (at, watts))
                energy, seconds = inside.integral(power_at, (at, watts))
                integral_j, integral_s = integral_j + energy, integral_s + seconds
            power_at = (at, watts)
        if joules is not None:
            waiting.append((at, joules))
    for moment, counted in waiting:
        counter.reading(moment, counted)
    joules, seconds = counter.total()
    return Energy(
        _whole(joules, seconds, window) if counter.covered_s > 0 else None,
        _whole(integral_j, integral_s, window),
    )


class _Counter:
    """Divides the counter's differences between the window and the time around it."""

    def __init__(self, inside: _Window) -> None:
        self._inside = inside
        self._last: tuple[float, float] | None = None
        self._joules = 0.0
        self.covered_s = 0.0
        # since the last counter reading: joules and seconds of power read, in all and inside the window
        self._all_j = self._all_s = self._in_j = self._in_s = 0.0
        # inside the window, but in no stretch between two good counter readings
        self._outside_j = self._outside_s = 0.0

    def power(self, first: tuple[float, float], second: tuple[float, float]) -> None:
        """A stretch of power, linear from one moment to the next, between two counter readings."""
        energy, seconds = self._inside.integral(first, second)
        self._all_j += (first[1] + second[1]) / 2 * (second[0] - first[0])
        self._all_s += second[0] - first[0]
        self._in_j += energy
        self._in_s += seconds

    def reading(self, at: float, joules: float) -> None:
        """A reading of the counter closes the stretch since the one before."""
        last = self._last
        if last is not None and joules >= last[1] and at > last[0]:
            seconds = self._inside.overlap(last[0], at)
            stretch = at - last[0]
            shaped = self._all_j > 0 and self._all_s >= 0.9 * stretch
            self._joules += (joules - last[1]) * (self._in_j / self._all_j if shaped else seconds / stretch)
            self.covered_s += seconds
        else:
            self._outside_j += self._in_j
            self._outside_s += self._in_s
        self._last = (at, joules)
        self._all_j = self._all_s = self._in_j = self._in_s = 0.0

    def total(self) -> tuple[float, float]:
        """Joules inside the window and the seconds they cover; time that no two readings enclose is taken from the power."""
        return self._joules + self._outside_j + self._in_j, self.covered_s + self._outside_s + self._in_s


def _whole(joules: float, seconds: float, window_s: float) -> float | None:
    """Energy of the whole window from that of its read part; None where too little was read."""
    if seconds < MIN_COVERED * window_s:
        return None
    return joules * window_s / seconds


class _Window:
    """A window's spans, for questions in any order of time."""

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
        """Joules and seconds inside the window, of power that is linear from one reading to the next."""
        (t0, p0), (t1, p1) = first, second
        slope = (p1 - p0) / (t1 - t0)
        joules = seconds = 0.0
        for low, high in self._pieces(t0, t1):
            middle = p0 + slope * ((low + high) / 2 - t0)
            joules += middle * (high - low)
            seconds += high - low
        return joules, seconds

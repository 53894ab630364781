"""Windows of time: the stretches in which steps ran, without the evaluations and checkpoints between them."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Sequence
from math import inf

Span = tuple[float, float]
"""Begin and end, seconds of one clock; the end is not before the beginning."""


STEP_JOIN_S = 0.02
"""Ends of neighbouring steps are read by several processes' clocks: a gap shorter than this is no pause, unless a rank
reported that it evaluates or saves."""


def union(spans: Iterable[Span], *, join_s: float = 0.0, pauses: Sequence[float] = ()) -> list[Span]:
    """Spans in order, without overlap.

    Args:
        spans: In any order.
        join_s: Gaps up to this many seconds are closed: neighbouring steps whose clocks were read at slightly
            different times are one stretch.
        pauses: Moments in order; a gap that has one in it or as close to it as `join_s` stays, however short.
    """

    def is_pause(begin: float, end: float) -> bool:
        at = bisect_left(pauses, begin - join_s)
        return at < len(pauses) and pauses[at] <= end + join_s

    joined: list[Span] = []
    for begin, end in sorted(spans):
        last = joined[-1][1] if joined else -inf
        if begin <= last or (begin <= last + join_s and not is_pause(last, begin)):
            joined[-1] = (joined[-1][0], max(last, end))
        else:
            joined.append((begin, end))
    return joined


def common(stretches: Iterable[list[Span]]) -> list[Span]:
    """The time that is in all of them, in order; empty without stretches.

    Args:
        stretches: Each in order and without overlap, as `union` returns.
    """
    shared: list[Span] | None = None
    for spans in stretches:
        shared = spans if shared is None else _both(shared, spans)
    return shared or []


def _both(ours: list[Span], theirs: list[Span]) -> list[Span]:
    overlaps: list[Span] = []
    i = j = 0
    while i < len(ours) and j < len(theirs):
        begin, end = max(ours[i][0], theirs[j][0]), min(ours[i][1], theirs[j][1])
        if end > begin:
            overlaps.append((begin, end))
        if ours[i][1] < theirs[j][1]:
            i += 1
        else:
            j += 1
    return overlaps


def length(spans: Iterable[Span]) -> float:
    """Seconds covered by spans that do not overlap."""
    return sum(end - begin for begin, end in spans)

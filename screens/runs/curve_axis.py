"""The axis of a run's curves: the part that is shown, its ticks, and the values under the cursor."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from statistics import median_low
from typing import TYPE_CHECKING

from lorawatch.analysis.thinning import Bins
from lorawatch.text.numbers import duration

if TYPE_CHECKING:
    from lorawatch.storage.curves import Curves, Thinned

Line = list[tuple[str, str]]
"""Texts and the part each belongs to: a component class without its `plot--`."""
Column = tuple[float, float] | None
HOLD_BINS = 3  # a value holds for so many times the usual distance to the next; a longer gap is a pause
_TIME_TICKS = (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600, 7200, 10800,
               14400, 21600, 43200, 86400, 172800, 604800)  # fmt: skip


@dataclass(frozen=True)
class View:
    """The part of the curves that is shown.

    Attributes:
        begin, end: The part of the axis.
        cursor: A place on it.
        rank: One rank; None for all together.
        each: Whether each rank has a row.
        metric: Only this curve.
        top: The first of the rows of ranks.
        note: Words for the heading.
    """

    begin: float
    end: float
    cursor: float
    rank: int | None = None
    each: bool = False
    metric: str | None = None
    top: int = 0
    note: str = ""


def columns(curve: Thinned, begin: float, end: float, count: int) -> list[Column]:
    """The curve between two places as `count` equal columns of (lowest, highest); None where nothing was recorded.

    A bin wider than a column fills every column it covers, and a value holds until the next where that is not much
    further away than usual.
    """
    result = Bins(count)
    step = (end - begin) / count if count else 0.0
    if step <= 0:
        return result.columns()
    filled = [i for i, low in enumerate(curve.low) if low == low]
    usual = median_low([b - a for a, b in pairwise(filled)] or [1])
    before, known_at = -1, None
    for index in filled:
        left = (curve.start + index * curve.width - begin) / step
        first = math.floor(left + 1e-6)
        last = max(math.ceil(left + curve.width / step - 1e-6) - 1, first)
        if known_at is not None and index - known_at <= HOLD_BINS * usual:
            result.cover(before + 1, first - 1, curve.low[known_at], curve.high[known_at])
        result.cover(first, last, curve.low[index], curve.high[index])
        before, known_at = last, index
        if first >= count:
            break
    return result.columns()


def cell_of(view: View, cells: int) -> int:
    """The cell of a plot that the cursor is in."""
    return min(max(int((view.cursor - view.begin) / (view.end - view.begin) * cells), 0), cells - 1)


def under_cursor(curve: Thinned, view: View, cells: int) -> slice:
    """The columns, two a cell, that the cursor is on: the cell's; only the one where a bin is wider than a cell."""
    at = cell_of(view, cells)
    if curve.width * cells > view.end - view.begin:
        column = min(max(int((view.cursor - view.begin) / (view.end - view.begin) * 2 * cells), 0), 2 * cells - 1)
        return slice(column, column + 1)
    return slice(2 * at, 2 * at + 2)


def axis_line(curves: Curves, view: View, left: int, cells: int, alone: bool) -> Line:
    """Ticks under the only plot; under several, where they all begin and end."""
    if not alone:
        ends = (
            (_since(view.begin - curves.began_at, 1), _since(view.end - curves.began_at, 1))
            if curves.axis == "time"
            else (f"step {math.floor(view.begin):,}", f"step {math.ceil(view.end) - 1:,}")
        )
        return [(f" each from {ends[0]} to {ends[1]}", "label")]
    span = view.end - view.begin
    origin = curves.began_at if curves.axis == "time" else 0.0
    step = _tick(span / max(cells / 14, 1), curves.axis)
    line = [" "] * cells
    number = math.ceil((view.begin - origin) / step - 1e-9)
    while (place := (origin + number * step - view.begin) / span * cells) < cells:
        text = "╵" + _label(curves, origin + number * step, step)
        start = max(int(place), 0)
        if start + len(text) <= cells and all(c == " " for c in line[max(start - 1, 0) : start + len(text)]):
            line[start : start + len(text)] = text
        number += 1
    at = cell_of(view, cells)
    return [(" " * left + "".join(line[:at]), "label"), (line[at], "cursor"), ("".join(line[at + 1 :]), "label")]


def _tick(least: float, axis: str) -> float:
    if axis == "time":
        return next((t for t in _TIME_TICKS if t >= least), _TIME_TICKS[-1] * math.ceil(least / _TIME_TICKS[-1]))
    power = 10 ** max(math.floor(math.log10(max(least, 1))), 0)
    return float(next(power * n for n in (1, 2, 5, 10) if power * n >= least or n == 10))


def _label(curves: Curves, x: float, step: float) -> str:
    if curves.axis == "step":
        return f"{round(x):,}"
    return _since(x - curves.began_at, step)


def _since(seconds: float, step: float) -> str:
    """Time into the run, with as many digits as the distance between two of them needs."""
    seconds = max(seconds, 0.0)
    if step >= 1:
        return duration(seconds)
    digits = 1 if step >= 0.1 else 2
    tenths = round(seconds * 10**digits)
    return f"{duration(tenths // 10**digits)}.{tenths % 10**digits:0{digits}}"


def place_words(
    curves: Curves, series: Mapping[int | None, Mapping[str, Thinned]], view: View, cells: int, width: int
) -> str:
    """Step and time under the cursor."""
    at, span = cell_of(view, cells), (view.end - view.begin) / cells
    other = next((s[name] for s in series.values() for name in ("step", "at") if name in s), None)
    cells_of_other = columns(other, view.begin, view.end, 2 * cells) if other is not None else []
    here = [c for c in cells_of_other[under_cursor(other, view, cells)] if c is not None] if other is not None else []
    low, high = (min(c[0] for c in here), max(c[1] for c in here)) if here else (None, None)
    if curves.axis == "step":
        first = math.floor(view.begin + at * span + 1e-9 if span >= 1 else view.cursor)
        last = math.ceil(view.begin + (at + 1) * span - 1e-9) - 1 if span >= 1 else first
        steps, when = _steps(first, max(last, first)), low
    else:
        when = view.begin + (at + 0.5) * span
        steps = _steps(int(low), int(high)) if low is not None and high is not None else _beside(other, when)
    if curves.steps and width >= 60:
        steps += f" of {curves.steps:,}"
    words = [steps]
    if when is not None:
        words.append(_since(when - curves.began_at, span if curves.axis == "time" else 0.1) + " into the run")
        words.append(time.strftime("%Y-%m-%d %H:%M:%S" if width >= 80 else "%H:%M:%S", time.localtime(when)))
    return (" " + " · ".join(words))[:width]


def _steps(first: int, last: int) -> str:
    return f"step {first:,}" if first == last else f"steps {first:,}–{last:,}"


def _beside(steps: Thinned | None, when: float) -> str:
    """Text for a time far from the end of any step."""
    if steps is None:
        return "no step"
    before = [high for i, high in enumerate(steps.high) if high == high and steps.start + i * steps.width <= when]
    return f"after step {int(before[-1]):,}" if before else "before the first step"

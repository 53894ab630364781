"""Charts as geometry: throughput by GPU count with its ideal line, and bars. Templates draw them as SVG.

Positions and lengths are in units of the SVG's view box, from its top left corner.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

COLOURS = ("#2563eb", "#d97706", "#059669", "#dc2626", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_DASHES = {"measured": "", "published": "6 4", "extrapolated": "2 4", "simulated": "1 3"}
_LOOKS = {
    "measured": "filled: measured",
    "published": "hollow, dashed: published",
    "extrapolated": "hollow, dotted: extrapolated",
    "simulated": "hollow, finely dotted: simulated",
}
_WIDTH, _HEIGHT = 560, 320
_LEFT, _TOP, _RIGHT, _BOTTOM = 64, 34, 544, 276  # edges of the area that curves are drawn in
_BARS_WIDTH, _BARS_LEFT, _BARS_TOP, _BARS_BELOW = 1120, 320, 34, 10
_BAR_PITCH, _BAR_HEIGHT = 22, 14
_BAR_WORDS_ROOM = 90  # right of the longest bar
_SIDE_ROOM = 0.2  # in GPUs: between the first and last count and the edges
_BELOW_LOWEST = 0.15  # share of the values' span that an axis without a fixed start begins below the lowest


@dataclass(frozen=True, slots=True)
class Dot:
    """A point: GPUs, value, and the half width of its interval."""

    x: int
    y: float
    half: float | None
    provenance: str


@dataclass(frozen=True, slots=True)
class Series:
    """A line of the chart: one SKU from one source."""

    name: str
    dots: tuple[Dot, ...]


@dataclass(frozen=True, slots=True)
class Line:
    """A straight line from one point to another."""

    x1: float
    y1: float
    x2: float
    y2: float


@dataclass(frozen=True, slots=True)
class Tick:
    """A labelled position on an axis."""

    at: float
    label: str


@dataclass(frozen=True, slots=True)
class Part:
    """A line between two neighbouring points; `dash` is the SVG's stroke-dasharray of its provenance."""

    line: Line
    dash: str


@dataclass(frozen=True, slots=True)
class Mark:
    """A drawn point with its interval, if it has one; `words` show where the pointer rests."""

    x: float
    y: float
    filled: bool
    interval: Line | None
    words: str


@dataclass(frozen=True, slots=True)
class Curve:
    """A series as drawn; `ideal` is n × its one-GPU value."""

    colour: str
    ideal: Line | None
    parts: tuple[Part, ...]
    marks: tuple[Mark, ...]


@dataclass(frozen=True, slots=True)
class LineChart:
    """Curves over the number of GPUs, inside `left`, `right` and `bottom`."""

    title: str
    value_ticks: tuple[Tick, ...]
    count_ticks: tuple[Tick, ...]
    curves: tuple[Curve, ...]
    width: int = _WIDTH
    height: int = _HEIGHT
    left: int = _LEFT
    right: int = _RIGHT
    bottom: int = _BOTTOM


@dataclass(frozen=True, slots=True)
class Bar:
    """A horizontal bar; `words` stand behind it."""

    top: float
    width: float
    label: str
    words: str
    filled: bool
    dash: str


@dataclass(frozen=True, slots=True)
class BarChart:
    """Horizontal bars below each other; a label longer than `label_letters` is cut."""

    title: str
    bars: tuple[Bar, ...]
    height: int
    width: int = _BARS_WIDTH
    left: int = _BARS_LEFT
    bar_height: int = _BAR_HEIGHT
    label_letters: int = 50
    colour: str = COLOURS[0]


@dataclass(frozen=True, slots=True)
class Key:
    """A colour and the series that it stands for."""

    colour: str
    name: str


@dataclass(frozen=True, slots=True)
class Legend:
    """Which colour is which series, and which line style means what."""

    keys: tuple[Key, ...]
    looks: tuple[str, ...]


def line_chart(
    title: str, series: Sequence[Series], *, ideal: bool = False, least: float | None = 0.0, unit: str = ""
) -> LineChart | None:
    """A curve a series over the number of GPUs; None where no series has a point.

    Args:
        ideal: Add n × one GPU of each series as a thin line.
        least: Where the axis begins; None: a little below the lowest value.
    """
    coloured = [(COLOURS[i % len(COLOURS)], one) for i, one in enumerate(series) if one.dots]
    counts = sorted({dot.x for _, one in coloured for dot in one.dots})
    if not counts:
        return None
    levels = _levels([one for _, one in coloured], ideal=ideal, least=least)
    plot = _Plot(min(1, counts[0]) - _SIDE_ROOM, max(counts[-1], 2) + _SIDE_ROOM, levels[0], levels[-1])
    return LineChart(
        title=title,
        value_ticks=tuple(Tick(plot.y(level), f"{level:,.6g}{unit}") for level in levels),
        count_ticks=tuple(Tick(plot.x(count), str(count)) for count in counts),
        curves=tuple(_curve(one, colour, plot, ideal=ideal) for colour, one in coloured),
    )


@dataclass(frozen=True, slots=True)
class _Plot:
    """Maps GPU counts and values to positions inside the chart's area."""

    first: float
    last: float
    low: float
    high: float

    def x(self, count: float) -> float:
        return _LEFT + (count - self.first) / (self.last - self.first) * (_RIGHT - _LEFT)

    def y(self, value: float) -> float:
        return _BOTTOM - (value - self.low) / (self.high - self.low) * (_BOTTOM - _TOP)


def _levels(series: Sequence[Series], *, ideal: bool, least: float | None) -> list[float]:
    """The value axis: round numbers that enclose every value with its interval, and the ideal lines."""
    dots = [dot for one in series for dot in one.dots]
    high = max(dot.y + (dot.half or 0.0) for dot in dots)
    low = min(dot.y - (dot.half or 0.0) for dot in dots)
    if ideal:
        high = max([high, *(one.dots[0].y * one.dots[-1].x for one in series if one.dots[0].x == 1)])
    return ticks(least if least is not None else low - (high - low or abs(high)) * _BELOW_LOWEST, high)


def _curve(series: Series, colour: str, plot: _Plot, *, ideal: bool) -> Curve:
    """A series' lines, intervals and dots."""
    first, last = series.dots[0], series.dots[-1]
    ideal_line = None
    if ideal and first.x == 1:
        ideal_line = Line(plot.x(1), plot.y(first.y), plot.x(last.x), plot.y(first.y * last.x))
    parts = (
        Part(Line(plot.x(a.x), plot.y(a.y), plot.x(b.x), plot.y(b.y)), _DASHES.get(b.provenance, ""))
        for a, b in zip(series.dots, series.dots[1:], strict=False)
    )
    return Curve(colour, ideal_line, tuple(parts), tuple(_mark(series.name, dot, plot) for dot in series.dots))


def _mark(name: str, dot: Dot, plot: _Plot) -> Mark:
    """A dot with its interval, which never goes below the axis."""
    x, interval = plot.x(dot.x), None
    if dot.half:
        interval = Line(x, plot.y(max(dot.y - dot.half, plot.low)), x, plot.y(dot.y + dot.half))
    words = f"{name}: {dot.x} GPU{'' if dot.x == 1 else 's'}, {dot.y:,.4g} ({dot.provenance})"
    return Mark(x, plot.y(dot.y), dot.provenance == "measured", interval, words)


def bar_chart(title: str, values: Sequence[tuple[str, float, str, str]]) -> BarChart | None:
    """A horizontal bar a row; None without a row.

    Args:
        values: Label, value, the value's words, provenance.
    """
    if not values:
        return None
    largest = max(value for _, value, _, _ in values) or 1.0
    longest = _BARS_WIDTH - _BARS_LEFT - _BAR_WORDS_ROOM
    bars = tuple(
        Bar(
            top=_BARS_TOP + index * _BAR_PITCH,
            width=max(longest * value / largest, 1.0),
            label=label,
            words=words,
            filled=provenance == "measured",
            dash=_DASHES.get(provenance, ""),
        )
        for index, (label, value, words, provenance) in enumerate(values)
    )
    return BarChart(title, bars, _BARS_TOP + _BAR_PITCH * len(values) + _BARS_BELOW)


def legend(series: Sequence[Series]) -> Legend:
    """Names beside their colours; which line style means what."""
    keys = tuple(Key(COLOURS[i % len(COLOURS)], one.name) for i, one in enumerate(series))
    seen = {dot.provenance for one in series for dot in one.dots}
    return Legend(keys, (*(look for provenance, look in _LOOKS.items() if provenance in seen), "thin: ideal scaling"))


def ticks(low: float, high: float) -> list[float]:
    """About five round numbers that enclose both."""
    span = (high - low) or abs(high) or 1.0
    step = 10 ** math.floor(math.log10(span / 4))
    step = next(s for s in (step, 2 * step, 5 * step, 10 * step) if span / s <= 5)
    first, last = math.floor(low / step), math.ceil(high / step)
    return [n * step for n in range(first, last + 1)] if last > first else [first * step, (first + 1) * step]

"""Figures over the number of GPUs: a letter for each series, a glyph for each provenance, a dotted line for the ideal."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING

from rich.segment import Segment
from rich.style import Style
from textual.strip import Strip
from textual.widget import Widget

from lorawatch.comparing.charts import ticks
from lorawatch.screens.shared.figure_table import GLYPHS, elide

if TYPE_CHECKING:
    from lorawatch.comparing.charts import Series

LETTERS = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"
COLOURS = 6
_NARROW = 100
_DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))
# Dots drawn, dots left out, along a line.
_DASHES = {"measured": (1, 0), "published": (5, 3), "extrapolated": (1, 2), "simulated": (1, 4)}
_IDEAL = (1, 3)


@dataclass(frozen=True)
class Chart:
    """What is drawn.

    Attributes:
        ideal: `linear` for n × one GPU of each series, `level` for 100, or nothing.
        least: Where the axis begins; None for a little below the lowest value.
    """

    series: tuple[Series, ...]
    unit: str = ""
    ideal: str = ""
    least: float | None = 0.0


class _Canvas:
    """Braille dots in cells, each in the style of the last drawing there, and letters above them."""

    def __init__(self, width: int, height: int) -> None:
        self.width, self.height = width, height
        self.dots = [[0] * width for _ in range(height)]
        self.styles = [[""] * width for _ in range(height)]
        self.letters: dict[tuple[int, int], tuple[str, str]] = {}

    def dot(self, x: int, y: int, style: str) -> None:
        """A dot; two columns and four rows of them a cell, from the top left."""
        column, row = x // 2, y // 4
        if 0 <= column < self.width and 0 <= row < self.height:
            self.dots[row][column] |= _DOTS[x % 2][y % 4]
            self.styles[row][column] = style

    def line(self, a: tuple[int, int], b: tuple[int, int], style: str, dash: tuple[int, int]) -> None:
        long = max(abs(b[0] - a[0]), abs(b[1] - a[1]), 1)
        for n in range(long + 1):
            if n % sum(dash) < dash[0]:
                self.dot(round(a[0] + (b[0] - a[0]) * n / long), round(a[1] + (b[1] - a[1]) * n / long), style)

    def letter(self, column: int, row: int, text: str, style: str) -> None:
        """In the first free cell from here to the right, within reach."""
        for at in range(column, min(column + 4, self.width)):
            if (at, row) not in self.letters:
                self.letters[at, row] = (text, style)
                return

    def cells(self, row: int) -> Iterator[tuple[str, str]]:
        """The row's text, in pieces of one style."""

        def cell(column: int) -> tuple[str, str]:
            dots = self.dots[row][column]
            return self.letters.get((column, row)) or (
                (chr(0x2800 + dots), self.styles[row][column]) if dots else (" ", "")
            )

        for style, group in groupby(map(cell, range(self.width)), key=itemgetter(1)):
            yield "".join(text for text, _ in group), style


class ScalingChart(Widget):
    """Draws the chart of the last `show` in its own size."""

    COMPONENT_CLASSES = {"chart--label", *(f"chart--{n}" for n in range(COLOURS))}  # noqa: RUF012
    DEFAULT_CSS = """
    ScalingChart { height: 1fr; }
    ScalingChart .chart--label { color: $text-muted; }
    ScalingChart .chart--0 { color: $text-primary; }
    ScalingChart .chart--1 { color: $text-warning; }
    ScalingChart .chart--2 { color: $text-success; }
    ScalingChart .chart--3 { color: $text-error; }
    ScalingChart .chart--4 { color: $foreground 65%; }
    ScalingChart .chart--5 { color: $foreground; }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.chart = Chart(())
        self._lines: list[list[tuple[str, str]]] | None = None

    def show(self, chart: Chart) -> None:
        """Draw this."""
        self.chart = chart
        self._lines = None
        self.refresh()

    def on_resize(self) -> None:
        self._lines = None

    def render_line(self, y: int) -> Strip:
        if self._lines is None:
            self._lines = list(draw(self.chart, self.size.width, self.size.height))
        cells = self._lines[y] if y < len(self._lines) else []
        return Strip([Segment(text, self._look(style)) for text, style in cells]).adjust_cell_length(
            self.size.width, self.rich_style
        )

    def _look(self, style: str) -> Style:
        name, _, dim = style.partition(" ")
        if not name:
            return self.rich_style
        return self.get_component_rich_style(f"chart--{name}") + Style(dim=bool(dim) or None)


def draw(chart: Chart, width: int, height: int) -> Iterator[list[tuple[str, str]]]:
    """The chart's lines from the top, as (text, style): the names, the plot with its axis, the counts."""
    drawn = [(i, s) for i, s in enumerate(chart.series) if s.dots]
    if not drawn:
        yield [(" nothing of this was measured", "label")]
        return
    names = list(_names(drawn, width, max(height // 3, 1)))
    yield from names
    rows = height - len(names) - 2
    if rows < 2 or width < 16:
        return
    counts = sorted({d.x for _, s in drawn for d in s.dots})
    marks, bottom, top = _scale(chart, [s for _, s in drawn], rows)
    labels = [f"{m:,.6g}{chart.unit}" for m in marks]
    left = max(len(text) for text in labels) + 1
    canvas = _Canvas(width - left - 1, rows)
    x_low, x_high = min(1, counts[0]) - 0.25, max(counts[-1], 2) + 0.35

    def place(count: float, value: float) -> tuple[int, int]:
        return (
            round((count - x_low) / (x_high - x_low) * (2 * canvas.width - 1)),
            round((top - value) / (top - bottom) * (4 * rows - 1)),
        )

    _plot(chart, drawn, canvas, place)
    at = {place(counts[0], mark)[1] // 4: text for mark, text in zip(marks, labels, strict=True)}
    for row in range(rows):
        yield [(f"{at.get(row, ''):>{left - 1}} ", "label"), ("┤" if row in at else "│", "label"), *canvas.cells(row)]
    yield from _below(counts, lambda count: place(count, bottom)[0] // 2, left, canvas.width)


def _names(drawn: Sequence[tuple[int, Series]], width: int, most: int) -> Iterator[list[tuple[str, str]]]:
    """The series' letters and names, in at most `most` lines."""
    line: list[tuple[str, str]] = []
    used, named, lines = 0, 0, 1
    for index, series in drawn:
        glyph = GLYPHS.get(series.dots[0].provenance, "?")
        name = series.name if width >= _NARROW else series.name.removesuffix(f" ({series.dots[0].provenance})")
        text = elide(f" {glyph}{LETTERS[index % 26]} {name} ", width - 1)
        if used + len(text) > width - (10 if named + 1 < len(drawn) and lines == most else 0) and line:
            if lines == most:
                line.append((f" … {len(drawn) - named} more", "label"))
                break
            yield line
            line, used, lines = [], 0, lines + 1
        line.append((text, str(index % COLOURS)))
        used, named = used + len(text), named + 1
    yield line


def _scale(chart: Chart, series: Sequence[Series], rows: int) -> tuple[list[float], float, float]:
    """Round numbers along the axis, as many as there is room for, and the axis' ends."""
    dots = [d for s in series for d in s.dots]
    high = max(d.y + (d.half or 0.0) for d in dots)
    low = min(d.y - (d.half or 0.0) for d in dots)
    if chart.ideal == "linear":
        high = max([high, *(s.dots[0].y * s.dots[-1].x for s in series if s.dots[0].x == 1)])
    elif chart.ideal == "level":
        high, low = max(high, 100.0), min(low, 100.0)
    marks = ticks(chart.least if chart.least is not None else low - (high - low or abs(high)) * 0.15, high)
    bottom = marks[0]
    top = min(marks[-1], high + (high - bottom) * 0.04)
    marks = [mark for mark in marks if mark <= top]
    while len(marks) > max((rows + 1) // 2, 2):
        marks = marks[::-1][::2][::-1] if chart.ideal == "level" else marks[::2]
    return marks, bottom, top


def _plot(
    chart: Chart, drawn: Sequence[tuple[int, Series]], canvas: _Canvas, place: Callable[[float, float], tuple[int, int]]
) -> None:
    for index, series in drawn:
        dim = f"{index % COLOURS} dim"
        first, last = series.dots[0], series.dots[-1]
        if chart.ideal == "linear" and first.x == 1 < last.x:
            canvas.line(place(1, first.y), place(last.x, first.y * last.x), dim, _IDEAL)
    if chart.ideal == "level":
        dots = [d for _, s in drawn for d in s.dots]
        canvas.line(place(min(d.x for d in dots), 100), place(max(d.x for d in dots), 100), "label", _IDEAL)
    for index, series in drawn:
        for before, dot in pairwise(series.dots):
            dash = _DASHES.get(dot.provenance, (1, 1))
            canvas.line(place(before.x, before.y), place(dot.x, dot.y), str(index % COLOURS), dash)
        for dot in series.dots:
            if dot.half:
                canvas.line(
                    place(dot.x, dot.y - dot.half), place(dot.x, dot.y + dot.half), str(index % COLOURS), (1, 0)
                )
    points = [(index, dot, place(dot.x, dot.y)) for index, s in drawn for dot in s.dots]
    for index, dot, (x, y) in points:
        canvas.letters.setdefault((x // 2, y // 4), (GLYPHS.get(dot.provenance, "?"), str(index % COLOURS)))
    for index, _, (x, y) in points:
        canvas.letter(x // 2 + 1, y // 4, LETTERS[index % 26], str(index % COLOURS))


def _below(
    counts: Sequence[int], place: Callable[[int], int], left: int, width: int
) -> Iterator[list[tuple[str, str]]]:
    """The axis of the numbers of GPUs; a number that would touch another is left out."""
    axis, numbers = ["─"] * width, [" "] * width
    free = 0
    for count in counts:
        at, text = min(max(place(count), 0), width - 1), str(count)
        if at < free or at + len(text) > width:
            continue
        axis[at] = "┴"
        numbers[at : at + len(text)] = text
        free = at + len(text) + 1
    word = " GPUs"
    if width - free >= len(word):
        numbers[width - len(word) :] = word
    yield [(" " * left + "└" + "".join(axis), "label")]
    yield [(" " * (left + 1) + "".join(numbers), "label")]

"""A curve as the cells of a plot, and the plot's text: its band and mean, the evaluations, the cursor."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING

from lorawatch.screens.runs.curve_axis import Column, Line, View, columns, under_cursor
from lorawatch.screens.shared.braille import DOTS, braille, dot

if TYPE_CHECKING:
    from lorawatch.storage.curves import Thinned

EVALUATED, LOWEST = "◆", "★"
CURSOR = "│"
_FULL = "⣿"


@dataclass(frozen=True)
class Mark:
    """An evaluation: its place on the axis, its loss, and whether that is the lowest."""

    place: float
    loss: float
    lowest: bool

    @property
    def glyph(self) -> str:
        return LOWEST if self.lowest else EVALUATED


@dataclass(frozen=True)
class Cells:
    """A curve as the cells of a plot.

    Attributes:
        extremes, means: Two columns a cell.
        under_cursor: The columns that the cursor is on.
        bad: The cells in which it was no number.
        marks: Evaluations by cell.
    """

    extremes: list[Column]
    means: list[Column]
    under_cursor: slice
    bad: frozenset[int]
    marks: Mapping[int, Mark] = field(default_factory=dict)

    @property
    def levels(self) -> list[Column]:
        """The marks as columns."""
        return [(mark.loss, mark.loss) for mark in self.marks.values()]


def cells_of(series: Mapping[str, Thinned], name: str, view: View, cells: int, marks: Sequence[Mark]) -> Cells:
    """A metric's curve in a plot of `cells` columns; evaluations and bad values belong to the loss only."""
    is_loss = name == "loss"
    curve, bad_loss = series.get(name), series.get("loss_bad") if is_loss else None
    by_cell = _marks_by_cell(marks, view, cells) if is_loss else {}
    bad = frozenset() if bad_loss is None else _places(bad_loss, view, cells)
    if curve is None:
        nothing: list[Column] = [None] * (2 * cells)
        return Cells(nothing, nothing, slice(0), bad, by_cell)
    means = replace(curve, low=curve.mean, high=curve.mean)
    return Cells(
        columns(curve, view.begin, view.end, 2 * cells),
        columns(means, view.begin, view.end, 2 * cells),
        under_cursor(curve, view, cells),
        bad,
        by_cell,
    )


def _marks_by_cell(marks: Sequence[Mark], view: View, cells: int) -> dict[int, Mark]:
    """The marks that are seen, by cell; of several in one the lowest, else the last."""
    by_cell: dict[int, Mark] = {}
    for mark in marks:
        cell = math.floor((mark.place - view.begin) / (view.end - view.begin) * cells)
        if 0 <= cell < cells and not (cell in by_cell and by_cell[cell].lowest):
            by_cell[cell] = mark
    return by_cell


def _places(curve: Thinned, view: View, cells: int) -> frozenset[int]:
    """The cells in which the curve has something."""
    step = (view.end - view.begin) / cells
    known = (i for i, low in enumerate(curve.low) if low == low)
    return frozenset(math.floor((curve.start + (i + 0.5) * curve.width - view.begin) / step) for i in known)


def span_of(curves: Iterable[Sequence[Column]]) -> tuple[float, float]:
    """The lowest and the highest value; not a number where there is none."""
    known = [column for curve in curves for column in curve if column is not None]
    return (min(low for low, _ in known), max(high for _, high in known)) if known else (math.nan, math.nan)


def plot_lines(curve: Cells, rows: int, span: tuple[float, float], cursor: int, part: str) -> list[Line]:
    """The plot itself, with the cursor, ◆ and ★ where evaluations were, and ✗ where the loss was no number.

    The band from the lowest to the highest is dimmed and the mean is a line in it.
    """
    low, high = span
    bands, means = _braille(curve.extremes, rows, span), _braille(curve.means, rows, span)
    lines = []
    for y in range(rows):
        chars = _band_with_mean(bands, means, y)
        parts = [part + "-band" if mean == " " else part for mean in means[y]]
        for cell, mark in curve.marks.items():
            if y == rows - 1 - dot(mark.loss, low, high, DOTS * rows) // DOTS:
                chars[cell], parts[cell] = mark.glyph, "eval"
        for cell in curve.bad if y == 0 else ():
            if 0 <= cell < len(chars):
                chars[cell], parts[cell] = "✗", "bad"
        chars[cursor], parts[cursor] = (CURSOR, "line") if chars[cursor] == " " else (chars[cursor], "cursor")
        lines.append(_runs(chars, parts))
    return lines


def _braille(curve: Sequence[Column], rows: int, span: tuple[float, float]) -> list[str]:
    """A curve as text lines; empty ones where there is no value at all."""
    if math.isnan(span[0]):
        return [" " * (len(curve) // 2)] * rows
    return braille(_joined(curve), rows, *span, fill=False)


def _band_with_mean(bands: Sequence[str], means: Sequence[str], y: int) -> list[str]:
    """A row of the band; where it fills a cell and goes on above or below, only the mean's dots are drawn there."""
    empty = " " * len(bands[y])
    above = bands[y - 1] if y else empty
    below = bands[y + 1] if y + 1 < len(bands) else empty
    return [
        mean if band == _FULL and mean != " " and (up != " " or down != " ") else band
        for band, mean, up, down in zip(bands[y], means[y], above, below, strict=True)
    ]


def _runs(chars: Sequence[str], parts: Sequence[str]) -> Line:
    """Neighbouring characters of one part as one text."""
    grouped = groupby(zip(chars, parts, strict=True), key=itemgetter(1))
    return [("".join(char for char, _ in run), part) for part, run in grouped]


def _joined(curve: Sequence[Column]) -> list[Column]:
    """Neighbouring columns made to touch, so that a curve is a line and not a cloud of dots."""
    result = list(curve)
    for index, (before, here) in enumerate(pairwise(curve), 1):
        if before is not None and here is not None:
            if here[0] > before[1]:
                result[index] = before[1], here[1]
            elif here[1] < before[0]:
                result[index] = here[0], before[0]
    return result

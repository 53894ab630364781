"""A run's curves as lines of text: one above the other, or a row a rank with all curves side by side."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby, pairwise
from operator import itemgetter
from typing import TYPE_CHECKING

from lorawatch.run.metrics import PLOTS, Plot
from lorawatch.screens.runs.curve_axis import Column, Line, View, axis_line, cell_of, columns, place_words, under_cursor
from lorawatch.screens.shared.braille import braille, dot
from lorawatch.text.numbers import MISSING

if TYPE_CHECKING:
    from lorawatch.storage.curves import Curves, Thinned

_FULL = "⣿"
EVALUATED, LOWEST = "◆", "★"


@dataclass(frozen=True)
class _Mark:
    """An evaluation: its place on the axis, its loss, and whether that is the lowest."""

    place: float
    loss: float
    lowest: bool

    @property
    def glyph(self) -> str:
        return LOWEST if self.lowest else EVALUATED


@dataclass(frozen=True)
class _Found:
    """A curve's columns, two a cell; those under the cursor; the cells in which it was no number; evaluations by cell."""

    extremes: list[Column]
    means: list[Column]
    here: slice
    bad: frozenset[int]
    marks: Mapping[int, _Mark] = field(default_factory=dict)

    @property
    def levels(self) -> list[Column]:
        """The marks as columns."""
        return [(mark.loss, mark.loss) for mark in self.marks.values()]


@dataclass
class Drawing:
    """Lines, top to bottom; where plots are, as (first column, columns), all with the same axis; rows of ranks."""

    lines: list[Line] = field(default_factory=list)
    plots: list[tuple[int, int]] = field(default_factory=list)
    ranks: int = 1


def draw(curves: Curves, view: View, width: int, height: int) -> Drawing:
    """The curves in a box of so many cells."""
    of = {m.name: m for m in PLOTS}
    mine = _series(curves, view)
    shown = [m for m in PLOTS if any(m.name in s or (m.name == "loss" and "loss_bad" in s) for s in mine.values())]
    if view.metric in of and of[view.metric] in shown:
        shown = [of[view.metric]]
    if not shown:
        return Drawing([[("", "")], [("  nothing of this was recorded", "label")]])
    drawing = Drawing()
    note = [(" " + view.note, "label")]
    if height >= 10:
        drawing.lines.append(note)
    room = height - len(drawing.lines) - 2
    marks = {rank: _marks(curves, rank) for rank in mine}
    left_out = (
        _rows(drawing, mine, marks, shown, view, width, room)
        if view.each
        else _stack(drawing, mine[view.rank], marks[view.rank], shown, view, width, room)
    )
    if shown[0].name == "loss" and (legend := _legend(marks, view)):
        note.append((legend, "eval"))
    note.append((left_out, "value"))
    drawing.lines += [[("", "")] for _ in range(height - 2 - len(drawing.lines))]
    del drawing.lines[max(height - 2, 0) :]
    left, cells = drawing.plots[0]
    drawing.lines.append(axis_line(curves, view, left, cells, len(drawing.plots) == 1))
    drawing.lines.append([(place_words(curves, mine, view, cells, width), "value")])
    return drawing


def _marks(curves: Curves, rank: int | None) -> list[_Mark]:
    """The evaluations of a rank; of ranks that train together rank 0 has told them for all."""
    found = curves.evaluations.get(rank or 0) or curves.evaluations.get(0) or []
    lowest = min((e.loss for e in found), default=math.nan)
    # One after a step stands in the middle of that step.
    return [_Mark(e.step + 0.5 if curves.axis == "step" else e.at, e.loss, e.loss == lowest) for e in found]


def _legend(marks: Mapping[int | None, Sequence[_Mark]], view: View) -> str:
    """What the marks are: of one row the last one up to the cursor, and the lowest."""
    (mine, *others) = marks.values()
    if not mine:
        return ""
    if others:
        return f" · {EVALUATED} eval loss, {LOWEST} the lowest"
    before = [mark.loss for mark in mine if mark.place <= view.cursor + 0.5]
    here = f" {before[-1]:.4g}" if before else ""
    return f" · {EVALUATED} eval loss{here} · {LOWEST} lowest {min(mark.loss for mark in mine):.4g}"


def _series(curves: Curves, view: View) -> Mapping[int | None, Mapping[str, Thinned]]:
    if view.each:
        ranks = sorted(r for r in curves.series if r is not None)
        return {r: curves.series[r] for r in ranks}
    return {view.rank: curves.series.get(view.rank, {})}


def _stack(
    drawing: Drawing, mine: Mapping[str, Thinned], marks: Sequence[_Mark], shown: Sequence[Plot], view: View, width: int,
    room: int,
) -> str:  # fmt: skip
    """One curve above the other. Returns how to see what there is no room for."""
    seen = shown[: max(room, 1)]
    share, more = divmod(room, len(seen))
    left = 19 if width >= 60 else 16
    cells = max(width - left, 2)
    drawing.plots.append((left, cells))
    at = cell_of(view, cells)
    for number, plot in enumerate(seen):
        rows = max(share + (number < more), 1)
        found = _found(mine, plot, view, cells, marks)
        low, high = _span([found.extremes, found.levels])
        tall = rows - (rows > 3)
        room_for = left - 2 if tall > 2 else left - 3 - len(plot.label.partition(" ")[0])
        value, mean = _value(plot, found, at, room_for), _mean(plot, found, at)
        words: dict[int, Line] = {
            0: _ends(plot.label, plot.write(high), left, "label", "label"),
            tall - 1: _ends("", plot.write(low), left, "label", "label"),
            1: _ends(mean if mean and tall > 3 else value, "", left, "value", "label"),
        }
        if mean and tall > 3:
            words[2] = _ends(value, "", left, "value", "label")
        if tall == 2:
            words = {
                0: _ends(plot.label.partition(" ")[0], value, left, "label", "value"),
                1: _ends("", f"{plot.write(low)}–{plot.write(high)}", left, "label", "label"),
            }
        elif tall == 1:
            words = {0: _ends(plot.label.partition(" ")[0], value, left, "label", "value")}
        body = _body(found, tall, low, high, at, plot.part)
        for y in range(rows):
            gutter = words.get(y, [(" " * left, "")])
            drawing.lines.append(gutter + (body[y] if y < tall else [(" " * at, ""), ("│", "line")]))
    return " · m for the other curves" if len(seen) < len(shown) else ""


def _rows(
    drawing: Drawing, mine: Mapping[int | None, Mapping[str, Thinned]], marks: Mapping[int | None, Sequence[_Mark]],
    shown: Sequence[Plot], view: View, width: int, room: int,
) -> str:  # fmt: skip
    """A row a rank: the same times stand below each other, and a curve has one scale for all ranks.

    Returns how to see what there is no room for.
    """
    left = 9 if width >= 60 else 5
    curves = len(shown)
    shown = shown[: max((width - left) // 22, 1)]
    wide = (width - left) // len(shown)
    figure = 12 if wide >= 28 else 8
    cells = max(wide - figure - 2, 2)
    rows = max(min((room - 1) // max(len(mine), 1), 12), 1)
    heading: Line = [(" " * left, "")]
    spans, found = {}, {}
    for number, plot in enumerate(shown):
        drawing.plots.append((left + number * wide + figure + 1, cells))
        for rank in mine:
            found[rank, plot.name] = _found(mine[rank], plot, view, cells, marks[rank])
        here = [found[rank, plot.name] for rank in mine]
        spans[plot.name] = _span([*(f.extremes for f in here), *(f.levels for f in here)])
        scale = "–".join(plot.write(v) for v in spans[plot.name])
        heading.append((f"{plot.label:>{figure}} {scale}"[: wide - 1].ljust(wide), "label"))
    drawing.lines.append(heading)
    at = cell_of(view, cells)
    drawing.ranks = max((room - 1) // rows, 1)
    visible = list(mine)[view.top : view.top + drawing.ranks]
    for rank in visible:
        tall = rows - (rows > 3)
        blocks = [
            _body(found[rank, m.name], tall, *spans[m.name], at, m.part) + [[(" " * cells, "")]] * (rows - tall)
            for m in shown
        ]
        for y in range(rows):
            line: Line = [
                ((f" rank {rank}" if left > 5 else f" {rank}").ljust(left)[:left] if y == 0 else " " * left, "name")
            ]
            for plot, block in zip(shown, blocks, strict=True):
                value = _value(plot, found[rank, plot.name], at, figure) if y == 0 else ""
                used = sum(len(t) for t, _ in block[y])
                line += [(f"{value:>{figure}} ", "value"), *block[y], (" " * (wide - figure - 1 - used), "")]
            drawing.lines.append(line)
    hidden = f" · ranks {visible[0]}–{visible[-1]} seen, up and down for the others" if len(visible) < len(mine) else ""
    return hidden + (" · m for the other curves" if len(shown) < curves else "")


def _found(mine: Mapping[str, Thinned], plot: Plot, view: View, cells: int, marks: Sequence[_Mark]) -> _Found:
    curve, bad = mine.get(plot.name), mine.get("loss_bad") if plot.name == "loss" else None
    seen = _cells(marks, view, cells) if plot.name == "loss" else {}
    if curve is None:
        nothing: list[Column] = [None] * (2 * cells)
        return _Found(nothing, nothing, slice(0), frozenset() if bad is None else _places(bad, view, cells), seen)
    means = replace(curve, low=curve.mean, high=curve.mean)
    return _Found(
        columns(curve, view.begin, view.end, 2 * cells),
        columns(means, view.begin, view.end, 2 * cells),
        under_cursor(curve, view, cells),
        frozenset() if bad is None else _places(bad, view, cells),
        seen,
    )


def _cells(marks: Sequence[_Mark], view: View, cells: int) -> dict[int, _Mark]:
    """The marks that are seen, by cell; of several in one the lowest, else the last."""
    found: dict[int, _Mark] = {}
    for mark in marks:
        cell = math.floor((mark.place - view.begin) / (view.end - view.begin) * cells)
        if 0 <= cell < cells and not (cell in found and found[cell].lowest):
            found[cell] = mark
    return found


def _places(curve: Thinned, view: View, cells: int) -> frozenset[int]:
    """The cells in which the curve has something."""
    step = (view.end - view.begin) / cells
    known = (i for i, low in enumerate(curve.low) if low == low)
    return frozenset(math.floor((curve.start + (i + 0.5) * curve.width - view.begin) / step) for i in known)


def _span(found: Iterable[Sequence[Column]]) -> tuple[float, float]:
    known = [c for cs in found for c in cs if c is not None]
    return (min(c[0] for c in known), max(c[1] for c in known)) if known else (math.nan, math.nan)


def _ends(text: str, right: str, width: int, text_part: str, right_part: str) -> Line:
    """Two texts at the ends of a gutter; the right one stays whole."""
    right = right.replace("nan–nan", MISSING).replace("nan", MISSING) if right_part == "label" else right
    room = max(width - 2 - len(right) - bool(right), 0)
    text = text[:room] if right else text[: width - 2]
    return [(" " + text, text_part), ((right + " ").rjust(width - 1 - len(text)), right_part)]


def _value(plot: Plot, found: _Found, at: int, room: int) -> str:
    """What the curve says under the cursor: one value, or from the lowest to the highest."""
    here = [c for c in found.extremes[found.here] if c is not None]
    if at in found.bad:
        return "NaN" if not here or room < 12 else "NaN, " + plot.write(max(c[1] for c in here))
    if not here:
        return MISSING
    low, high = plot.write(min(c[0] for c in here)), plot.write(max(c[1] for c in here))
    both = high if low == high else f"{low}–{high}"
    return both if len(both) <= room else f"≤{high}"


def _mean(plot: Plot, found: _Found, at: int) -> str:
    """The mean under the cursor; empty where there is only one value."""
    here = [c for c in found.extremes[found.here] if c is not None]
    means = [c for c in found.means[found.here] if c is not None]
    if not means or at in found.bad or plot.write(min(c[0] for c in here)) == plot.write(max(c[1] for c in here)):
        return ""
    return "mean " + plot.write(sum(c[0] + c[1] for c in means) / (2 * len(means)))


def _body(found: _Found, rows: int, low: float, high: float, at: int, part: str) -> list[Line]:
    """The plot itself, with the cursor, ◆ and ★ where evaluations were, and ✗ where the loss was no number.

    The band from the lowest to the highest is dimmed and the mean is a line in it: where the band fills a cell and goes on
    above or below, only the mean's dots are drawn in that cell.
    """
    if low != low:
        blank = [" " * (len(found.extremes) // 2)] * rows
        bands, means = blank, blank
    else:
        bands = braille(_joined(found.extremes), rows, low, high, fill=False)
        means = braille(_joined(found.means), rows, low, high, fill=False)
    lines = []
    none = " " * len(bands[0])
    for y, (band, mean) in enumerate(zip(bands, means, strict=True)):
        beside = zip(bands[y - 1] if y else none, bands[y + 1] if y + 1 < rows else none, strict=True)
        chars = [
            m if b == _FULL and m != " " and (above != " " or below != " ") else b
            for b, m, (above, below) in zip(band, mean, beside, strict=True)
        ]
        parts = [part if m != " " else part + "-band" for m in mean]
        for cell, mark in found.marks.items():
            if y == rows - 1 - dot(mark.loss, low, high, 4 * rows) // 4:
                chars[cell], parts[cell] = mark.glyph, "eval"
        for index in found.bad if y == 0 else ():
            if 0 <= index < len(chars):
                chars[index], parts[index] = "✗", "bad"
        chars[at], parts[at] = ("│", "line") if chars[at] == " " else (chars[at], "cursor")
        line: Line = []
        for key, run in groupby(zip(chars, parts, strict=True), key=itemgetter(1)):
            line.append(("".join(c for c, _ in run), key))
        lines.append(line)
    return lines


def _joined(found: Sequence[Column]) -> list[Column]:
    """Neighbouring columns made to touch, so that a curve is a line and not a cloud of dots."""
    result = list(found)
    for index, (before, here) in enumerate(pairwise(found), 1):
        if before is not None and here is not None:
            if here[0] > before[1]:
                result[index] = before[1], here[1]
            elif here[1] < before[0]:
                result[index] = here[0], before[0]
    return result

"""A run's curves as lines of text: one above the other, or a row a rank with all curves side by side."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from lorawatch.run.metrics import PLOTS, Plot
from lorawatch.screens.runs.curve_axis import Line, View, axis_line, cell_of, place_words
from lorawatch.screens.runs.curve_cells import CURSOR, EVALUATED, LOWEST, Cells, Mark, cells_of, plot_lines, span_of
from lorawatch.text.numbers import MISSING

if TYPE_CHECKING:
    from lorawatch.storage.curves import Curves, Thinned

_OTHER_CURVES = " · m for the other curves"
_AXIS_LINES = 2  # the axis and what stands under the cursor, below the plots
_NOTE_HEIGHT = 10  # lines from which a heading has room
_WIDE = 60  # columns from which names and figures are written out
_GUTTER, _NARROW_GUTTER = 19, 16
_RANK_NAME, _SHORT_RANK_NAME = 9, 5
_FIGURE, _SHORT_FIGURE = 12, 8
_WIDE_BLOCK, _NARROWEST_BLOCK = 28, 22  # a metric's columns: for a long figure; the fewest that show a curve
_FEWEST_CELLS = 2
_TALLEST_RANK = 12
_NAN_ROOM = 12  # letters from which there is room for a value beside NaN


@dataclass
class Drawing:
    """Lines, top to bottom; where plots are, as (first column, columns), all with the same axis; rows of ranks."""

    lines: list[Line] = field(default_factory=list)
    plots: list[tuple[int, int]] = field(default_factory=list)
    ranks: int = 1


@dataclass(frozen=True)
class _Scene:
    """What is drawn, and in how many columns and lines."""

    series: Mapping[int | None, Mapping[str, Thinned]]
    marks: Mapping[int | None, Sequence[Mark]]
    metrics: Sequence[Plot]
    view: View
    width: int
    height: int

    def cells(self, rank: int | None, metric: Plot, cells: int) -> Cells:
        return cells_of(self.series[rank], metric.name, self.view, cells, self.marks[rank])


def draw(curves: Curves, view: View, width: int, height: int) -> Drawing:
    """The curves in a box of so many cells."""
    series = _series(curves, view)
    metrics = _recorded(series, view)
    if not metrics:
        return Drawing([[("", "")], [("  nothing of this was recorded", "label")]])
    drawing = Drawing()
    note = [(" " + view.note, "label")]
    if height >= _NOTE_HEIGHT:
        drawing.lines.append(note)
    marks = {rank: _marks(curves, rank) for rank in series}
    room = height - len(drawing.lines) - _AXIS_LINES
    scene = _Scene(series, marks, metrics, view, width, room)
    left_out = _rank_rows(drawing, scene) if view.each else _stack(drawing, scene)
    if metrics[0].name == "loss" and (legend := _legend(marks, view)):
        note.append((legend, "eval"))
    note.append((left_out, "value"))
    above_axis = max(height - _AXIS_LINES, 0)
    drawing.lines += [[("", "")] for _ in range(above_axis - len(drawing.lines))]
    del drawing.lines[above_axis:]
    left, cells = drawing.plots[0]
    drawing.lines.append(axis_line(curves, view, left, cells, len(drawing.plots) == 1))
    drawing.lines.append([(place_words(curves, series, view, cells, width), "value")])
    return drawing


def _recorded(series: Mapping[int | None, Mapping[str, Thinned]], view: View) -> list[Plot]:
    """The metrics that some rank has values of; only the chosen one where it is among them."""
    names = {name for of_rank in series.values() for name in of_rank}
    if "loss_bad" in names:
        names.add("loss")
    metrics = [metric for metric in PLOTS if metric.name in names]
    return [metric for metric in metrics if metric.name == view.metric] or metrics


def _marks(curves: Curves, rank: int | None) -> list[Mark]:
    """The evaluations of a rank; for ranks that train together rank 0 journals them."""
    evaluations = curves.evaluations.get(rank or 0) or curves.evaluations.get(0) or []
    lowest = min((e.loss for e in evaluations), default=math.nan)
    # One after a step stands in the middle of that step.
    return [Mark(e.step + 0.5 if curves.axis == "step" else e.at, e.loss, e.loss == lowest) for e in evaluations]


def _legend(marks: Mapping[int | None, Sequence[Mark]], view: View) -> str:
    """What the marks are: of one row the last one up to the cursor, and the lowest."""
    (first, *others) = marks.values()
    if not first:
        return ""
    if others:
        return f" · {EVALUATED} eval loss, {LOWEST} the lowest"
    before = [mark.loss for mark in first if mark.place <= view.cursor + 0.5]
    here = f" {before[-1]:.4g}" if before else ""
    return f" · {EVALUATED} eval loss{here} · {LOWEST} lowest {min(mark.loss for mark in first):.4g}"


def _series(curves: Curves, view: View) -> Mapping[int | None, Mapping[str, Thinned]]:
    if view.each:
        ranks = sorted(r for r in curves.series if r is not None)
        return {r: curves.series[r] for r in ranks}
    return {view.rank: curves.series.get(view.rank, {})}


# ---- one curve above the other


def _stack(drawing: Drawing, scene: _Scene) -> str:
    """One curve above the other. Returns how to see what there is no room for."""
    metrics = scene.metrics[: max(scene.height, 1)]
    share, more = divmod(scene.height, len(metrics))
    left = _GUTTER if scene.width >= _WIDE else _NARROW_GUTTER
    cells = max(scene.width - left, _FEWEST_CELLS)
    drawing.plots.append((left, cells))
    cursor = cell_of(scene.view, cells)
    for number, metric in enumerate(metrics):
        lines = max(share + (number < more), 1)
        plot_rows = _without_gap(lines)
        curve = scene.cells(scene.view.rank, metric, cells)
        span = span_of([curve.extremes, curve.levels])
        gutter = _gutter(metric, curve, span, cursor, plot_rows, left)
        plot = plot_lines(curve, plot_rows, span, cursor, metric.part)
        drawing.lines += [beside + row for beside, row in zip(gutter, plot, strict=True)]
        gap: Line = [(" " * (left + cursor), ""), (CURSOR, "line")]
        drawing.lines += [gap] * (lines - plot_rows)
    return _OTHER_CURVES if len(metrics) < len(scene.metrics) else ""


def _gutter(metric: Plot, curve: Cells, span: tuple[float, float], cursor: int, rows: int, width: int) -> list[Line]:
    """What stands left of each row of a plot: the label, the ends of its scale, and the value under the cursor.

    From four rows on there is room for the mean too; with two the scale shares a line, with one it is left out.
    """
    low, high = (metric.write(end) for end in span)
    if rows <= 2:
        name = metric.label.partition(" ")[0]
        value = _value(metric, curve, cursor, width - 3 - len(name))
        scale = _ends("", f"{low}–{high}", width, "label", "label")
        return [_ends(name, value, width, "label", "value"), scale][:rows]
    mean = _mean(metric, curve, cursor) if rows > 3 else ""
    value = _value(metric, curve, cursor, width - 2)
    figures = [_ends(text, "", width, "value", "label") for text in (mean, value) if text]
    empty: Line = [(" " * width, "")]
    top, bottom = _ends(metric.label, high, width, "label", "label"), _ends("", low, width, "label", "label")
    return [top, *figures, *[empty] * (rows - 2 - len(figures)), bottom]


def _without_gap(lines: int) -> int:
    """Rows of a plot: one line stays empty below it where there is room for that."""
    return lines - 1 if lines > 3 else lines


# ---- a row a rank


@dataclass(frozen=True)
class _Grid:
    """The columns of a row of plots: the rank's name, then for each metric its figure and its plot.

    Attributes:
        name: Columns of the rank's name.
        block: Columns of a metric, the gap behind it included.
        figure: Columns of the value under the cursor.
        cells: Columns of a plot.
        lines: Lines of a rank.
    """

    name: int
    block: int
    figure: int
    cells: int
    lines: int

    def plot_at(self, number: int) -> int:
        """The first column of a metric's plot."""
        return self.name + number * self.block + self.figure + 1


def _rank_rows(drawing: Drawing, scene: _Scene) -> str:
    """A row a rank: the same times stand below each other, and a curve has one scale for all ranks.

    Returns how to see what there is no room for.
    """
    name = _RANK_NAME if scene.width >= _WIDE else _SHORT_RANK_NAME
    metrics = scene.metrics[: max((scene.width - name) // _NARROWEST_BLOCK, 1)]
    grid = _grid(scene, name, len(metrics))
    drawing.plots += [(grid.plot_at(number), grid.cells) for number in range(len(metrics))]
    curves = {(rank, m.name): scene.cells(rank, m, grid.cells) for rank in scene.series for m in metrics}
    spans = {}
    for metric in metrics:
        of_ranks = [curves[rank, metric.name] for rank in scene.series]
        spans[metric.name] = span_of([*(c.extremes for c in of_ranks), *(c.levels for c in of_ranks)])
    drawing.lines.append(_heading(metrics, spans, grid))
    drawing.ranks = max((scene.height - 1) // grid.lines, 1)
    visible = list(scene.series)[scene.view.top : scene.view.top + drawing.ranks]
    cursor = cell_of(scene.view, grid.cells)
    for rank in visible:
        blocks = [_block(metric, curves[rank, metric.name], spans[metric.name], cursor, grid) for metric in metrics]
        for number, parts in enumerate(zip(*blocks, strict=True)):
            line: Line = [(_rank_name(rank, name) if number == 0 else " " * name, "name")]
            drawing.lines.append(line + [text for part in parts for text in part])
    others = len(visible) < len(scene.series)
    hidden = f" · ranks {visible[0]}–{visible[-1]} seen, up and down for the others" if others else ""
    return hidden + (_OTHER_CURVES if len(metrics) < len(scene.metrics) else "")


def _grid(scene: _Scene, name: int, metrics: int) -> _Grid:
    block = (scene.width - name) // metrics
    figure = _FIGURE if block >= _WIDE_BLOCK else _SHORT_FIGURE
    lines = (scene.height - 1) // max(len(scene.series), 1)
    return _Grid(name, block, figure, max(block - figure - 2, _FEWEST_CELLS), max(min(lines, _TALLEST_RANK), 1))


def _heading(metrics: Sequence[Plot], spans: Mapping[str, tuple[float, float]], grid: _Grid) -> Line:
    """Each metric's label and scale, above its plots."""
    line: Line = [(" " * grid.name, "")]
    for metric in metrics:
        scale = "–".join(metric.write(end) for end in spans[metric.name])
        line.append((f"{metric.label:>{grid.figure}} {scale}"[: grid.block - 1].ljust(grid.block), "label"))
    return line


def _block(metric: Plot, curve: Cells, span: tuple[float, float], cursor: int, grid: _Grid) -> list[Line]:
    """A rank's lines of one metric: the value under the cursor in the first of them, and the plot."""
    plot_rows = _without_gap(grid.lines)
    gap: Line = [(" " * grid.cells, "")]
    plot = [*plot_lines(curve, plot_rows, span, cursor, metric.part), *[gap] * (grid.lines - plot_rows)]
    lines = []
    for number, row in enumerate(plot):
        value = _value(metric, curve, cursor, grid.figure) if number == 0 else ""
        used = grid.figure + 1 + sum(len(text) for text, _ in row)
        lines.append([(f"{value:>{grid.figure}} ", "value"), *row, (" " * (grid.block - used), "")])
    return lines


def _rank_name(rank: int | None, width: int) -> str:
    return (f" rank {rank}" if width > _SHORT_RANK_NAME else f" {rank}").ljust(width)[:width]


# ---- words


def _ends(text: str, right: str, width: int, text_part: str, right_part: str) -> Line:
    """Two texts at the ends of a gutter; the right one stays whole."""
    right = right.replace("nan–nan", MISSING).replace("nan", MISSING) if right_part == "label" else right
    room = max(width - 2 - len(right) - bool(right), 0)
    text = text[:room] if right else text[: width - 2]
    return [(" " + text, text_part), ((right + " ").rjust(width - 1 - len(text)), right_part)]


def _value(metric: Plot, curve: Cells, cursor: int, room: int) -> str:
    """The value under the cursor, or the lowest and the highest of several, in so many letters."""
    here = [c for c in curve.extremes[curve.under_cursor] if c is not None]
    if cursor in curve.bad:
        return "NaN" if not here or room < _NAN_ROOM else "NaN, " + metric.write(max(high for _, high in here))
    if not here:
        return MISSING
    low, high = metric.write(min(c[0] for c in here)), metric.write(max(c[1] for c in here))
    both = high if low == high else f"{low}–{high}"
    return both if len(both) <= room else f"≤{high}"


def _mean(metric: Plot, curve: Cells, cursor: int) -> str:
    """The mean under the cursor; empty where there is only one value."""
    here = [c for c in curve.extremes[curve.under_cursor] if c is not None]
    means = [c for c in curve.means[curve.under_cursor] if c is not None]
    if (
        not means
        or cursor in curve.bad
        or metric.write(min(c[0] for c in here)) == metric.write(max(c[1] for c in here))
    ):
        return ""
    return "mean " + metric.write(sum(low + high for low, high in means) / (2 * len(means)))

"""A pane as lines of text: values large where there is room, each with its curve, limit and extremes."""

from __future__ import annotations

import math
from functools import cache

from lorawatch.analysis.clocks import NOTABLE_SHARE
from lorawatch.run.metrics import PANE_METRICS, Metric
from lorawatch.screens.shared.braille import braille
from lorawatch.text.numbers import MISSING, duration
from lorawatch.watching.frame import Frame, Pane

Line = list[tuple[str, str]]
"""Texts with their parts: component classes of the grid without their `pane--`."""

MIN_WIDTH = 30
MIN_HEIGHT = 6
_LARGE_ROWS = 5  # of a metric that shows its value in digits three rows high
_LARGE_WIDTH = 64


def as_lines(pane: Pane, width: int, rows: int) -> list[Line]:
    """A pane without room for a box, in one line or two; figures that many cards lack only where nothing is cut for them."""
    number = pane.title.partition(" · ")[0]
    part = "dim" if pane.stale_s else "value"
    figures: Line = [(f" {_named(pane, metric)} ", part) for metric in _metrics(pane)]
    usual: Line = [(f" {_named(pane, metric)} ", part) for metric in _metrics(pane) if not metric.optional]
    marks = _marks(pane)
    if rows < 2:  # the glyph has a place of its own, so that the figures stand one below the other
        glyph = (f"{pane.alerts[0].glyph} " if pane.alerts else "  ", marks[0][1] if marks else "")
        begin: Line = [(f" {number:<2}", "title"), glyph]
        words = [(f" {alert.word}", part) for alert, (_, part) in zip(pane.alerts, marks, strict=True)]
        whole = [*begin, *figures, *words]
        return [_cut(whole if _length(whole) <= width else [*begin, *usual, *words], width)]
    head = _cut([(f" {pane.title}", "title"), *marks, (f"  {pane.note}", "dim")], width)
    return [head, _cut(figures if _length(figures) <= width else usual, width)]


def box(pane: Pane, width: int, height: int, frame: Frame) -> list[Line]:
    """A pane of exactly `height` lines with a border: its alerts on top, its note and the time axis at the bottom."""
    border = "error" if any(a.severity == "error" for a in pane.alerts) else "warning" if pane.alerts else "border"
    title = f" {pane.title} "[: max(width - 6, 0)]
    top: Line = [("╭─", border), (title, "title")]
    used = 2 + len(title)
    for text, part in _marks(pane):
        if used + len(text) + 3 <= width:
            top.append((text + " ", part))
            used += len(text) + 1
    top.append(("─" * max(width - used - 1, 0) + "╮", border))
    inner = width - 4
    large = inner >= _LARGE_WIDTH and height - 2 >= _LARGE_ROWS * sum(m.size == "large" for m in _metrics(pane))
    left = _left(pane, inner, large)
    body = _body(pane, inner, height - 2, left, large, frame)
    lines = [[("│ ", border), *_fit(line, inner), (" │", border)] for line in body]
    return [top, *lines, _bottom(pane, width, left + 2, frame, border)]


def _bottom(pane: Pane, width: int, axis: int, frame: Frame, border: str) -> Line:
    note = f" {pane.note} "[: max(width - 4, 0)] if pane.note else ""
    span = frame.at - frame.begin
    begin, end = f" −{duration(span)} ", " now "
    if frame.head is not None:
        begin, end = f" {duration(frame.begin - frame.origin)} ", f" {duration(frame.at - frame.origin)} "
    room = width - axis - len(begin) - len(end) - 2
    if not pane.curves or room < 4 or axis < len(note) + 3:
        return [("╰─", border), (note, "dim"), ("─" * max(width - 3 - len(note), 0) + "╯", border)]
    return [
        ("╰─", border), (note, "dim"), ("─" * (axis - 2 - len(note)), border), (begin, "dim"), ("─" * room, border),
        (end, "dim"), ("─╯", border),
    ]  # fmt: skip


def _marks(pane: Pane) -> Line:
    return [(f" {a.glyph} {a.word}", "error" if a.severity == "error" else "warning") for a in pane.alerts]


def _number(pane: Pane, metric: Metric) -> str:
    value = pane.values.get(metric.name)
    if value is None:
        return MISSING
    return metric.write(value) if math.isfinite(value) else str(value)


def _figure(pane: Pane, metric: Metric) -> str:
    """`193/200 W`, `24.9/32.0 GiB`, `99%`."""
    limit = pane.limits.get(metric.name)
    return _number(pane, metric) + ("/" + metric.write(limit) if limit else "") + metric.suffix


def _named(pane: Pane, metric: Metric) -> str:
    """A figure on a line with others: `193 W`, `tok/s 2,679`."""
    return (f"{metric.label} " if metric.named else "") + _figure(pane, metric)


def _metrics(pane: Pane) -> list[Metric]:
    return [m for m in PANE_METRICS if m.name in pane.values]


def _left(pane: Pane, width: int, large: bool) -> int:
    """Columns before the curves: the same for all of a pane, so that they share the time axis."""
    if large:
        return max(26, *(len(_digits(_number(pane, m))[0]) + 3 for m in _metrics(pane)))
    longest = max((len(_figure(pane, m)) for m in _metrics(pane)), default=0)
    return max(20 if width >= 34 else 17, 7 + longest)


def _body(pane: Pane, width: int, rows: int, left: int, large: bool, frame: Frame) -> list[Line]:
    """Each large metric gets lines of its own with its curve; the small ones share a line where there is little room."""
    metrics = _metrics(pane)
    small = [m for m in metrics if m.size == "small"]
    great = [m for m in metrics if m.size == "large"]
    own_lines = rows >= (_LARGE_ROWS if large else 2) * len(great) + len(small)
    room = rows - (len(small) if own_lines else bool(small))
    share = max(room // max(len(great), 1), 1)
    extra = max(room - share * len(great), 0)
    lines: list[Line] = []
    for index, metric in enumerate(great):
        lines += _block(pane, metric, width, share + (index < extra), left, large, frame)
    if own_lines:
        for metric in small:
            lines += _block(pane, metric, width, 1, left, False, frame)
    elif small:
        words = " · ".join(_named(pane, m) for m in small)
        if len(words) > width:
            words = " · ".join(_named(pane, m) for m in small if not m.optional)
        lines.append([(words, "value" if not pane.stale_s else "dim")])
    lines += [[("", "")] for _ in range(rows - len(lines))]
    return lines[:rows]


def _block(pane: Pane, metric: Metric, width: int, rows: int, left: int, large: bool, frame: Frame) -> list[Line]:
    """A metric's value and what belongs to it on the left, its curve on the right."""
    mark = ""
    if metric.name == "power_w" and pane.capped is not None and pane.capped >= NOTABLE_SHARE:
        mark = f"▲cap {100 * pane.capped:.0f}%"
    room = width - left
    if room < 4:
        text = [(f"{metric.label:<6}", "label"), (_figure(pane, metric), _strength(pane))]
        return [text] + [[("", "")]] * (rows - 1)
    if rows == 1 and mark and room >= len(mark) + 7:
        room -= len(mark) + 1
    curve, peak = _drawn(pane, metric, room, rows, frame)
    words = _words(pane, metric, rows, peak, mark, large)
    lines = []
    for index in range(rows):
        line = _fit(words[index] if index < len(words) else [], left) + curve[index]
        if rows == 1 and mark and width - left - room:
            line.append((f" {mark}", "warning"))
        lines.append(line)
    return lines


def _strength(pane: Pane) -> str:
    return "dim" if pane.stale_s or pane.lost else "value"


def _words(pane: Pane, metric: Metric, rows: int, peak: float | None, mark: str, large: bool) -> list[Line]:
    limit = pane.limits.get(metric.name)
    most = f"peak {metric.write(peak)}" if peak is not None and metric.axis == "zero" else ""
    if large and rows >= _LARGE_ROWS:
        label = f"{metric.label} {metric.unit}" if metric.label != metric.unit else metric.label
        lines: list[Line] = [[(label, "label")]]
        lines += [[(text, _strength(pane))] for text in _digits(_number(pane, metric))]
        bound = f"of {metric.write(limit)}{metric.suffix}" if limit else ""
        below = "  ".join(w for w in (bound, most) if w)
        lines.append([(below, "dim")])
        if mark:
            lines.append([(mark, "warning")])
            if rows == _LARGE_ROWS:
                lines[-2:] = [[(f"{bound} " if bound else "", "dim"), (mark, "warning")]]
        return lines
    lines = [[(f"{metric.label:<6}", "label"), (_figure(pane, metric), _strength(pane))]]
    if rows > 1 and mark:
        lines.append([(f"{'':<6}{mark}", "warning")])
    if rows > len(lines) and most:
        lines.append([(f"{'':<6}{most}", "dim")])
    return lines


def _drawn(pane: Pane, metric: Metric, room: int, rows: int, frame: Frame) -> tuple[list[Line], float | None]:
    """The curve, its limit marked at the top edge, and its highest value in the time shown."""
    part = metric.part
    blank: list[Line] = [[(" " * room, part)] for _ in range(rows)]
    data = pane.curves.get(metric.name)
    columns = data.columns(frame.begin, frame.at, room * 2) if data is not None else []
    known = [c for c in columns if c is not None]
    if not known:
        return blank, None
    peak = max(high for _, high in known)
    limit = metric.top or pane.limits.get(metric.name)
    fill = metric.axis == "zero"
    low = 0.0 if fill else min(lowest for lowest, _ in known)
    top = limit or (peak * 1.05 if fill else peak)
    lines: list[Line] = [[(text, part)] for text in braille(columns, rows, low, top or 1.0, fill=fill)]
    if rows > 1 and limit:
        lines[0] = _limit_marked(lines[0][0][0], part)
    return lines, peak


def _limit_marked(text: str, part: str) -> Line:
    """The top row with a dotted line wherever the curve leaves it empty."""
    line: Line = []
    for letter in text:
        cell = ("⠉", "limit") if letter == " " else (letter, part)
        if line and line[-1][1] == cell[1]:
            line[-1] = (line[-1][0] + cell[0], cell[1])
        else:
            line.append(cell)
    return line


@cache
def _glyphs() -> dict[str, tuple[str, str, str]]:
    from textual.renderables.digits import DIGITS, DIGITS3X3_BOLD

    rows = [row.ljust(3) for row in DIGITS3X3_BOLD]
    return {letter: (rows[3 * n], rows[3 * n + 1], rows[3 * n + 2]) for n, letter in enumerate(DIGITS)}


def _digits(text: str) -> tuple[str, str, str]:
    """A figure in digits three rows high; what has no such form stands on the lowest row."""
    known = _glyphs()
    parts = [known.get(letter) or (" ", " ", letter) for letter in text]
    return "".join(p[0] for p in parts), "".join(p[1] for p in parts), "".join(p[2] for p in parts)


def _length(line: Line) -> int:
    return sum(len(text) for text, _ in line)


def _cut(line: Line, width: int) -> Line:
    result = []
    for text, part in line:
        if width <= 0:
            break
        result.append((text[:width], part))
        width -= len(text)
    return result


def _fit(line: Line, width: int) -> Line:
    cut = _cut(line, width)
    missing = width - _length(cut)
    return [*cut, (" " * missing, "")] if missing > 0 else cut

"""The panes of the Live screen: one GPU or CPU rank each, drawn as large as there is room for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from lorawatch.screens.widgets.braille import braille
from lorawatch.text import MISSING
from lorawatch.watching.frame import Frame, Pane


@dataclass(frozen=True)
class Metric:
    """How a metric is named and written."""

    name: str
    label: str
    unit: str
    write: Callable[[float], str]


def _plain(value: float) -> str:
    return f"{value:,.0f}"


def _gib(value: float) -> str:
    return f"{value / 2**30:.1f}"


METRICS = (
    Metric("tok_s", "tok/s", "", _plain),
    Metric("power_w", "power", "W", _plain),
    Metric("memory_bytes", "VRAM", "GiB", _gib),
    Metric("utilization_pct", "util", "%", _plain),
    Metric("temperature_c", "temp", "°C", _plain),
    Metric("sm_clock_mhz", "clock", "MHz", _plain),
    Metric("step_ms", "step", "ms", lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.1f}"),
    Metric("loss", "loss", "", lambda v: f"{v:.4f}"),
    Metric("data_wait_ms", "data", "ms", lambda v: f"{v:,.1f}"),
)
_SMALL = ("utilization_pct", "temperature_c", "sm_clock_mhz")
MIN_WIDTH = 30
MIN_HEIGHT = 6


def arrange(count: int, width: int, height: int) -> tuple[int, int]:
    """Columns, and rows of text a pane, that show `count` panes without scrolling if that can be.

    Panes of fewer than 6 rows, or without room for a border, are drawn as lines of text: 2 rows each, or 1.
    """
    if count <= 0:
        return 1, max(height, 1)
    best: tuple[float, int, int] | None = None
    for columns in range(1, count + 1):
        if columns > 1 and width // columns < MIN_WIDTH:
            break
        rows = -(-count // columns)
        tall = height // rows
        if tall < MIN_HEIGHT:
            continue
        score = min(tall, 12) * min(width / columns, 80) - 30 * (columns * rows - count)
        if best is None or score > best[0]:
            best = score, columns, tall
    if best is not None:
        return best[1], best[2]
    return 1, 2 if height >= 2 * count else 1


class PaneGrid(Widget, can_focus=False):
    """All panes of a frame in a grid, drawn line by line; only lines that changed are painted again."""

    COMPONENT_CLASSES = {  # noqa: RUF012
        "pane--border",
        "pane--title",
        "pane--label",
        "pane--value",
        "pane--curve",
        "pane--power",
        "pane--memory",
        "pane--dim",
        "pane--warning",
        "pane--error",
    }
    DEFAULT_CSS = """
    PaneGrid { height: 1fr; min-height: 1; }
    PaneGrid .pane--border { color: $foreground 40%; }
    PaneGrid .pane--title { color: $primary; text-style: bold; }
    PaneGrid .pane--label { color: $text-muted; }
    PaneGrid .pane--value { color: $foreground; text-style: bold; }
    PaneGrid .pane--curve { color: $success; }
    PaneGrid .pane--power { color: $warning; }
    PaneGrid .pane--memory { color: $primary-lighten-2; }
    PaneGrid .pane--dim { color: $text-muted; }
    PaneGrid .pane--warning { color: $warning; text-style: bold; }
    PaneGrid .pane--error { color: $error; text-style: bold; }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  Textual's name for it
        super().__init__(id=id)
        self._frame: Frame | None = None
        self._lines: list[list[tuple[str, str]]] = []

    def show(self, frame: Frame) -> None:
        """Draw this frame."""
        self._frame = frame
        self._compose_lines()

    def on_resize(self) -> None:
        self._compose_lines()

    def _compose_lines(self) -> None:
        width, height = self.size
        before = self._lines
        self._lines = self._all(width, height) if self._frame is not None and width > 0 else []
        if len(before) != len(self._lines):
            self.refresh()
            return
        changed = [y for y, (a, b) in enumerate(zip(before, self._lines, strict=True)) if a != b]
        if changed:
            self.refresh(*(Region(0, y, width, 1) for y in changed))

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        if y >= len(self._lines):
            return Strip.blank(width, self.rich_style)
        styles: dict[str, Style] = {}
        segments = []
        for text, part in self._lines[y]:
            style = styles.get(part)
            if style is None:
                style = styles[part] = self.get_component_rich_style(f"pane--{part}") if part else self.rich_style
            segments.append(Segment(text, style))
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    # --- drawing: a line is a list of (text, part); parts are component classes without their `pane--`

    def _all(self, width: int, height: int) -> list[list[tuple[str, str]]]:
        frame = self._frame
        assert frame is not None
        panes = frame.panes
        if not panes:
            return [[("", "")], [("  " + _empty_words(frame), "dim")]]
        columns, tall = arrange(len(panes), width, height)
        if tall < MIN_HEIGHT or width < MIN_WIDTH:
            lines: list[list[tuple[str, str]]] = []
            for pane in panes:
                lines += _as_lines(pane, width, tall if tall < MIN_HEIGHT else 2)
            return (
                lines[:height] if len(lines) <= height else [*lines[: height - 1], [(f" … {len(panes)} in all", "dim")]]
            )
        lines = []
        wide = width // columns
        for first in range(0, len(panes), columns):
            row = panes[first : first + columns]
            boxes = [_box(p, wide, tall, frame.begin, frame.at) for p in row]
            lines += [[part for box in boxes for part in box[y]] for y in range(tall)]
        return lines


def _empty_words(frame: Frame) -> str:
    if frame.head is None:
        return "no NVIDIA GPU here; runs on the CPU show their ranks" if frame.notice[:6] != "asking" else ""
    return "no steps: lorawatch.StepCallback in the script's Trainer brings them" if frame.head.own_command else ""


def _marks(pane: Pane) -> list[tuple[str, str]]:
    return [(f" {a.glyph} {a.word}", "error" if a.severity == "error" else "warning") for a in pane.alerts]


def _figure(pane: Pane, metric: Metric) -> str:
    """`193/200 W`, `24.9/32.0 GiB`, `99%`."""
    value, limit = pane.values.get(metric.name), pane.limits.get(metric.name)
    text = MISSING if value is None or not math.isfinite(value) else metric.write(value)
    if value is not None and not math.isfinite(value):
        text = str(value)
    if limit:
        text += "/" + metric.write(limit)
    return text + ({"%": "%", "": ""}.get(metric.unit, " " + metric.unit))


def _metrics(pane: Pane) -> list[Metric]:
    return [m for m in METRICS if m.name in pane.values]


def _as_lines(pane: Pane, width: int, rows: int) -> list[list[tuple[str, str]]]:
    """A pane without room for a box."""
    number = pane.title.partition(" · ")[0]
    figures: list[tuple[str, str]] = [(f" {number:<2}", "title")]
    for metric in _metrics(pane):
        label = f"{metric.label} " if metric.name in ("tok_s", "step_ms", "loss") else ""
        figures.append((f" {label}{_figure(pane, metric)} ", "dim" if pane.stale_s else "value"))
    marks = _marks(pane)
    line = _cut([*figures[:1], *marks, *figures[1:]], width)
    if rows < 2:
        return [line]
    return [_cut([(f" {pane.title}", "title"), *marks, (f"  {pane.note}", "dim")], width), _cut(figures[1:], width)]


def _box(pane: Pane, width: int, height: int, begin: float, end: float) -> list[list[tuple[str, str]]]:
    inner = width - 4
    border = "error" if any(a.severity == "error" for a in pane.alerts) else "warning" if pane.alerts else "border"
    title = f" {pane.title} "[: max(width - 6, 0)]
    top: list[tuple[str, str]] = [("╭─", border), (title, "title")]
    used = 2 + len(title)
    for text, part in _marks(pane):
        if used + len(text) + 3 <= width:
            top.append((text + " ", part))
            used += len(text) + 1
    top.append(("─" * max(width - used - 1, 0) + "╮", border))
    body = _body(pane, inner, height - 2, begin, end)
    lines = [[("│ ", border), *_fit(line, inner), (" │", border)] for line in body]
    note = f" {pane.note} "[: max(width - 4, 0)] if pane.note else ""
    bottom = [("╰─", border), (note, "dim"), ("─" * max(width - 3 - len(note), 0) + "╯", border)]
    return [top, *lines, bottom]


def _body(pane: Pane, width: int, rows: int, begin: float, end: float) -> list[list[tuple[str, str]]]:
    """Each large metric gets lines of its own with its curve; the small ones share a line where there is little room."""
    metrics = _metrics(pane)
    small = [m for m in metrics if m.name in _SMALL]
    large = [m for m in metrics if m.name not in _SMALL]
    apart = rows >= 2 * len(large) + len(small)
    room = rows - (len(small) if apart else bool(small))
    share = max(room // max(len(large), 1), 1)
    extra = max(room - share * len(large), 0)
    lines: list[list[tuple[str, str]]] = []
    for index, metric in enumerate(large):
        lines += _block(pane, metric, width, min(share + (index < extra), 9), begin, end)
    if apart:
        for metric in small:
            lines += _block(pane, metric, width, 1, begin, end)
    elif small:
        words = " · ".join(_figure(pane, m) for m in small)
        lines.append([(words, "value" if not pane.stale_s else "dim")])
    lines += [[("", "")] for _ in range(rows - len(lines))]
    return lines[:rows]


def _block(pane: Pane, metric: Metric, width: int, rows: int, begin: float, end: float) -> list[list[tuple[str, str]]]:
    part = {"power_w": "power", "memory_bytes": "memory"}.get(metric.name, "curve")
    value = _figure(pane, metric)
    mark = ""
    if metric.name == "power_w" and pane.capped is not None and pane.capped >= 0.05:
        mark = f" ▲cap {100 * pane.capped:.0f}%"
    strong = "dim" if pane.stale_s or pane.lost else "value"
    left = 20 if width >= 34 else 17
    head: list[tuple[str, str]] = [(f"{metric.label:<6}", "label"), (f"{value:<{left - 6}}", strong)]
    room = width - max(left, 6 + len(value) + 1) - 0
    curve = pane.curves.get(metric.name)
    if room < 4:
        return [head] + [[("", "")]] * (rows - 1)
    if rows == 1 and mark and room >= len(mark) + 6:
        room -= len(mark)
    drawn = [" " * room] * rows
    if curve is not None:
        columns = curve.columns(begin, end, room * 2)
        known = [c for c in columns if c is not None]
        if known:
            top = pane.limits.get(metric.name) or max(h for _, h in known) * (1.0 if metric.name == "loss" else 1.05)
            low = 0.0
            if metric.name == "utilization_pct":
                top = 100.0
            if metric.name == "loss":
                low = min(lo for lo, _ in known)
            drawn = braille(columns, rows, low, top or 1.0, fill=metric.name != "loss")
    first = [*head, (drawn[0], part)]
    gap = width - room - (len(mark) if rows == 1 else 0)
    text = 6 + max(len(value), left - 6)
    if gap > text:
        first.insert(2, (" " * (gap - text), ""))
    if rows == 1 and mark and width - gap - room >= len(mark):
        first.append((mark, "warning"))
    lines = [first]
    for index in range(1, rows):
        words = f"{'':<6}{mark.strip()}" if index == 1 and mark else ""
        lines.append([(f"{words:<{width - room}}"[: width - room], "warning"), (drawn[index], part)])
    return lines


def _cut(line: list[tuple[str, str]], width: int) -> list[tuple[str, str]]:
    result = []
    for text, part in line:
        if width <= 0:
            break
        result.append((text[:width], part))
        width -= len(text)
    return result


def _fit(line: list[tuple[str, str]], width: int) -> list[tuple[str, str]]:
    cut = _cut(line, width)
    missing = width - sum(len(t) for t, _ in cut)
    return [*cut, (" " * missing, "")] if missing > 0 else cut

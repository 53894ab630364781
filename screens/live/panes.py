"""The panes of the Live screen: one GPU or CPU rank each, drawn as large as there is room for."""

from __future__ import annotations

from rich.segment import Segment
from rich.style import Style
from textual.geometry import Region
from textual.strip import Strip
from textual.widget import Widget

from lorawatch.screens.live.pane_lines import MIN_HEIGHT, MIN_WIDTH, Line, as_lines, box
from lorawatch.watching.frame import Frame


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
        "pane--limit",
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
    PaneGrid .pane--limit { color: $foreground 45%; }
    PaneGrid .pane--warning { color: $warning; text-style: bold; }
    PaneGrid .pane--error { color: $error; text-style: bold; }
    """

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002  Textual's name for it
        super().__init__(id=id)
        self._frame: Frame | None = None
        self._lines: list[Line] = []

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

    def _all(self, width: int, height: int) -> list[Line]:
        frame = self._frame
        assert frame is not None
        panes = frame.panes
        if not panes:
            return [[("", "")], [("  " + _empty_words(frame), "dim")]]
        columns, tall = arrange(len(panes), width, height)
        if tall < MIN_HEIGHT or width < MIN_WIDTH:
            lines = [line for pane in panes for line in as_lines(pane, width, tall if tall < MIN_HEIGHT else 2)]
            if len(lines) <= height:
                return lines
            return [*lines[: height - 1], [(f" … {len(panes)} in all", "dim")]]
        lines = []
        wide = width // columns
        for first in range(0, len(panes), columns):
            boxes = [box(p, wide, tall, frame) for p in panes[first : first + columns]]
            lines += [[part for drawn in boxes for part in drawn[y]] for y in range(tall)]
        return lines


def _empty_words(frame: Frame) -> str:
    if frame.head is None:
        return "no NVIDIA GPU here; runs on the CPU show their ranks" if frame.notice[:6] != "asking" else ""
    return "no steps: lorawatch.StepCallback in the script's Trainer brings them" if frame.head.own_command else ""

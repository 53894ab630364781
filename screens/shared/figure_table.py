"""A table whose figures are never cut: whole columns are shown or hidden, and glyph and style show a line's provenance."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from rich.cells import cell_len, chop_cells
from rich.segment import Segment
from rich.style import Style
from textual import events
from textual.binding import Binding, BindingType
from textual.geometry import Size
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

GLYPHS = {"measured": "●", "published": "○", "extrapolated": "◌", "simulated": "◇"}
_GAP = 2
_NARROW = 100


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        key: Identifies the line, so that the cursor stays on it when the table changes.
        label: The first cell, which is always shown; `short` replaces it where there is little room.
        cells: The other cells, one for each column.
        kind: Its provenance, a key of `GLYPHS`.
        chosen: Whether it is ticked.
        base: Whether it is the baseline.
        other: Whether it is of other work.
    """

    key: str
    label: str
    cells: tuple[str, ...]
    kind: str
    short: str = ""
    chosen: bool = True
    base: bool = False
    other: bool = False


@dataclass(frozen=True)
class Table:
    """Headings of all columns, the label's first; whether figures are set to the right; the lines."""

    headings: tuple[str, ...] = ("",)
    right: tuple[bool, ...] = (False,)
    lines: tuple[Line, ...] = ()


EMPTY = Table()


def elide(text: str, width: int) -> str:
    """The text in `width` cells; its middle is cut, since names differ at their ends."""
    if cell_len(text) <= width:
        return text
    if width < 3:
        return chop_cells(text, max(width, 1))[0] if width > 0 else ""
    tail = (width - 1) // 2
    return chop_cells(text, width - 1 - tail)[0] + "…" + chop_cells(text[::-1], tail)[0][::-1]


class FigureTable(Widget, can_focus=True):
    """Up, down and a click go from line to line; left and right through the columns that do not fit.

    Args:
        ticks: Whether lines are ticked; a click on a tick changes it.

    Messages:
        Ticked: The user clicked on a line's tick.
        Moved: The cursor is on another line.
    """

    COMPONENT_CLASSES = {  # noqa: RUF012
        "table--heading", "table--cursor", "table--here", "table--measured", "table--published", "table--extrapolated",
        "table--simulated", "table--other", "table--unticked",
    }  # fmt: skip
    DEFAULT_CSS = """
    FigureTable { height: auto; }
    FigureTable .table--heading { color: $text-muted; }
    FigureTable .table--here { background: $foreground 10%; }
    FigureTable .table--cursor { background: $primary 40%; }
    FigureTable .table--measured { color: $foreground; text-style: bold; }
    FigureTable .table--published { color: $foreground; }
    FigureTable .table--extrapolated { color: $foreground 65%; text-style: italic; }
    FigureTable .table--simulated { color: $text-warning; text-style: italic; }
    FigureTable .table--other { color: $text-error; }
    FigureTable .table--unticked { color: $text-disabled; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up,k", "go(-1)", "Up", show=False),
        Binding("down,j", "go(1)", "Down", show=False),
        Binding("pageup", "page(-1)", "Page up", show=False),
        Binding("pagedown", "page(1)", "Page down", show=False),
        Binding("home", "go(-1000000)", "First", show=False),
        Binding("end", "go(1000000)", "Last", show=False),
        Binding("left", "columns(-1)", "Columns", show=False),
        Binding("right", "columns(1)", "Columns", show=False),
    ]

    class Ticked(Message):
        """The user clicked on this line's tick."""

        def __init__(self, key: str) -> None:
            super().__init__()
            self.key = key

    class Moved(Message):
        """The cursor is on another line."""

        def __init__(self, table: FigureTable) -> None:
            super().__init__()
            self.table = table

        @property
        def control(self) -> FigureTable:
            return self.table

    def __init__(self, *, ticks: bool = False, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.table = EMPTY
        self.cursor = 0
        self.top = 0
        self.first = 0
        self.title = self.more = ""
        self._measured: tuple[tuple[int, int], list[int]] | None = None
        self._ticks = ticks

    # --- what is shown

    def show(self, table: Table, title: str, more: str = "") -> None:
        """Show this table; the cursor stays on its line, and the columns on theirs.

        Args:
            title: The border's title, which also counts hidden lines and columns.
            more: Text behind it.
        """
        here = self.current
        if table.headings != self.table.headings:
            self.first = 0
        before = self.table
        self.table, self.title, self.more = table, title, more
        keys = [line.key for line in table.lines]
        if here is not None and here.key in keys:
            self.cursor = keys.index(here.key)
        self.cursor = max(min(self.cursor, len(keys) - 1), 0)
        self.refresh(layout=before is not table)
        self._settle()

    @property
    def current(self) -> Line | None:
        """The line under the cursor."""
        lines = self.table.lines
        return lines[self.cursor] if self.cursor < len(lines) else None

    @property
    def natural_width(self) -> int:
        """The width in which every column fits."""
        label = max([cell_len(self.table.headings[0]), *(cell_len(x.short or x.label) for x in self.table.lines)])
        return self._lead + label + sum(w + _GAP for w in self._widths()) + 1

    def get_content_height(self, container: Size, viewport: Size, width: int) -> int:
        return len(self.table.lines) + 1

    def on_resize(self) -> None:
        self._settle()

    def _settle(self) -> None:
        """Scroll to the cursor, and update the border's counts."""
        rows = max(self.size.height - 1, 1)
        total = len(self.table.lines)
        self.top = max(min(self.top, self.cursor, total - rows), self.cursor - rows + 1, 0)
        _, shown = self._fitting()
        columns = len(self.table.headings) - 1
        self.first = min(self.first, max(columns - 1, 0))
        parts = [self.title]
        if total > rows:
            seen = f"{self.top + 1}–{min(self.top + rows, total)} of {total}"
            parts = [seen] if self.size.width < 60 else [self.title, seen]
        before, after = self.first, columns - self.first - len(shown)
        hidden = before + max(after, 0)
        if hidden:
            words = f"{hidden} column{'s' if hidden != 1 else ''}"
            parts.append(f"{'← ' if before else ''}{words}{' →' if after > 0 else ''}")
        parts += [self.more] if self.more else []
        self.border_title = " · ".join(parts).replace("[", r"\[")
        self.refresh()

    def _fitting(self) -> tuple[int, list[int]]:
        """Width of the label, and the columns beside it that fit whole, by number."""
        table, room = self.table, self.size.width - self._lead
        widths = self._widths()
        longest = max([cell_len(table.headings[0]), *(cell_len(line.label) for line in table.lines)])
        short = max([cell_len(table.headings[0]), *(cell_len(line.short or line.label) for line in table.lines)])
        if longest + sum(w + _GAP for w in widths) > room:
            longest = short
        label = min(longest, max(room * 9 // 20, 16))
        fitting: list[int] = []
        left = room - label
        for index in range(self.first, len(widths)):
            if widths[index] + _GAP > left and fitting:
                break
            fitting.append(index)
            left -= widths[index] + _GAP
        return label, fitting

    def _text(self, line: Line, index: int) -> str:
        """A cell as it is shown: where there is little room, text loses the part after a comma; figures are never cut."""
        text = line.cells[index]
        return text if self.table.right[index + 1] or self.size.width >= _NARROW else text.partition(",")[0]

    def _widths(self) -> list[int]:
        key = (id(self.table), self.size.width)
        if self._measured is None or self._measured[0] != key:
            self._measured = (key, self._measure())
        return self._measured[1]

    def _measure(self) -> list[int]:
        return [
            max([cell_len(heading), *(cell_len(self._text(line, i)) for line in self.table.lines)])
            for i, heading in enumerate(self.table.headings[1:])
        ]

    @property
    def _lead(self) -> int:
        """Columns before the label: tick and baseline, glyph."""
        return 4 if self._ticks else 2

    # --- drawing

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        label, shown = self._fitting()
        widths = self._widths()
        index = self.top + y - 1
        lines = self.table.lines
        if y == 0:
            style = self.get_component_rich_style("table--heading")
            text = " " * self._lead + _cell(self.table.headings[0], label, right=False)
            text += self._figures(self.table.headings[1:], shown, widths)
        elif index < len(lines):
            line = lines[index]
            style = self._style(line, index == self.cursor)
            mark = "▸" if line.base else "!" if line.other else " "
            tick = ("✓" if line.chosen else "·") + mark if self._ticks else ""
            name = line.label if cell_len(line.label) <= label or not line.short else line.short
            text = f"{tick}{GLYPHS.get(line.kind, '?')} " + _cell(name, label, right=False)
            text += self._figures([self._text(line, i) for i in range(len(line.cells))], shown, widths)
        else:
            style, text = self.rich_style, ""
        return Strip([Segment(text, style)]).adjust_cell_length(width, style)

    def _figures(self, cells: Sequence[str], shown: Sequence[int], widths: Sequence[int]) -> str:
        right = self.table.right[1:]
        return "".join(" " * _GAP + _cell(cells[i], widths[i], right=right[i]) for i in shown)

    def _style(self, line: Line, here: bool) -> Style:
        names = [f"table--{line.kind}"]
        names += ["table--other"] if line.other else []
        names += [] if line.chosen else ["table--unticked"]
        style = Style.combine([self.get_component_rich_style(name) for name in names])
        if here:
            name = "table--cursor" if self.has_focus else "table--here"
            style += Style(bgcolor=self.get_component_rich_style(name).bgcolor)
        return style

    # --- keys and mouse

    def action_go(self, lines: int) -> None:
        self._go(self.cursor + lines)

    def action_page(self, pages: int) -> None:
        self._go(self.cursor + pages * max(self.size.height - 2, 1))

    def _go(self, index: int) -> None:
        self.cursor = max(min(index, len(self.table.lines) - 1), 0)
        self._settle()
        self.post_message(self.Moved(self))

    def action_columns(self, direction: int) -> None:
        """Move by one column, but not past the last that is shown whole."""
        after = self.first + len(self._fitting()[1]) < len(self.table.headings) - 1
        if direction < 0 or after:
            self.first = max(self.first + direction, 0)
            self._settle()

    def on_click(self, event: events.Click) -> None:
        at = event.get_content_offset(self)
        if at is None or at.y < 1 or self.top + at.y > len(self.table.lines):
            return
        self._go(self.top + at.y - 1)
        if self._ticks and at.x < self._lead and self.current is not None:
            self.post_message(self.Ticked(self.current.key))

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        self._go(self.cursor - 1)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        self._go(self.cursor + 1)

    def on_focus(self) -> None:
        self.refresh()

    def on_blur(self) -> None:
        self.refresh()


def _cell(text: str, width: int, *, right: bool) -> str:
    text = elide(text, width)
    pad = " " * (width - cell_len(text))
    return pad + text if right else text + pad

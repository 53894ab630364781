"""The line on top of every screen: the modes and the machine's name."""

from __future__ import annotations

from rich.segment import Segment
from textual import events
from textual.strip import Strip
from textual.widget import Widget

from lorawatch.text.sanitize import clean

MODES = (("1", "live", "Live"), ("2", "runs", "Runs"), ("3", "launch", "Launch"), ("4", "compare", "Compare"))


class TopBar(Widget):
    """` lorawatch   1 Live  2 Runs  3 Launch            node7 · 4×RTX PRO 4500`; a click on a mode goes there."""

    COMPONENT_CLASSES = {"topbar--name", "topbar--mode", "topbar--lit", "topbar--machine"}  # noqa: RUF012
    DEFAULT_CSS = """
    TopBar { height: 1; dock: top; background: $panel; color: $foreground; }
    TopBar .topbar--name { text-style: bold; color: $primary; }
    TopBar .topbar--mode { color: $text-muted; }
    TopBar .topbar--lit { text-style: bold reverse; color: $primary; }
    TopBar .topbar--machine { color: $text-muted; }
    """

    def __init__(self, mode: str) -> None:
        super().__init__()
        self._mode = mode
        self._places: list[tuple[int, int, str]] = []

    def on_mount(self) -> None:
        self.watch(self.app, "machine", self._machine_known, init=False)

    def _machine_known(self) -> None:
        self.refresh()

    def render_line(self, y: int) -> Strip:
        style = self.get_component_rich_style
        width = self.size.width
        name = " lorawatch " if width >= 50 else ""
        segments = [Segment(name, style("topbar--name"))]
        x = len(name)
        if width >= 62:
            segments.append(Segment("  ", self.rich_style))
            x += 2
        self._places = []
        for key, mode, word in MODES:
            text = f" {key} {word} "
            segments.append(Segment(text, style("topbar--lit" if mode == self._mode else "topbar--mode")))
            self._places.append((x, x + len(text), mode))
            x += len(text)
        machine = clean(getattr(self.app, "machine_words", ""))
        room = width - x - 1
        if room >= 8:
            words = machine if len(machine) <= room - 1 else machine[: max(room - 2, 0)] + "…"
            segments.append(Segment(words.rjust(room) + " ", style("topbar--machine")))
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def on_click(self, event: events.Click) -> None:
        for start, end, mode in self._places:
            if start <= event.x < end:
                self.app.switch_mode(mode)

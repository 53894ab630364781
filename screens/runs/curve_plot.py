"""A run's curves: over time or steps, together or by rank, with a cursor and zoom."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from rich.segment import Segment
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget

from lorawatch.run.metrics import PLOTS
from lorawatch.screens.runs.curve_axis import cell_of
from lorawatch.screens.runs.curve_drawing import Drawing, draw
from lorawatch.screens.runs.curve_look import EACH, CurveLook, Question

if TYPE_CHECKING:
    from lorawatch.storage.curves import Curves

_WHEEL = 0.7


class CurvePlot(Widget, can_focus=True):
    """Draws the view of `look`, and asks the screen for missing curves."""

    class Wanted(Message):
        """The plot needs an answer to this question; `take` gets it."""

        def __init__(self, question: Question) -> None:
            super().__init__()
            self.question = question

    COMPONENT_CLASSES = {  # noqa: RUF012
        "plot--label", "plot--value", "plot--name", "plot--cursor", "plot--line", "plot--bad", "plot--eval", "plot--curve",
        "plot--curve-band", "plot--power", "plot--power-band", "plot--memory", "plot--memory-band", "plot--heat",
        "plot--heat-band",
    }  # fmt: skip
    DEFAULT_CSS = """
    CurvePlot { height: 1fr; }
    CurvePlot .plot--label { color: $text-muted; }
    CurvePlot .plot--value { color: $foreground; text-style: bold; }
    CurvePlot .plot--name { color: $primary; text-style: bold; }
    CurvePlot .plot--cursor { color: $foreground; text-style: reverse; }
    CurvePlot .plot--line { color: $foreground 50%; }
    CurvePlot .plot--bad { color: $error; text-style: bold reverse; }
    CurvePlot .plot--eval { color: $accent; text-style: bold; }
    CurvePlot .plot--curve { color: $success; }
    CurvePlot .plot--curve-band { color: $success 45%; }
    CurvePlot .plot--power { color: $warning; }
    CurvePlot .plot--power-band { color: $warning 45%; }
    CurvePlot .plot--memory { color: $primary-lighten-2; }
    CurvePlot .plot--memory-band { color: $primary-lighten-2 45%; }
    CurvePlot .plot--heat { color: $secondary-lighten-3; }
    CurvePlot .plot--heat-band { color: $secondary-lighten-3 45%; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Cursor", show=False),
        Binding("right", "move(1)", "Cursor", show=False),
        Binding("shift+left", "move(-10)", "Cursor", show=False),
        Binding("shift+right", "move(10)", "Cursor", show=False),
        Binding("home", "run_end(False)", "Begin", show=False),
        Binding("end", "run_end(True)", "End", show=False),
        Binding("up", "rows(-1)", "Ranks", show=False),
        Binding("down", "rows(1)", "Ranks", show=False),
    ]

    def __init__(self) -> None:
        super().__init__()
        self.look = CurveLook(lambda question: self.post_message(self.Wanted(question)))
        self._empty = "reading the history …"
        self._drawing: Drawing | None = None

    def take(self, question: Question, curves: Curves | None) -> None:
        """The answer to a question; None where the history has no such curves."""
        if curves is not None:
            self.look.take(question, curves)
        elif self.look.whole is None:
            self._empty = "no curve: the history has no steps and no samples of this run"
        else:
            self.look.give_up()
            self.notify("the history has no step of this run: there is nothing over steps", severity="warning")
        self._redraw()

    # --- keys and the mouse

    def turn_axis(self) -> None:
        """Over steps instead of over time, and back."""
        self.look.turn_axis()
        self._redraw()

    def turn_part(self, forth: bool) -> None:
        """All ranks together, each alone, a row a rank; and round again."""
        self.look.turn_part(forth)
        self._redraw()

    def show_part(self, part: int) -> None:
        """Show the curves of the rank with this number in the order of ranks."""
        self.look.show_part(part)
        self._redraw()

    def turn_metric(self) -> None:
        """One curve alone, the next, all of them."""
        self.look.turn_metric([plot.name for plot in PLOTS])
        self._redraw()

    def zoom(self, factor: float) -> None:
        """See a part so many times as long; 0 for the whole run."""
        self.look.zoom(factor)
        self._redraw()

    def action_move(self, cells: int) -> None:
        view = self.look.view()
        if view is None or self._drawing is None or not self._drawing.plots:
            return
        room = self._drawing.plots[0][1]
        cell = (view.end - view.begin) / room
        at = view.begin + (cell_of(view, room) + 0.5) * cell
        if self.look.axis == "step" and cell < 1:  # a step is wider than a cell
            at, cell = int(view.cursor) + 0.5, 1.0
        self.look.go(at + cells * cell)
        self._redraw()

    def action_run_end(self, last: bool) -> None:
        whole = self.look.whole
        if whole is not None:
            self.look.go(whole.end if last else whole.begin)
            if last and self.look.window is None:
                self.look.cursor = None
            self._redraw()

    def action_rows(self, rows: int) -> None:
        if self.look.part == EACH:
            fits = self._drawing.ranks if self._drawing else 1
            self.look.top = min(max(self.look.top + rows, 0), max(len(self.look.ranks) - fits, 0))
            self._redraw()

    def _point(self, x: int) -> bool:
        """Move the cursor to this column of the widget. Returns whether there is a plot."""
        view = self.look.view()
        for left, cells in self._drawing.plots if self._drawing else ():
            if view is not None and left <= x < left + cells:
                self.look.go(view.begin + (x - left + 0.5) / cells * (view.end - view.begin))
                self._redraw()
                return True
        return False

    def on_click(self, event: events.Click) -> None:
        self._point(event.x)

    def on_mouse_scroll_up(self, event: events.MouseScrollUp) -> None:
        event.stop()
        if self._point(event.x):
            self.zoom(_WHEEL)

    def on_mouse_scroll_down(self, event: events.MouseScrollDown) -> None:
        event.stop()
        if self._point(event.x):
            self.zoom(1 / _WHEEL)

    # --- drawing

    def _redraw(self) -> None:
        self._drawing = None
        self.refresh()

    def on_resize(self) -> None:
        self._redraw()

    def render_line(self, y: int) -> Strip:
        width, height = self.size
        if self._drawing is None:
            curves, view = self.look.curves, self.look.view()
            self._drawing = (
                draw(curves, view, width, height)
                if curves is not None and view is not None
                else Drawing([[("", "")], [(f"  {self._empty}", "label")]])
            )
        lines = self._drawing.lines
        if y >= len(lines):
            return Strip.blank(width, self.rich_style)
        styles = {p: self.get_component_rich_style(f"plot--{p}") if p else self.rich_style for _, p in lines[y]}
        return Strip([Segment(t, styles[p]) for t, p in lines[y]]).adjust_cell_length(width, self.rich_style)

"""Below the table of configurations: a chart, the times of epochs, and the notes."""

from __future__ import annotations

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.widgets import Static

from lorawatch.screens.compare.model import Picture
from lorawatch.screens.compare.scaling_chart import Chart, ScalingChart
from lorawatch.screens.shared.figure_table import FigureTable

CHARTS = (  # figure, title, unit, ideal, where the axis begins
    ("tok_s", "tok/s, dotted: ideal", "", "linear", 0.0),
    ("efficiency_pct", "scaling efficiency", "%", "level", None),
    ("tok_per_j", "tok/J", "", "", 0.0),
)
LEAST = 60  # columns of the right side of a wide screen
MOST_SHARE = 0.73


class CompareBelow(Horizontal):
    """Shows the latest picture.

    Attributes:
        figure: Which of `CHARTS` is drawn.
    """

    SCOPED_CSS = False  # it goes by classes of the screen
    DEFAULT_CSS = """
    CompareBelow { height: 1fr; layout: vertical; }
    CompareBelow #chart, CompareBelow #ladder, CompareBelow #notes {
        border: round $foreground 40%; border-title-color: $primary; }
    CompareBelow #ladder:focus, CompareBelow #notes:focus { border: round $primary; }
    CompareBelow #chart { width: 1fr; height: 1fr; min-height: 8; }
    CompareBelow #right { height: auto; max-height: 50%; }
    CompareBelow #ladder { height: auto; max-height: 100%; }
    CompareBelow #notes { height: 1fr; padding: 0 1; display: none; scrollbar-size-vertical: 1; }
    .show-notes CompareBelow #chart, .show-notes CompareBelow #ladder { display: none; }
    .show-notes CompareBelow #notes { display: block; }
    .show-notes CompareBelow #right { height: 1fr; max-height: 100%; }
    .-wide.-high CompareBelow { layout: horizontal; }
    .-wide.-high CompareBelow #right { height: 1fr; max-height: 100%; }
    .-wide.-high CompareBelow #ladder { max-height: 60%; }
    .-wide.-high CompareBelow #notes { display: block; }
    .-low CompareBelow #chart, .-low CompareBelow #ladder, .-low CompareBelow #notes {
        border: none; border-top: solid $foreground 40%; }
    .-low CompareBelow #ladder:focus, .-low CompareBelow #notes:focus { border: none; border-top: solid $primary; }
    .one-below CompareBelow #right { display: none; }
    .one-below.show-ladder CompareBelow #right, .one-below.show-notes CompareBelow #right {
        display: block; height: 1fr; max-height: 100%; }
    .one-below.show-ladder CompareBelow #chart { display: none; }
    .one-below CompareBelow #ladder { height: 1fr; }
    .single CompareBelow { display: none; }
    .single.show-chart CompareBelow, .single.show-ladder CompareBelow, .single.show-notes CompareBelow { display: block; }
    """

    def __init__(self, picture: Picture, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.figure = 0
        self._picture = picture

    def compose(self) -> ComposeResult:
        yield ScalingChart(id="chart")
        with Vertical(id="right"):
            yield FigureTable(id="ladder")
            with VerticalScroll(id="notes"):
                yield Static()

    def on_mount(self) -> None:
        self.show(self._picture)

    def on_resize(self) -> None:
        self.divide()

    def show(self, picture: Picture) -> None:
        """Show this picture."""
        self._picture = picture
        self.query_one("#ladder", FigureTable).show(picture.ladder, picture.ladder_title)
        notes = self.query_one("#notes")
        count = len(picture.notes)
        notes.border_title = f"{count} note{'s' if count != 1 else ''}"
        notes.query_one(Static).update(Text("\n".join(f"· {n}" for n in picture.notes) or "nothing to note"))
        self.draw()
        self.divide()

    def turn(self) -> None:
        """Draw the next figure."""
        self.figure = (self.figure + 1) % len(CHARTS)
        self.draw()

    def draw(self) -> None:
        name, title, unit, ideal, least = CHARTS[self.figure]
        chart = self.query_one(ScalingChart)
        chart.border_title = f"{title} · c turns"
        chart.show(Chart(tuple(self._picture.charts.get(name, ())), unit, ideal, least))

    def divide(self) -> None:
        """A wide screen's right side is as wide as the ladder, but the chart keeps its share."""
        right, screen = self.query_one("#right"), self.screen
        if screen.has_class("-wide") and screen.has_class("-high") and not screen.has_class("show-notes"):
            wanted = self.query_one("#ladder", FigureTable).natural_width + 2
            right.styles.width = min(max(wanted, LEAST), int(self.size.width * MOST_SHARE))
        else:
            right.styles.clear_rule("width")

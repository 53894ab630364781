"""One run of the history: its curves, figures, ranks, events and recipe."""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable
from typing import Any, ClassVar

from rich.segment import Segment
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Static, TabbedContent, TabPane

from lorawatch.sanitize import clean
from lorawatch.screens.background import Answered
from lorawatch.screens.base import HouseScreen
from lorawatch.screens.widgets.braille import braille
from lorawatch.text import MISSING, duration, number
from lorawatch.watching.curves import CurveData

RETRY_S = 2.0
_CURVES: tuple[tuple[str, str, Callable[[float], str], str], ...] = (
    ("loss", "loss", lambda v: f"{v:.4g}", "curve"),
    ("tok_s", "tok/s", lambda v: f"{v:,.0f}", "curve"),
    ("power_w", "W per GPU", lambda v: f"{v:,.0f}", "power"),
    ("memory_bytes", "VRAM GiB", lambda v: f"{v / 2**30:.1f}", "memory"),
    ("temperature_c", "°C", lambda v: f"{v:.0f}", "power"),
)


def load_run(run_id: str) -> dict[str, Any]:
    """Everything the screen shows of a run."""
    from lorawatch.figures import summary_lines
    from lorawatch.storage.curves import run_curves, run_ranks
    from lorawatch.storage.queries import run_events, run_figures

    row = run_figures(run_id, deadline_s=0.5)
    return {
        "row": row,
        "summary": list(summary_lines(row)) if row else [],
        "curves": run_curves(run_id),
        "ranks": run_ranks(run_id),
        "events": run_events(run_id, 500, deadline_s=0.5),
    }


class CurvePlot(Widget, can_focus=True):
    """The run's curves over time, one above the other, with a cursor and zoom."""

    COMPONENT_CLASSES = {"plot--label", "plot--curve", "plot--power", "plot--memory", "plot--cursor"}  # noqa: RUF012
    DEFAULT_CSS = """
    CurvePlot { height: 1fr; }
    CurvePlot .plot--label { color: $text-muted; }
    CurvePlot .plot--curve { color: $success; }
    CurvePlot .plot--power { color: $warning; }
    CurvePlot .plot--memory { color: $primary-lighten-2; }
    CurvePlot .plot--cursor { color: $foreground; text-style: reverse; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("left", "move(-1)", "Cursor", show=False),
        Binding("right", "move(1)", "Cursor", show=False),
        Binding("plus,equals_sign", "zoom(0.5)", "Zoom"),
        Binding("minus", "zoom(2.0)", "Zoom out", show=False),
    ]
    LEFT = 19

    def __init__(self) -> None:
        super().__init__()
        self._curves: dict[str, CurveData] = {}
        self._begin = self._end = self._first = self._last = 0.0
        self._cursor = 0.5

    def show(self, curves: dict[str, CurveData]) -> None:
        """Draw these curves whole."""
        self._curves = curves
        if curves:
            self._first = self._begin = min(c.start for c in curves.values())
            self._last = self._end = max(c.end for c in curves.values())
        self.refresh()

    def action_move(self, direction: int) -> None:
        room = max(self.size.width - self.LEFT, 1)
        moved = self._cursor + direction / room * (4 if room > 60 else 2)
        span = self._end - self._begin
        if moved > 1 and self._end < self._last:
            self._shift(span / 4)
        elif moved < 0 and self._begin > self._first:
            self._shift(-span / 4)
        self._cursor = min(max(moved, 0.0), 1.0)
        self.refresh()

    def _shift(self, seconds: float) -> None:
        seconds = min(seconds, self._last - self._end) if seconds > 0 else max(seconds, self._first - self._begin)
        self._begin += seconds
        self._end += seconds

    def action_zoom(self, factor: float) -> None:
        span = min(max((self._end - self._begin) * factor, 0.5), self._last - self._first)
        at = self._begin + self._cursor * (self._end - self._begin)
        self._begin = min(max(at - self._cursor * span, self._first), self._last - span)
        self._end = self._begin + span
        self.refresh()

    def render_line(self, y: int) -> Strip:
        width, height = self.size
        style = self.get_component_rich_style
        shown = [c for c in _CURVES if c[0] in self._curves]
        if not shown:
            text = "no curve: the history has no steps and no samples of this run" if y == 1 else ""
            return Strip([Segment(f"  {text}", style("plot--label"))]).adjust_cell_length(width, self.rich_style)
        rows = max((height - 1) // len(shown), 2)
        room = max(width - self.LEFT, 2)
        if y >= rows * len(shown):
            return self._axis(width, room) if y == rows * len(shown) else Strip.blank(width, self.rich_style)
        name, label, write, part = shown[y // rows]
        line = y % rows
        columns = self._curves[name].columns(self._begin, self._end, room * 2)
        known = [c for c in columns if c is not None]
        at = min(int(self._cursor * room), room - 1)
        here = columns[2 * at] or columns[2 * at + 1]
        low, high = (min(c[0] for c in known), max(c[1] for c in known)) if known else (0.0, 0.0)
        value = MISSING if here is None else write(here[1])
        if here is not None and write(here[0]) != value:
            value = f"{write(here[0])}–{value}"
        words = {0: f"{label:<9} {write(high)}", 1: f" {value}", rows - 1: f"{'':<9} {write(low)}"}
        if rows == 2:
            words = {0: f"{label:<9} {value}", 1: f" {write(low)}–{write(high)}"}
        drawn = braille(columns, rows - (rows > 3), low, high, fill=False)
        body = drawn[line] if line < len(drawn) else " " * room
        text = f" {words.get(line, ''):<{self.LEFT - 1}}"[: self.LEFT]
        colour = style(f"plot--{part}")
        segments = [
            Segment(text, style("plot--label")), Segment(body[:at], colour),
            Segment(body[at] if body[at] != " " else "│", style("plot--cursor") if body[at] != " " else colour),
            Segment(body[at + 1 :], colour),
        ]  # fmt: skip
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def _axis(self, width: int, room: int) -> Strip:
        at = self._begin + self._cursor * (self._end - self._begin) - self._first
        left, right = duration(self._begin - self._first), duration(self._end - self._first)
        middle = f"◂ {duration(at)} ▸"
        line = left + middle.center(max(room - len(left) - len(right), 0)) + right
        label = self.get_component_rich_style("plot--label")
        return Strip([Segment(" " * self.LEFT + line, label)]).adjust_cell_length(width, self.rich_style)


class RunScreen(HouseScreen):
    """A run's pages: curves, figures, ranks, events, recipe."""

    MODE = "runs"
    HELP = """\
One run. The curves share a time axis: left and right move the cursor, + and - zoom, tab goes to the pages (figures,
ranks, events, recipe). Each column of a curve shows its lowest to its highest value; where several GPUs took part, W,
VRAM and °C span all of them.

r replays the run on the Live screen; v watches it live. escape goes back to the list."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("r", "replay", "Replay"),
        Binding("v", "live", "Live", show=False),
    ]
    CSS = """
    RunScreen #title { height: 1; padding: 0 1; text-style: bold; }
    RunScreen TabbedContent, RunScreen ContentSwitcher, RunScreen TabPane { height: 1fr; padding: 0; }
    RunScreen VerticalScroll { padding: 0 1; }
    """

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id

    def compose_body(self) -> ComposeResult:
        yield Static(Text(f"run {self.run_id}: reading the history …"), id="title")
        with TabbedContent(initial="curves"):
            with TabPane("Curves", id="curves"):
                yield CurvePlot()
            for word in ("figures", "ranks", "events", "recipe"):
                with TabPane(word.title(), id=word), VerticalScroll():
                    yield Static(id=f"{word}-text")

    def on_mount(self) -> None:
        self._ask()
        self.query_one(CurvePlot).focus()

    def _ask(self) -> None:
        self.house.background.ask(self, "run", lambda: load_run(self.run_id))

    def on_answered(self, message: Answered) -> None:
        title = self.query_one("#title", Static)
        if message.error is not None:
            title.update(Text(f"! {message.error.message}; trying again"))
            self.set_timer(RETRY_S, self._ask)
            return
        found = message.value
        row = found["row"]
        if row is None:
            title.update(Text(f"run {self.run_id} is not in the history yet; v shows it live"))
            return
        said = f"{row['run_id']}  {clean(row['name'])}  {row['state']}"
        title.update(Text(said + (f" {row['failure']}" if row["failure"] else "")))
        curves = {
            name: CurveData(start, wide, array("d", low), array("d", high))
            for name, (start, wide, low, high) in found["curves"].items()
        }
        self.query_one(CurvePlot).show(curves)
        lines = [f"{name:<14} {clean(str(value))}" for name, value in found["summary"]]
        if row.get("tags"):
            lines.append(f"{'tags':<14} {', '.join(clean(t) for t in row['tags'])}")
        if row.get("versions"):
            lines.append(f"{'versions':<14} {row['versions']}")
        self._put("figures", lines)
        ranks = [f"{'rank':>4} {'steps':>8} {'tok/s':>10} {'step p50':>10} {'data wait':>10}"]
        for rank, steps, tok_s, step_s, wait_s in found["ranks"]:
            wait = None if wait_s is None else 1000 * wait_s
            step = None if step_s is None else 1000 * step_s
            ranks.append(
                f"{rank:>4} {steps:>8,} {number(tok_s):>10} {number(step, 1, 'ms'):>10} {number(wait, 1, 'ms'):>10}"
            )
        self._put("ranks", ranks)
        events = [
            f"{time.strftime('%H:%M:%S', time.localtime(e['at_s']))}  {e['severity']:<8} "
            + " ".join(clean(e["message"]).split())[:400]
            for e in found["events"]
        ]
        self._put("events", events or ["no events"])
        self._put("recipe", _recipe_lines(row))

    def _put(self, word: str, lines: list[str]) -> None:
        self.query_one(f"#{word}-text", Static).update(Text("\n".join(lines)))

    def action_back(self) -> None:
        self.app.pop_screen()

    def action_replay(self) -> None:
        self.app.pop_screen()
        self.house.open_replay(self.run_id)

    def action_live(self) -> None:
        self.app.pop_screen()
        self.house.open_live(self.run_id)


def _recipe_lines(row: dict[str, Any]) -> list[str]:
    if row.get("own_command"):
        return [clean(str(row.get("command") or ""))]
    import msgspec
    import yaml

    recipe = row.get("recipe")
    if not recipe:
        return ["no recipe was recorded"]
    text = yaml.safe_dump(msgspec.json.decode(recipe), sort_keys=False, allow_unicode=True)
    return [clean(line) for line in text.splitlines()]

"""One run of the history: its curves, figures, ranks, events, log and recipe."""

from __future__ import annotations

import time
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import VerticalScroll
from textual.events import Resize
from textual.timer import Timer
from textual.widgets import DataTable, Static, TabbedContent, TabPane

from lorawatch.run.directory import ENDED
from lorawatch.screens.runs.curve_plot import CurvePlot
from lorawatch.screens.runs.pages import (
    event_lines,
    load_curves,
    load_log,
    load_pages,
    load_run,
    rank_cells,
    rank_columns,
    rank_metrics,
    title_words,
)
from lorawatch.screens.runs.words import ask_delete, ask_tags
from lorawatch.screens.shared.background import Answered
from lorawatch.screens.shared.base import BaseScreen

RETRY_S = 2.0
REFRESH_S, REFRESH_AT_MOST_S = 3.0, 10.0
PAGES = ("curves", "figures", "ranks", "events", "log", "recipe")
_BESIDE_TEXT = 4  # padding and a scroll bar
_TEXTS = ("figures", "events", "recipe")


def refresh_pause_s(took_s: float) -> float:
    """Seconds until a run that lives is read again, after a reading of `took_s` seconds.

    A long run takes longer to read, and reading shall cost a twentieth of the time; but one slow reading, the first of
    all or one on a busy machine, shall not leave the page behind for minutes.
    """
    return min(max(REFRESH_S, 20 * took_s), REFRESH_AT_MOST_S)


class RunScreen(BaseScreen):
    """A run's pages; a run that lives is read again every few seconds."""

    MODE = "runs"
    HELP = """\
One run. [ and ] turn the pages; tab goes to their names.

x: over steps or over time. p: all ranks together, each alone, a row a rank (P: the other way). m: one curve alone. + - 0: zoom
around the cursor, the whole run. left, right (shift: farther), home, end, a click: the cursor. Wheel: zoom.

A column goes from the lowest to the highest value in it, so that no spike is hidden; the line is their mean; ✗: a loss that was
no number; ◆: an evaluation, ★: the lowest. Together, W, VRAM and °C span the GPUs. Over steps, readings outside the steps are
left out.

Enter on a rank shows its curves. l: the log, its next file (L: the one before). r replays the run, v shows it live, t changes
its tags, d deletes it (asked first), g reads again."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "back", "Back"),
        Binding("x", "plot('turn_axis')", "Axis"),
        Binding("p", "plot('turn_part', True)", "Ranks"),
        Binding("P", "plot('turn_part', False)", "Ranks", show=False),
        Binding("m", "plot('turn_metric')", "Curve", show=False),
        Binding("plus,equals_sign", "plot('zoom', 0.5)", "Zoom", key_display="+"),
        Binding("minus", "plot('zoom', 2.0)", "Zoom out", show=False),
        Binding("0", "plot('zoom', 0)", "Whole", show=False),
        Binding("l", "log(True)", "Log"),
        Binding("L", "log(False)", "Log", show=False),
        Binding("r", "replay", "Replay"),
        Binding("v", "live", "Live", show=False),
        Binding("t", "tag", "Tag", show=False),
        Binding("d", "delete", "Delete", show=False),
        Binding("g", "read", "Read again", show=False),
        Binding("left_square_bracket", "page(-1)", "Page", show=False),
        Binding("right_square_bracket", "page(1)", "Page", key_display="]"),
    ]
    CSS = """
    RunScreen #title { height: auto; max-height: 2; padding: 0 1; text-style: bold; }
    RunScreen TabbedContent, RunScreen ContentSwitcher, RunScreen TabPane { height: 1fr; padding: 0; }
    RunScreen VerticalScroll { padding: 0 1; }
    RunScreen DataTable { height: 1fr; background: $background; }
    """

    def __init__(self, run_id: str) -> None:
        super().__init__()
        self.run_id = run_id
        self.row: dict[str, Any] | None = None
        self._pages: dict[str, Any] = {"ranks": [], "events": []}
        self._shown: dict[str, Any] = {}
        self._asked_at = 0.0
        self._timer: Timer | None = None
        self._retry_plot = False

    @property
    def plot(self) -> CurvePlot:
        """The curves."""
        return self.query_one(CurvePlot)

    @property
    def page(self) -> str:
        """The page that is seen, one of `PAGES`."""
        return self.query_one(TabbedContent).active

    def compose_body(self) -> ComposeResult:
        yield Static(Text(f"run {self.run_id}: reading the history …"), id="title")
        with TabbedContent(initial="curves"):
            with TabPane("Curves", id="curves"):
                yield CurvePlot()
            for word in PAGES[1:]:
                with TabPane(word.title(), id=word):
                    if word in _TEXTS:
                        with VerticalScroll():
                            yield Static(id=f"{word}-text")

    def on_mount(self) -> None:
        self.action_read()
        self.plot.focus()

    # --- asking

    def action_read(self) -> None:
        """Ask for everything that is shown, as it is now."""
        if not self.is_attached:
            return
        question = self.plot.look.question
        self._asked_at = time.monotonic()
        # The curves first: they are what the page opens with.
        self.services.background.ask(self, "curves", lambda: (question, load_curves(self.run_id, question)))
        self.services.background.ask(self, "run", lambda: load_run(self.run_id))
        self.services.background.ask(self, "pages", lambda: load_pages(self.run_id))
        if self.page == "log":
            self._ask_log()

    def on_curve_plot_wanted(self, message: CurvePlot.Wanted) -> None:
        question = message.question
        self.services.background.ask(
            self, "detail" if question.window else "view", lambda: (question, load_curves(self.run_id, question))
        )

    def _ask_log(self) -> None:
        from lorawatch.screens.runs.log_page import LogPage

        pages = self.query(LogPage)
        wanted = pages.first().wanted if pages else ""
        self.services.background.ask(self, "log", lambda: load_log(self.run_id, wanted))

    async def on_answered(self, message: Answered) -> None:
        if message.error is not None:
            self._failed(message.key, message.error.message)
            return
        match message.key:
            case "run":
                self._take_run(message.value)
            case "pages":
                self._pages = message.value
                await self._show_page()
            case "curves" | "view" | "detail":
                self.plot.take(*message.value)
            case "log":
                await self._show_log(message.value)
            case "deleted":
                self.notify(f"{self.run_id} was deleted", markup=False)
                if self.is_current:
                    self.app.pop_screen()
            case "changed":
                self.action_read()

    def _failed(self, key: str, why: str) -> None:
        if key in ("deleted", "changed"):
            self.notify(why, severity="error", markup=False)
            return
        self.query_one("#title", Static).update(Text(f"! {why}; trying again"))
        self._retry_plot = self._retry_plot or key in ("view", "detail")
        self._read_in(RETRY_S)

    def _take_run(self, pages: dict[str, Any]) -> None:
        title = self.query_one("#title", Static)
        row = self.row = pages["row"]
        if row is None:
            title.update(Text(f"run {self.run_id} is not in the history yet; v shows it live"))
            self._read_in(RETRY_S)
            return
        title.update(Text(title_words(row)))
        self._put("figures", pages["figures"])
        self._put("recipe", pages["recipe"])
        if row["state"] not in ENDED:
            self._read_in(refresh_pause_s(time.monotonic() - self._asked_at))

    def _read_in(self, seconds: float) -> None:
        """Read again after a while, once, however many reasons there are."""
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(seconds, self._read_if_seen)

    def _read_if_seen(self) -> None:
        if not self.is_current:
            self._read_in(REFRESH_S)
            return
        self.action_read()
        if self._retry_plot:
            self._retry_plot = False
            self.plot.look.ask_again()

    # --- showing

    def _put(self, word: str, lines: list[str]) -> None:
        if self._shown.get(word) != lines:
            self._shown[word] = lines
            self.query_one(f"#{word}-text", Static).update(Text("\n".join(lines)))

    def on_resize(self, event: Resize) -> None:
        super().on_resize(event)
        self.call_later(self._show_page)

    async def on_tabbed_content_tab_activated(self, event: TabbedContent.TabActivated) -> None:
        await self._show_page()
        if self.page == "log":
            self._ask_log()

    async def _show_page(self) -> None:
        """Fill the page that is seen; its widgets are made when it is opened first."""
        if self.page == "events" and self.row is not None:
            room = self.size.width - _BESIDE_TEXT
            self._put("events", event_lines(self.row, self._pages["events"], room))
        if self.page == "ranks" and self._shown.get("ranks") != self._pages["ranks"]:
            ranks = self._shown["ranks"] = self._pages["ranks"]
            pane = self.query_one("#ranks", TabPane)
            if not pane.query(DataTable):
                table: DataTable[Text] = DataTable(cursor_type="row", zebra_stripes=True, fixed_columns=1)
                await pane.mount(table)
            table = pane.query_one(DataTable)
            metrics = rank_metrics(ranks)
            columns = rank_columns(metrics)
            at = table.cursor_row
            table.clear(columns=len(columns) != len(table.columns))
            if not table.columns:
                for heading, width in columns:
                    side = "left" if heading == "GPU" else "right"
                    table.add_column(Text(heading, justify=side), width=width)  # type: ignore[arg-type]
            fastest = max((r.tok_s for r in ranks if r.tok_s is not None), default=None)
            for rank in ranks:
                cells = rank_cells(rank, fastest, metrics)
                table.add_row(*(Text(c, justify="right") for c in cells[:-1]), Text(cells[-1]), key=str(rank.rank))
            table.move_cursor(row=at)

    async def _show_log(self, tail: Any) -> None:
        from lorawatch.screens.runs.log_page import LogPage

        pane = self.query_one("#log", TabPane)
        if not pane.query(LogPage):
            await pane.mount(LogPage())
        pane.query_one(LogPage).show(tail)

    # --- keys

    def _turn_to(self, page: str) -> None:
        self.query_one(TabbedContent).active = page
        self.call_after_refresh(self._focus_page)

    def _focus_page(self) -> None:
        for widget in self.query(f"#{self.page} *"):
            if widget.focusable:
                widget.focus()
                return

    def action_page(self, forth: int) -> None:
        self._turn_to(PAGES[(PAGES.index(self.page) + forth) % len(PAGES)])

    def action_plot(self, what: str, *values: Any) -> None:
        if self.page != "curves":
            self._turn_to("curves")
            return
        getattr(self.plot, what)(*values)

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        self.plot.show_part(event.cursor_row)
        self._turn_to("curves")

    def action_log(self, forth: bool) -> None:
        from lorawatch.screens.runs.log_page import LogPage

        if self.page != "log":
            self._turn_to("log")
        elif self.query(LogPage):
            self.query_one(LogPage).turn(forth)
            self._ask_log()

    def action_back(self) -> None:
        self.app.pop_screen()

    def action_replay(self) -> None:
        self.app.pop_screen()
        self.services.open_replay(self.run_id)

    def action_live(self) -> None:
        self.app.pop_screen()
        self.services.open_live(self.run_id)

    def action_tag(self) -> None:
        if self.row is not None:
            ask_tags(self, self.run_id, self.row["tags"] or ())

    def action_delete(self) -> None:
        if self.row is not None:
            ask_delete(self, self.run_id)

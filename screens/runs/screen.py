"""Runs: the history. A run opens to its curves, figures, ranks, events, log and recipe."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.timer import Timer
from textual.widgets import DataTable, Input, Static

from lorawatch.run.directory import ENDED
from lorawatch.screens.runs.rows import COLUMNS, Column, cells, load_runs, sort_key, widths
from lorawatch.screens.runs.words import ask_delete, ask_tags
from lorawatch.screens.shared.background import Answered
from lorawatch.screens.shared.base import BaseScreen

SHOWN = 60  # rows put into the table at once: more than a screen has, and quick enough to be made at every key
RETRY_S = 2.0
REFRESH_S = 5.0


class RunTable(DataTable[Text]):
    """The table, with its most used key named in the footer; home and end go through the rows."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "select_cursor", "Open"),
        Binding("home", "scroll_top", "First", show=False),
        Binding("end", "scroll_bottom", "Last", show=False),
    ]


class RunsScreen(BaseScreen):
    """A table of all runs, sortable and filterable."""

    MODE = "runs"
    HELP = """\
All runs in the history, latest first. Enter opens one: its curves, figures, ranks, events, log and recipe.

/ filters: every word must be found in a run's id, recipe, state, GPU or tags; escape shows all again. o sorts by the next
column, O turns the order around; a click on a heading does both. left and right scroll to the columns there is no room
for. More rows come as you scroll down.

r replays a run. t changes its tags; d deletes it with its directory (asked first). g reads the history again."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("o", "sort", "Sort"),
        Binding("O", "turn", "Turn order", show=False),
        Binding("r", "replay", "Replay"),
        Binding("t", "tag", "Tag"),
        Binding("d", "delete", "Delete"),
        Binding("g", "reload", "Read again", show=False),
        Binding("escape", "clear_filter", "Clear filter", show=False),
        Binding("down", "leave_filter", "To the table", show=False),
    ]
    CSS = """
    RunsScreen DataTable { height: 1fr; background: $background; scrollbar-size-vertical: 1; }
    RunsScreen #filter { height: 1; border: none; display: none; background: $surface; padding: 0 1; }
    RunsScreen #filter.open { display: block; }
    RunsScreen #notice { height: auto; padding: 0 1; color: $text-muted; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[dict[str, Any]] = []
        self._matching_rows: list[dict[str, Any]] = []
        self._cells: dict[str, list[str]] = {}
        self._sort = COLUMNS[0]
        self._down = COLUMNS[0].down
        self._drawn_for: tuple[Any, ...] = ()
        self._reading = False
        self._timer: Timer | None = None

    def compose_body(self) -> ComposeResult:
        yield Input(placeholder="filter: words of id, recipe, state, GPU, tags", id="filter")
        yield RunTable(cursor_type="row", zebra_stripes=True, fixed_columns=1)
        yield Static("reading the history …", id="notice")

    def on_mount(self) -> None:
        table = self.query_one(DataTable)
        table.focus()
        for moved in ("scroll_y", "cursor_coordinate"):  # later: clearing the table moves both in its midst
            self.watch(table, moved, self._moved, init=False)

    def _moved(self) -> None:
        self.call_later(self._more)

    def on_screen_resume(self) -> None:
        if not self._reading:  # a mode that is opened first resumes twice
            self.action_reload()

    def action_reload(self) -> None:
        self._reading = True
        self.services.background.ask(self, "runs", load_runs)

    def _reload_in(self, seconds: float) -> None:
        """Read again later, once, if the screen is visible."""
        if self._timer is not None:
            self._timer.stop()
        self._timer = self.set_timer(seconds, self._reload_if_seen)

    def _reload_if_seen(self) -> None:
        if self.is_current:
            self.action_reload()

    def on_answered(self, message: Answered) -> None:
        if message.key == "runs":
            self._reading = False
        if message.error is not None:
            if message.key == "runs":
                self._say(f"! {message.error.message}; trying again")
                self._reload_in(RETRY_S)
            else:
                self.notify(str(message.error), severity="error", markup=False)
        elif message.key == "runs":
            self._rows = message.value
            self._draw()
            if any(r["state"] not in ENDED for r in self._rows):
                self._reload_in(REFRESH_S)
        else:  # a change was made
            self.action_reload()

    def on_resize(self, event: Any) -> None:
        super().on_resize(event)
        if self._rows:
            self._draw()

    # --- the table

    def _matching(self) -> list[dict[str, Any]]:
        words = self.query_one("#filter", Input).value.lower().split()
        matches = [r for r in self._rows if all(w in r["search"] for w in words)] if words else self._rows
        known = [(k, r) for r in matches if (k := sort_key(r, self._sort.key)) is not None]
        known.sort(key=lambda pair: pair[0], reverse=self._down)
        return [r for _, r in known] + [r for r in matches if sort_key(r, self._sort.key) is None]

    def _draw(self) -> None:
        """Bring the table up to date; rows that stay where they are change only where they say something else."""
        table = self.query_one(DataTable)
        chosen, scrolled = self.chosen(), table.scroll_offset
        before = [r["run_id"] for r in self._matching_rows[: len(self._cells)]]
        self._matching_rows = self._matching()
        layout = (self._sort, self._down, self.size.width)
        count = max(len(self._cells), SHOWN) if layout == self._drawn_for else SHOWN
        same = layout == self._drawn_for and before == [r["run_id"] for r in self._matching_rows[:count]]
        with self.app.batch_update():
            if same:
                for row in self._matching_rows[:count]:
                    self._change(table, row)
            else:
                self._drawn_for = layout
                self._refill(table, count, chosen)
                if chosen in self._cells:
                    table.scroll_to(scrolled.x, scrolled.y, animate=False)
        self._say_count()
        self._moved()

    def _refill(self, table: DataTable[Text], count: int, chosen: str | None) -> None:
        table.clear(columns=True)
        self._cells = {}
        for column, width in zip(COLUMNS, widths(self.size.width - 1), strict=True):
            mark = ("▼" if self._down else "▲") if column is self._sort else ""
            heading = f"{column.heading}{' ' if len(column.heading) + 1 < width else ''}{mark}"
            table.add_column(Text(heading, justify="right" if column.right else "left"), key=column.key, width=width)
        self._append(table, count)
        if chosen in self._cells:
            table.move_cursor(row=table.get_row_index(chosen))

    def _append(self, table: DataTable[Text], count: int) -> None:
        for row in self._matching_rows[len(self._cells) : len(self._cells) + count]:
            texts = self._cells[row["run_id"]] = cells(row, narrow=self.size.width < 110)
            table.add_row(*map(self._text, COLUMNS, texts), key=row["run_id"])

    def _change(self, table: DataTable[Text], row: dict[str, Any]) -> None:
        texts = cells(row, narrow=self.size.width < 110)
        old = self._cells[row["run_id"]]
        for column, text, was in zip(COLUMNS, texts, old, strict=True):
            if text != was:
                table.update_cell(row["run_id"], column.key, self._text(column, text))
        self._cells[row["run_id"]] = texts

    def _text(self, column: Column, text: str) -> Text:
        style = ""
        if column.key == "state" and text[:1] in "✗▶":
            style = self.app.theme_variables.get("error" if text[0] == "✗" else "success", "")
        return Text(
            text, style if style.startswith("#") else "", justify="right" if column.right else "left", no_wrap=True
        )

    def _more(self) -> None:
        """Put further rows into the table when its end comes near."""
        table = self.query_one(DataTable)
        shown = len(self._cells)
        last = max(table.cursor_row, int(table.scroll_y) + table.size.height)
        if self._drawn_for and last >= shown - 10 and shown < len(self._matching_rows):
            with self.app.batch_update():
                self._append(table, SHOWN)
            self._say_count()

    def _say_count(self) -> None:
        total, matching, shown = len(self._rows), len(self._matching_rows), len(self._cells)
        if not total:
            words = "no run yet: 3 launches the first, or lorawatch --record in a shell"
        elif matching > shown:
            words = f"{shown:,} of {matching:,} runs shown; more come as you scroll, / narrows them"
        elif matching < total:
            words = f"{matching:,} of {total:,} runs; escape shows all"
        else:
            words = f"{total:,} run{'s' if total != 1 else ''}"
        self._say(words)

    def _say(self, words: str) -> None:
        self.query_one("#notice", Static).update(Text(words))

    def chosen(self) -> str | None:
        """The id under the cursor."""
        table = self.query_one(DataTable)
        if not table.row_count or not table.is_valid_row_index(table.cursor_row):
            return None
        return table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value

    # --- keys

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        self.action_open()

    def on_data_table_header_selected(self, event: DataTable.HeaderSelected) -> None:
        column = next(c for c in COLUMNS if c.key == event.column_key.value)
        if column is self._sort:
            self.action_turn()
        else:
            self._sort_by(column)

    def _sort_by(self, column: Column) -> None:
        self._sort, self._down = column, column.down
        self._draw()
        table = self.query_one(DataTable)
        ends = [0]
        for width in widths(self.size.width - 1):
            ends.append(ends[-1] + width + 2)
        at = COLUMNS.index(column)
        if ends[at + 1] > table.scroll_x + self.size.width - 1 or (at and ends[at] < table.scroll_x + ends[1]):
            table.scroll_to(x=ends[at + 1] - self.size.width + 1, animate=False)

    def action_open(self) -> None:
        chosen = self.chosen()
        if chosen is not None:
            from lorawatch.screens.runs.run_screen import RunScreen

            self.app.push_screen(RunScreen(chosen))

    def action_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.add_class("open")
        box.focus()

    def action_clear_filter(self) -> None:
        box = self.query_one("#filter", Input)
        box.value = ""
        box.remove_class("open")
        self.query_one(DataTable).focus()

    def action_leave_filter(self) -> None:
        self.query_one(DataTable).focus()

    def on_input_changed(self, event: Input.Changed) -> None:
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.query_one(DataTable).focus()

    def action_sort(self) -> None:
        self._sort_by(COLUMNS[(COLUMNS.index(self._sort) + 1) % len(COLUMNS)])

    def action_turn(self) -> None:
        self._down = not self._down
        self._draw()

    def action_replay(self) -> None:
        chosen = self.chosen()
        if chosen is not None:
            self.services.open_replay(chosen)

    def action_delete(self) -> None:
        chosen = self.chosen()
        if chosen is not None:
            ask_delete(self, chosen)

    def action_tag(self) -> None:
        chosen = self.chosen()
        row = next((r for r in self._rows if r["run_id"] == chosen), None)
        if row is not None and chosen is not None:
            ask_tags(self, chosen, row["tags"] or ())

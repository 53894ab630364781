"""Runs: the history. A run opens to its curves, ranks, events and recipe."""

from __future__ import annotations

from typing import Any, ClassVar

from rich.console import JustifyMethod
from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.widgets import DataTable, Input, Static

from lorawatch.sanitize import clean
from lorawatch.screens.background import Answered
from lorawatch.screens.base import HouseScreen
from lorawatch.text import MISSING, duration, gib, number

SHOWN = 300  # rows in the table at once; the filter reaches all
RETRY_S = 2.0
_GLYPH = {"running": "▶", "starting": "◌", "queued": "◌", "stopping": "■", "completed": "✓", "stopped": "■", "failed": "✗",
          "lost": "✗"}  # fmt: skip
COLUMNS: tuple[tuple[str, str, int], ...] = (
    # heading, key to sort by, least width of the terminal
    ("run", "run_id", 0),
    ("recipe", "name", 0),
    ("state", "state", 0),
    ("where", "sku", 70),
    ("steps", "steps", 100),
    ("tok/s", "tok_s", 0),
    ("tok/J", "tok_per_j", 90),
    ("VRAM", "peak_vram_bytes", 110),
    ("loss", "final_loss", 60),
    ("time", "duration_s", 80),
    ("tags", "tags", 120),
)


def load_runs() -> list[dict[str, Any]]:
    """All runs of the history; runs whose recorder died are brought in first where that is quick."""
    from lorawatch.storage.queries import list_runs

    return list_runs(limit=None, deadline_s=0.5)


def where_words(row: dict[str, Any]) -> str:
    """`4×RTX PRO 4500`, `2×cpu`."""
    sku = clean(row["sku"] or "").removeprefix("NVIDIA ")
    return f"{row['gpu_count']}×{sku}" if sku else f"{row['world_size'] or 1}×{row['device'] or 'process'}"


class RunsScreen(HouseScreen):
    """A table of all runs, sortable and filterable."""

    MODE = "runs"
    HELP = """\
All runs in the history, latest first. Enter opens one: its curves, ranks, events and recipe.

/ filters: every word must be found in a run's id, recipe, state, GPU or tags. o sorts by the next column, O turns the
order around; a click on a heading does both. r replays a run. t changes its tags; d deletes it with its directory
(asked first). g reads the history again."""
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("enter", "open", "Open"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("o", "sort", "Sort"),
        Binding("O", "turn", "Turn order", show=False),
        Binding("r", "replay", "Replay"),
        Binding("t", "tag", "Tag"),
        Binding("d", "delete", "Delete"),
        Binding("g", "reload", "Read again", show=False),
        Binding("escape", "clear_filter", "Clear filter", show=False),
    ]
    CSS = """
    RunsScreen DataTable { height: 1fr; background: $background; }
    RunsScreen #filter { height: 1; border: none; display: none; background: $surface; padding: 0 1; }
    RunsScreen #filter.open { display: block; }
    RunsScreen #said { height: auto; padding: 0 1; color: $text-muted; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._rows: list[dict[str, Any]] = []
        self._sort = 0
        self._down = True
        self._asked = False
        self._drawn_width = 0

    def compose_body(self) -> ComposeResult:
        yield Input(placeholder="filter: words of id, recipe, state, GPU, tags", id="filter")
        table: DataTable[Text] = DataTable(cursor_type="row", zebra_stripes=True)
        yield table
        yield Static("reading the history …", id="said")

    def on_mount(self) -> None:
        self.query_one(DataTable).focus()

    def on_screen_resume(self) -> None:
        self.action_reload()

    def action_reload(self) -> None:
        self.house.background.ask(self, "runs", load_runs)

    def on_answered(self, message: Answered) -> None:
        if message.error is not None:
            self.query_one("#said", Static).update(Text(f"! {message.error.message}; trying again"))
            self.set_timer(RETRY_S, self.action_reload)
            return
        if message.key == "runs":
            self._rows = message.value
            self._draw()
        else:  # a change was made
            self.action_reload()

    def on_resize(self, event: Any) -> None:
        super().on_resize(event)
        if self._rows and self.size.width != self._drawn_width:
            self._draw()

    def _matching(self) -> list[dict[str, Any]]:
        words = self.query_one("#filter", Input).value.lower().split()

        def text(row: dict[str, Any]) -> str:
            return " ".join(
                str(v) for v in (row["run_id"], row["name"], row["state"], row["failure"] or "", where_words(row),
                                 *(row["tags"] or ()))
            ).lower()  # fmt: skip

        found = [r for r in self._rows if all(w in text(r) for w in words)] if words else list(self._rows)
        key = COLUMNS[self._sort][1]
        known = [r for r in found if r[key] not in (None, [])]
        known.sort(key=lambda r: r[key] if not isinstance(r[key], str) else r[key].lower(), reverse=self._down)
        return known + [r for r in found if r[key] in (None, [])]

    def _draw(self) -> None:
        table = self.query_one(DataTable)
        chosen = self.chosen()
        rows = self._matching()
        width = self._drawn_width = self.size.width
        columns = [c for c in COLUMNS if width >= c[2]]
        with self.app.batch_update():
            table.clear(columns=True)
            for heading, key, _ in columns:
                mark = (" ▼" if self._down else " ▲") if key == COLUMNS[self._sort][1] else ""
                table.add_column(Text(heading + mark), key=key)
            for row in rows[:SHOWN]:
                table.add_row(*(_cell(row, key) for _, key, _ in columns), key=row["run_id"])
            if chosen is not None and any(r["run_id"] == chosen for r in rows[:SHOWN]):
                table.move_cursor(row=table.get_row_index(chosen))
        total = len(self._rows)
        if not total:
            said = "no run yet: 3 launches the first, or lorawatch --record in a shell"
        elif len(rows) > SHOWN:
            said = f"{SHOWN} of {len(rows):,} runs shown; / narrows them"
        else:
            said = (
                f"{len(rows):,} of {total:,} runs" if len(rows) < total else f"{total:,} run{'s' if total != 1 else ''}"
            )
        self.query_one("#said", Static).update(Text(said))

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
        keys = [c[1] for c in COLUMNS]
        index = keys.index(str(event.column_key.value))
        self._down = not self._down if index == self._sort else True
        self._sort = index
        self._draw()

    def action_open(self) -> None:
        chosen = self.chosen()
        if chosen is not None:
            from lorawatch.screens.run import RunScreen

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

    def on_input_changed(self, event: Input.Changed) -> None:
        self._draw()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.query_one(DataTable).focus()

    def action_sort(self) -> None:
        shown = [i for i, c in enumerate(COLUMNS) if self.size.width >= c[2]]
        self._sort = shown[(shown.index(self._sort) + 1) % len(shown)] if self._sort in shown else 0
        self._down = True
        self._draw()

    def action_turn(self) -> None:
        self._down = not self._down
        self._draw()

    def action_replay(self) -> None:
        chosen = self.chosen()
        if chosen is not None:
            self.house.open_replay(chosen)

    def action_delete(self) -> None:
        chosen = self.chosen()
        if chosen is None:
            return
        from lorawatch.screens.confirm import Confirm

        def answered(yes: bool | None) -> None:
            if yes:
                from lorawatch.storage.edit import delete_run

                self.house.background.ask(self, "changed", lambda: delete_run(chosen))

        self.app.push_screen(
            Confirm(f"Delete run {chosen} from the history, with its journals, checkpoints and adapter?"), answered
        )

    def action_tag(self) -> None:
        chosen = self.chosen()
        row = next((r for r in self._rows if r["run_id"] == chosen), None)
        if row is None or chosen is None:
            return
        from lorawatch.screens.confirm import Ask

        def answered(text: str | None) -> None:
            if text is not None:
                from lorawatch.storage.edit import set_tags

                tags = [clean(w) for w in text.replace(",", " ").split()]
                self.house.background.ask(self, "changed", lambda: set_tags(chosen, tags))

        self.app.push_screen(Ask(f"Tags of {chosen}, separated by spaces", " ".join(row["tags"] or ())), answered)


def _cell(row: dict[str, Any], key: str) -> Text:
    value = row[key]
    right: JustifyMethod = "right"
    match key:
        case "state":
            return Text(f"{_GLYPH.get(value, '·')} {value}" + (f" {row['failure']}" if row["failure"] else ""))
        case "sku":
            return Text(where_words(row)[:28])
        case "tags":
            return Text(" ".join(clean(t) for t in value or ())[:40])
        case "tok_s":
            return Text(number(value), justify=right)
        case "tok_per_j":
            return Text(number(value, 1), justify=right)
        case "final_loss":
            return Text(number(value, 3), justify=right)
        case "peak_vram_bytes":
            return Text(gib(value), justify=right)
        case "duration_s":
            return Text(duration(value), justify=right)
        case "steps":
            return Text(MISSING if value is None else f"{value:,}", justify=right)
        case _:
            return Text(" ".join(clean(str(value)).split())[:24])

"""The recipe as a form: a line for each key with its value and its meaning, or what is wrong with it, as you type.

All lines are one widget, and one input moves to the line under the cursor: an input a key would make every visit of the
screen slower.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from rich.segment import Segment
from rich.text import Text
from textual import events
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical, VerticalScroll
from textual.geometry import Region
from textual.message import Message
from textual.strip import Strip
from textual.widget import Widget
from textual.widgets import Input, Static

from lorawatch.recipe.fields import ABSENT, Field, read, recipe_fields, value_at, write
from lorawatch.screens.launch.cycle import Cycle
from lorawatch.text.sanitize import clean

_ROOMY = 68  # columns from which every line has room for its help
_NARROW_VALUE = 8
_NARROW_NOTE = 22


class Row:
    """A key's line: its position, its value, what is wrong with it."""

    def __init__(self, y: int, key: Field) -> None:
        self.y = y
        self.key = key
        self.value: Any = ABSENT
        self.wrong = ""

    @property
    def absent(self) -> bool:
        return self.value is ABSENT

    @property
    def text(self) -> str:
        return "" if self.value is ABSENT else clean(write(self.value))

    @property
    def cycles(self) -> bool:
        """Whether its value is chosen from a list, not typed."""
        return self.key.kind == "choice"

    def means(self, text: str) -> bool:
        """Whether the text means the row's value; then it is not rewritten while the user types."""
        if self.value is ABSENT or not text.strip():
            return self.value is ABSENT and not text.strip()
        return bool(read(self.key, text) == self.value)


class FormLines(Widget):
    """The lines; the editor of the line under the cursor lies over its value."""

    COMPONENT_CLASSES = {"form--section", "form--name", "form--value", "form--dim", "form--wrong"}  # noqa: RUF012
    DEFAULT_CSS = """
    FormLines { layout: vertical; }
    FormLines > Input, FormLines > Cycle { position: absolute; height: 1; width: 16; display: none; }
    FormLines > Input { background: $surface; }
    FormLines > Input:focus, FormLines > Cycle:focus { background: $primary 30%; }
    FormLines > Input.-shown, FormLines > Cycle.-shown { display: block; }
    FormLines .form--section { color: $primary; text-style: bold; }
    FormLines .form--name { color: $foreground; }
    FormLines .form--value { color: $foreground; background: $surface; }
    FormLines .form--dim { color: $text-muted; }
    FormLines .form--wrong { color: $text-error; text-style: bold; }
    """

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("up", "move(-1)", "Key before", show=False),
        Binding("down", "move(1)", "Next key", show=False),
        Binding("pageup", "move(-8)", "Page up", show=False),
        Binding("pagedown", "move(8)", "Page down", show=False),
    ]

    class Moved(Message):
        """The cursor has gone to another line."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[str, Row] = {}
        self._lines: list[Row | str] = []
        section = ""
        for key in recipe_fields():
            if key.section != section:
                section = key.section
                self._lines.append(section)
            self.rows[key.path] = Row(len(self._lines), key)
            self._lines.append(self.rows[key.path])
        self.styles.height = len(self._lines)
        self.left = max(len(r.key.name) for r in self.rows.values()) + 2
        self.current = next(iter(self.rows.values()))

    def compose(self) -> ComposeResult:
        yield Input(compact=True, select_on_focus=False)
        yield Cycle(("",))

    def on_resize(self) -> None:
        self.place_editor()

    @property
    def editor(self) -> Input | Cycle:
        """The widget that edits the line under the cursor."""
        return self.query_one(Cycle) if self.current.cycles else self.query_one(Input)

    def place_editor(self) -> None:
        """Put the editor over the value of the line under the cursor."""
        row, editor = self.current, self.editor
        for widget in self.children:
            widget.set_class(widget is editor, "-shown")
        editor.styles.offset = (self.left + 1, row.y)
        editor.styles.width = self._value_width(row) - 1
        if isinstance(editor, Cycle):
            editor.set_choices(row.key.choices, row.key.default)
            editor.show(None if row.absent else row.text)
            return
        editor.placeholder = row.key.default
        if not row.means(editor.value):
            with editor.prevent(Input.Changed):
                editor.value = row.text
                editor.cursor_position = len(row.text)

    def go_to(self, row: Row) -> None:
        """Make this the line under the cursor, and give its editor the focus."""
        if row is not self.current:
            if not row.cycles:
                box = self.query_one(Input)
                with box.prevent(Input.Changed):
                    box.value = row.text
                    box.cursor_position = len(row.text)
            self.current = row
            self.place_editor()
        self.editor.focus(scroll_visible=False)
        parent = self.parent
        if isinstance(parent, VerticalScroll):  # with its section's heading where it is the first of it
            top = row.y - 1 if isinstance(self._lines[row.y - 1], str) and row.y else row.y
            parent.scroll_to_region(Region(0, top, 1, row.y - top + 1), animate=False, force=True)
        self.refresh()
        self.post_message(self.Moved())

    def action_move(self, lines: int) -> None:
        rows = list(self.rows.values())
        at = rows.index(self.current) + lines
        self.go_to(rows[at % len(rows) if abs(lines) == 1 else min(max(at, 0), len(rows) - 1)])

    def _value_width(self, row: Row) -> int:
        """Where there is little room, a value has the whole line unless something is wrong with it."""
        room = max(self.size.width - self.left - 1, 4)
        if self.size.width >= _ROOMY:
            usual = min(max(self.size.width // 3, 22), 40)
            return usual if row.wrong else min(max(usual, len(row.text) + 3), room)
        return min(max(len(row.text) + 3, _NARROW_VALUE), room - _NARROW_NOTE) if row.wrong else room

    def render_line(self, y: int) -> Strip:
        width = self.size.width
        entry = self._lines[y] if y < len(self._lines) else ""
        style = self.get_component_rich_style
        if isinstance(entry, str):
            return Strip([Segment(f" {entry}", style("form--section"))]).adjust_cell_length(width, self.rich_style)
        room = self._value_width(entry)
        value = entry.key.default if entry.absent else " ".join(entry.text.split())
        choices = entry.cycles and len(entry.key.choices) > 1
        value = f"‹ {value} ›" if choices else value
        if len(value) > room - 2:
            value = value[: max(room - 3, 0)] + "…"
        note, part = (f"✗ {entry.wrong}", "form--wrong") if entry.wrong else (entry.key.help, "form--dim")
        note_room = width - self.left - room - 2
        if len(note) > note_room:
            note = note.replace("✗ not ", "✗ ", 1)
        if len(note) > note_room:
            note = note[: max(note_room - 1, 0)] + "…" if note_room > 8 else ""
        segments = [
            Segment(f"  {entry.key.name:<{self.left - 2}}"[: self.left], style("form--name")),
            Segment(f" {value:<{room - 1}}", style("form--dim" if entry.absent else "form--value")),
            Segment(f"  {note}", style(part)),
        ]
        return Strip(segments).adjust_cell_length(width, self.rich_style)

    def on_click(self, event: events.Click) -> None:
        entry = self._lines[event.y] if event.y < len(self._lines) else ""
        if isinstance(entry, Row) and event.widget is self:
            self.go_to(entry)


class RecipeForm(Vertical):
    """All keys of a recipe, section by section, and below them what the key under the cursor means.

    Messages:
        Edited: The user changed a key; `value` is `ABSENT` where it was emptied.
    """

    DEFAULT_CSS = """
    RecipeForm > VerticalScroll { height: 1fr; scrollbar-size-vertical: 1; }
    RecipeForm > #help { height: 2; padding: 0 1; color: $text-muted; }
    .-narrow RecipeForm > #help { height: 1; }
    """

    class Edited(Message):
        """A key's value as the user has it now."""

        def __init__(self, path: str, value: Any) -> None:
            super().__init__()
            self.path = path
            self.value = value

    def compose(self) -> ComposeResult:
        with VerticalScroll(can_focus=False):
            yield FormLines()
        yield Static(id="help")

    def on_mount(self) -> None:
        self._show_help()

    @property
    def _lines(self) -> FormLines:
        return self.query_one(FormLines)

    def show(self, data: Mapping[str, Any], wrong: Mapping[str, str]) -> None:
        """Show a recipe's plain data, and what is wrong with it by path."""
        lines = self._lines
        for path, row in lines.rows.items():
            row.value, row.wrong = value_at(data, path), wrong.get(path, "")
        lines.place_editor()
        lines.refresh()
        self._show_help()

    def focus_key(self, path: str | None = None) -> None:
        """Put the cursor on this key; without one, on what is wrong, or else where it was."""
        rows = self._lines.rows
        wrong = next((r for r in rows.values() if r.wrong), self._lines.current)
        self._lines.go_to(rows.get(path or "", wrong))

    def _show_help(self) -> None:
        row = self._lines.current
        key = row.key
        words = Text()
        words.append(f"{key.path}: ", "bold")
        if row.wrong:
            words.append(f"✗ {row.wrong}. ", f"bold {self.app.theme_variables.get('text-error', '')}".strip())
        elif row.absent:
            words.append(f"not in the recipe: {key.default} is used. ")
        words.append(key.help or ("" if row.wrong else key.allowed))
        self.query_one("#help", Static).update(words)

    # --- the user's input

    def on_form_lines_moved(self, event: FormLines.Moved) -> None:
        event.stop()
        self._show_help()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        self._lines.action_move(1)

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        row = self._lines.current
        if not row.cycles and not row.means(event.value):
            text = event.value.strip()
            self.post_message(self.Edited(row.key.path, read(row.key, text) if text else ABSENT))

    def on_cycle_changed(self, event: Cycle.Changed) -> None:
        event.stop()
        row = self._lines.current
        if row.cycles:
            self.post_message(self.Edited(row.key.path, read(row.key, event.value)))

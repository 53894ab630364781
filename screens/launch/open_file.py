"""Asks for a recipe file: paths are completed as they are typed, and a file that cannot be read is reported at once."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, ClassVar, cast

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.screen import ModalScreen
from textual.widgets import Input, Static

from lorawatch.screens.launch.model import Choice, read_recipe_file
from lorawatch.screens.shared.background import Answered
from lorawatch.system.user_files import expanded
from lorawatch.text.sanitize import clean

if TYPE_CHECKING:
    from lorawatch.screens.shared.services import AppServices

_SHOWN = 8
_LOOKED_AT = 5000


def completions(text: str) -> list[str]:
    """Folders and YAML files that continue a path, as the user writes it (`~` stays), in order; folders end in `/`."""
    typed, _, start = text.rpartition("/")
    folder = expanded((typed or "/") if "/" in text else ".")
    prefix = f"{typed}/" if "/" in text else ""
    matches = []
    try:
        with os.scandir(folder) as entries:
            for count, entry in enumerate(entries):
                if count >= _LOOKED_AT:
                    break
                name = entry.name
                if not name.startswith(start) or (name.startswith(".") and not start.startswith(".")):
                    continue
                if entry.is_dir():
                    matches.append(f"{prefix}{name}/")
                elif name.endswith((".yaml", ".yml")):
                    matches.append(prefix + name)
    except OSError:
        return []
    return sorted(matches)


class OpenFile(ModalScreen[Choice]):
    """A path in one line; tab completes it, enter opens the file, escape leaves everything as it is."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "dismiss(None)", "Leave"),
        Binding("tab", "complete", "Complete", priority=True),
    ]
    CSS = """
    OpenFile { align: center middle; }
    OpenFile > Vertical { width: 76; max-width: 96%; height: auto; max-height: 96%; border: round $primary;
        background: $surface; padding: 0 2; }
    OpenFile #matches { color: $text-muted; height: auto; }
    OpenFile #wrong { color: $text-error; height: auto; text-style: bold; }
    """

    def __init__(self) -> None:
        super().__init__()
        self._matches: list[str] = []

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text("Recipe file to open"))
            yield Input(placeholder="path; tab completes it", compact=True)
            yield Static(id="wrong")
            yield Static(id="matches")

    def on_mount(self) -> None:
        self._look("")

    def _look(self, text: str) -> None:
        cast("AppServices", self.app).background.ask(self, "matches", lambda: (text, completions(text)))

    def on_input_changed(self, event: Input.Changed) -> None:
        self.query_one("#wrong", Static).update("")
        self._look(event.value)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        name = event.value.strip()
        if name:
            cast("AppServices", self.app).background.ask(self, "file", lambda: read_recipe_file(name))

    def on_answered(self, message: Answered) -> None:
        if not self.is_current:  # enter was pressed twice
            return
        if message.key == "file":
            if message.error is None:
                self.dismiss(message.value)
            else:
                self.query_one("#wrong", Static).update(Text(f"✗ {clean(str(message.error))}"))
        elif message.error is None:
            text, matches = message.value
            if text == self.query_one(Input).value:
                self._show(matches)

    def _show(self, matches: list[str]) -> None:
        self._matches = matches
        names = [clean(m).rstrip("/").rpartition("/")[2] + ("/" if m.endswith("/") else "") for m in matches]
        words = "\n".join(f"  {n}" for n in names[:_SHOWN])
        more = len(names) - _SHOWN
        self.query_one("#matches", Static).update(Text(words + (f"\n  … {more} more" if more > 0 else "")))

    def action_complete(self) -> None:
        """Complete the path as far as all matches agree."""
        box = self.query_one(Input)
        common = os.path.commonprefix(self._matches)  # noqa: RUF071  characters are what is typed
        if len(common) > len(box.value):
            box.value = common
            box.cursor_position = len(common)

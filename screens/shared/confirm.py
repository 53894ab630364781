"""Questions before an action, and the help page."""

from __future__ import annotations

from typing import ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical, VerticalScroll
from textual.screen import ModalScreen
from textual.widgets import Button, Input, Static


class Confirm(ModalScreen[bool]):
    """Yes or no: `y`, `n`, escape, the arrow keys or the mouse."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "answer(True)", "Yes"),
        Binding("n,escape", "answer(False)", "No"),
        Binding("left,right", "app.focus_next", show=False),
    ]
    CSS = """
    Confirm { align: center middle; }
    Confirm > Vertical { width: auto; min-width: 36; max-width: 72; height: auto; border: round $primary;
        background: $surface; padding: 1 2; }
    Confirm Static { width: auto; max-width: 66; }
    Confirm Horizontal { height: auto; width: auto; margin-top: 1; }
    Confirm Button { margin-right: 2; }
    """

    def __init__(self, question: str) -> None:
        super().__init__()
        self._question = question

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text(self._question))
            with Horizontal():
                yield Button("Yes (y)", id="yes", variant="warning", compact=True)
                yield Button("No (n)", id="no", compact=True)

    def on_mount(self) -> None:
        self.query_one("#no").focus()

    def on_button_pressed(self, event: Button.Pressed) -> None:
        self.dismiss(event.button.id == "yes")

    def action_answer(self, yes: bool) -> None:
        self.dismiss(yes)


class Help(ModalScreen[None]):
    """What a screen is for and what its keys do; any of escape, `?` and `q` closes it."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,question_mark,q,enter", "app.pop_screen", "Close")]
    CSS = """
    Help { align: center middle; }
    Help > VerticalScroll { width: 76; max-width: 96%; height: auto; max-height: 90%; border: round $primary;
        background: $surface; padding: 0 2; }
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        with VerticalScroll():
            yield Static(Text(paragraphs(self._text)))


def paragraphs(text: str) -> str:
    """Text without its line breaks, but for empty lines: it is wrapped where it is shown."""
    return "\n\n".join(" ".join(p.split()) for p in text.split("\n\n"))


class Ask(ModalScreen[str]):
    """One line of text; escape leaves everything as it is."""

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape", "dismiss(None)", "Leave")]
    CSS = """
    Ask { align: center middle; }
    Ask > Vertical { width: 60; max-width: 96%; height: auto; border: round $primary; background: $surface; padding: 1 2; }
    """

    def __init__(self, question: str, value: str = "") -> None:
        super().__init__()
        self._question = question
        self._value = value

    def compose(self) -> ComposeResult:
        with Vertical():
            yield Static(Text(self._question))
            yield Input(self._value, select_on_focus=False)

    def on_input_submitted(self, event: Input.Submitted) -> None:
        self.dismiss(event.value)

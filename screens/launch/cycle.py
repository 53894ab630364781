"""A choice of a few values in one line: `‹ bfloat16 ›`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual import events
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widget import Widget


class Cycle(Widget, can_focus=True):
    """Left and right, space, enter or a click go through the values.

    Args:
        choices: The values in order. Another value is shown too, since a file may have any.
        default: Shown dim while no value is set.
    """

    DEFAULT_CSS = """
    Cycle { height: 1; width: auto; background: $surface; color: $foreground; }
    Cycle:focus { background: $primary 30%; text-style: bold; }
    Cycle.-absent { color: $text-muted; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("right,space,enter", "go(1)", "Next value", show=False),
        Binding("left", "go(-1)", "Value before", show=False),
    ]

    class Changed(Message):
        """The user chose a value."""

        def __init__(self, cycle: Cycle, value: str) -> None:
            super().__init__()
            self.cycle = cycle
            self.value = value

        @property
        def control(self) -> Cycle:
            return self.cycle

    def __init__(self, choices: Sequence[str], default: str = "", *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.choices: tuple[str, ...] = ()
        self.value: str | None = None
        self._default = ""
        self.set_choices(choices, default)

    def set_choices(self, choices: Sequence[str], default: str) -> None:
        """Replace the choices."""
        self.choices, self._default = tuple(choices), default
        self.refresh(layout=True)

    def show(self, value: str | None) -> None:
        """Show this value; None shows the default. Nothing is posted."""
        self.value = value
        self.set_class(value is None, "-absent")
        self.refresh(layout=True)

    def render(self) -> Text:
        value = self._default if self.value is None else self.value
        several = len(self.choices) > 1 or value not in self.choices
        return Text(f"‹ {value} ›" if several else value, no_wrap=True, overflow="ellipsis")

    def action_go(self, direction: int) -> None:
        value = self._default if self.value is None else self.value
        at = self.choices.index(value) + direction if value in self.choices else 0
        chosen = self.choices[at % len(self.choices)]
        if chosen != value:
            self.show(chosen)
            self.post_message(self.Changed(self, chosen))

    def on_click(self, event: events.Click) -> None:
        self.action_go(-1 if event.x < 2 else 1)

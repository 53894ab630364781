"""The text fields of a comparison: tokens or a data file, prices, GPU counts; checked while the user types."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Horizontal, Vertical
from textual.events import DescendantBlur, DescendantFocus
from textual.message import Message
from textual.widgets import Input, Static

from lorawatch.screens.compare.model import READERS
from lorawatch.text.sanitize import clean

_LABELS = {
    "tokens": ("tokens", "50M, 1.2B or a data file"),
    "price_per_kwh": ("per kWh", "0.30"),
    "hardware": ("prices", "RTX PRO 4500=2600, host=4000"),
    "extrapolate": ("GPUs to fit", "8"),
}


class CompareFields(Vertical):
    """Four fields and a line for what is wrong with them.

    Attributes:
        values: The parsed values of the last valid texts.
        valid: The texts themselves; a data file's name is left out.

    Args:
        words: The fields' texts at first; must be valid.

    Messages:
        Changed: A field's words are valid, and their value is another than before.
        Confirmed: Enter was pressed in a field whose words are valid.
    """

    SCOPED_CSS = False  # it goes by classes of the screen
    DEFAULT_CSS = """
    CompareFields { height: auto; padding: 0 1; }
    CompareFields #rows, CompareFields Horizontal { height: auto; }
    CompareFields .field { height: 1; width: 1fr; }
    CompareFields .field Static { width: auto; padding: 0 1 0 0; color: $text-muted; }
    CompareFields .field Input { width: 1fr; background: $surface; padding: 0 1; }
    CompareFields .field Input:focus { background: $primary 30%; }
    CompareFields .field Input.wrong { text-style: bold underline; color: $text-error; }
    CompareFields #field-price_per_kwh, CompareFields #field-extrapolate { width: 24; padding-left: 2; }
    CompareFields #words { height: auto; max-height: 2; display: none; }
    CompareFields #words.shown { display: block; }
    .-wide CompareFields #rows { layout: horizontal; }
    .-wide CompareFields #rows > Horizontal { width: 1fr; }
    .-wide CompareFields #field-hardware { padding-left: 2; }
    .single CompareFields { display: none; }
    .single.show-fields CompareFields { display: block; }
    .single CompareFields #rows Horizontal { layout: vertical; }
    .single CompareFields #rows .field { layout: horizontal; width: 1fr; padding-left: 0; }
    .single CompareFields #rows .field Static { width: 12; }
    """
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("down", "app.focus_next", show=False),
        Binding("up", "app.focus_previous", show=False),
    ]

    class Changed(Message):
        """A field has a new valid value."""

        def __init__(self, fields: CompareFields, name: str, value: Any) -> None:
            super().__init__()
            self.fields = fields
            self.name = name
            self.value = value

    class Confirmed(Message):
        """Enter in a field."""

        def __init__(self, fields: CompareFields, name: str, value: Any) -> None:
            super().__init__()
            self.fields = fields
            self.name = name
            self.value = value

    def __init__(self, words: Mapping[str, str], *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id)
        self.values: dict[str, Any] = {name: read(words.get(name, "")) for name, read in READERS.items()}
        self.valid = {name: words.get(name, "") for name in READERS}
        self._wrong: dict[str, str] = {}
        self._said: dict[str, str] = {}
        self._at = "tokens"

    def compose(self) -> ComposeResult:
        with Vertical(id="rows"):
            for pair in (("tokens", "price_per_kwh"), ("hardware", "extrapolate")):
                with Horizontal():
                    for name in pair:
                        label, example = _LABELS[name]
                        with Horizontal(classes="field", id=f"field-{name}"):
                            yield Static(label)
                            yield Input(self.valid[name], example, id=name, compact=True)
        yield Static(id="words")

    def say(self, name: str, words: str, *, wrong: bool = False) -> None:
        """Show this text about a field until the field changes; an empty text removes it."""
        self._wrong.pop(name, None)
        (self._wrong if wrong else self._said)[name] = words
        self._show_message()

    def hint(self, hints: Sequence[str]) -> None:
        """Show which requests of the fields could not be met."""
        fit = [h for h in hints if "extrapolated" in h]
        self._said["extrapolate"] = "; ".join(fit)
        self._said["hardware"] = "; ".join(h for h in hints if h not in fit)
        self._show_message()

    # --- typing

    def on_input_changed(self, event: Input.Changed) -> None:
        event.stop()
        name = event.input.id or ""
        self._wrong.pop(name, None)
        self._said.pop(name, None)
        try:
            value = READERS[name](event.value)
        except ValueError as error:
            self._wrong[name] = str(error)
        else:
            self.valid[name] = "" if isinstance(value, Path) else event.value
            if value != self.values[name]:
                self.values[name] = value
                self.post_message(self.Changed(self, name, value))
        self._show_message()

    def on_input_submitted(self, event: Input.Submitted) -> None:
        event.stop()
        name = event.input.id or ""
        if name not in self._wrong:
            self.post_message(self.Confirmed(self, name, self.values[name]))

    def on_descendant_focus(self, event: DescendantFocus) -> None:
        self._at = event.widget.id or self._at
        self._show_message()

    def on_descendant_blur(self, event: DescendantBlur) -> None:
        self._show_message()

    def _show_message(self) -> None:
        """One line: about the field that is typed into, else about one that is wrong, else about any."""
        for name in READERS:
            self.query_one(f"#{name}", Input).set_class(name in self._wrong, "wrong")
        order = sorted(READERS, key=lambda n: (n != self._at, n not in self._wrong))
        for name in order:
            words = self._wrong.get(name) or self._said.get(name)
            if words:
                wrong = name in self._wrong
                mark, style = ("✗", f"bold {self.app.theme_variables.get('text-error', '')}") if wrong else ("·", "")
                line = Text(clean(f"{mark} {_LABELS[name][0]}: {words}"), style.strip())
                break
        else:
            line = Text()
        box = self.query_one("#words", Static)
        box.update(line)
        box.set_class(bool(line), "shown")

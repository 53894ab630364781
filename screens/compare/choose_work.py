"""Chooses the kind of work to compare, where the history has several."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from rich.text import Text
from textual.app import ComposeResult
from textual.binding import Binding, BindingType
from textual.screen import ModalScreen
from textual.widgets import OptionList
from textual.widgets.option_list import Option

if TYPE_CHECKING:
    from lorawatch.comparing.kinds import Kind


class ChooseWork(ModalScreen[str]):
    """A list of the kinds of work; the answer is the key of the chosen one's baseline, or None.

    Args:
        here: Key of the present baseline.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("escape,w", "dismiss(None)", "Leave")]
    CSS = """
    ChooseWork { align: center middle; }
    ChooseWork > OptionList { width: 138; max-width: 96%; height: auto; max-height: 80%; border: round $primary;
        background: $surface; border-title-color: $primary; }
    """

    def __init__(self, kinds: Sequence[Kind], here: str) -> None:
        super().__init__()
        self._kinds = kinds
        self._here = here

    def compose(self) -> ComposeResult:
        listing = OptionList()
        for number, kind in enumerate(self._kinds):
            listing.add_options([*([None] if number else []), Option(kind_words(kind))])
        listing.border_title = "which work"
        yield listing

    def on_mount(self) -> None:
        keys = [{c.key for c in kind.configurations} for kind in self._kinds]
        self.query_one(OptionList).highlighted = next((i for i, k in enumerate(keys) if self._here in k), 0)

    def on_option_list_option_selected(self, event: OptionList.OptionSelected) -> None:
        self.dismiss(self._kinds[event.option_index].baseline.key)


def kind_words(kind: Kind) -> Text:
    """The work, and the number and labels of its configurations."""
    count = len(kind.configurations)
    labels = ", ".join(dict.fromkeys(c.label for c in kind.configurations))
    text = Text(kind.words, "bold")
    return text.append(f"\n  {count} configuration{'s' if count != 1 else ''}: {labels[:200]}", "not bold dim")

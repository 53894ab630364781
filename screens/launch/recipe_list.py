"""The recipes to start from, each with the user's changes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from rich.text import Text
from textual.binding import Binding, BindingType
from textual.message import Message
from textual.widgets import OptionList
from textual.widgets.option_list import Option

from lorawatch.screens.launch.model import Choice
from lorawatch.text.sanitize import clean

GROUPS = ("file", "builtin", "recent", "history")


class RecipeList(OptionList):
    """Files first, then built-in recipes, those of the latest runs, and all others of the history; each once.

    Messages:
        Chosen: Another recipe is under the cursor, or the same one has its first text back.
    """

    BINDINGS: ClassVar[list[BindingType]] = [Binding("r", "original", "Original", show=False)]

    class Chosen(Message):
        """The text to edit."""

        def __init__(self, text: str) -> None:
            super().__init__()
            self.text = text

    def __init__(self, *, id: str | None = None) -> None:  # noqa: A002
        super().__init__(id=id, compact=True)
        self.border_title = "recipe"
        self._groups: dict[str, list[Choice]] = {}
        self._shown: list[Choice] = []
        self._drafts: dict[bytes, str] = {}
        self._chosen: Choice | None = None

    def show(self, group: str, choices: Sequence[Choice]) -> None:
        """Show these as one of the `GROUPS`; what is under the cursor stays there."""
        self._groups[group] = list(choices)
        once: dict[bytes, Choice] = {}
        for name in GROUPS:
            for choice in self._groups.get(name, []):
                once.setdefault(choice.identity, choice)
        shown = list(once.values())
        if shown != self._shown:
            self._shown = shown
            with self.prevent(OptionList.OptionHighlighted):
                self.clear_options()
                self.add_options(Option(self._label(c)) for c in shown)
                chosen = self._chosen.identity if self._chosen else None
                self.highlighted = next((i for i, c in enumerate(shown) if c.identity == chosen), None)
        if self._chosen is None and shown:
            self.highlighted = 0

    def knows(self, group: str) -> bool:
        """Whether this group has been shown."""
        return group in self._groups

    def open(self, choice: Choice) -> None:
        """Put a file's recipe on top, as it is on the disk now, and under the cursor; nothing is posted."""
        self._drafts.pop(choice.identity, None)
        self._chosen = choice
        self.show("file", [choice, *(c for c in self._groups.get("file", []) if c.identity != choice.identity)])

    def edited(self, text: str) -> None:
        """The user has changed the chosen recipe to this."""
        chosen = self._chosen
        if chosen is None:
            return
        before = chosen.identity in self._drafts
        if text == chosen.text:
            self._drafts.pop(chosen.identity, None)
        else:
            self._drafts[chosen.identity] = text
        if before != (chosen.identity in self._drafts) and chosen in self._shown:
            self.replace_option_prompt_at_index(self._shown.index(chosen), self._label(chosen))

    def _label(self, choice: Choice) -> Text:
        mark = "*" if choice.identity in self._drafts else ""
        name = Text(f"{clean(choice.name)[:40]}{mark}  ", no_wrap=True, overflow="ellipsis", end="")
        return name.append(clean(choice.source), "dim")

    def on_option_list_option_highlighted(self, event: OptionList.OptionHighlighted) -> None:
        self._chosen = self._shown[event.option_index]
        self.post_message(self.Chosen(self._drafts.get(self._chosen.identity, self._chosen.text)))

    def action_original(self) -> None:
        """Take back the changes to the chosen recipe."""
        if self._chosen is not None and self._chosen.identity in self._drafts:
            self.edited(self._chosen.text)
            self.post_message(self.Chosen(self._chosen.text))

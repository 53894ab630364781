"""The layout of the Compare screen, by the size of the terminal."""

from __future__ import annotations

from collections.abc import Sequence

from rich.console import Console
from rich.text import Text

WIDE, HIGH, STACKED = 140, 30, 50  # columns; rows; rows for a chart above a ladder
PANES = ("chart", "ladder", "notes", "fields")
CSS = """
CompareScreen #answer { height: auto; padding: 0 1; }
CompareScreen #table { max-height: 50%; min-height: 3; border: round $foreground 40%; border-title-color: $primary;
    border-subtitle-color: $text-muted; }
CompareScreen #table:focus { border: round $primary; }
CompareScreen #about { height: 1; padding: 0 2; color: $text-muted; }
CompareScreen #notice { height: auto; max-height: 2; padding: 0 1; display: none; }
CompareScreen #notice.shown { display: block; }
CompareScreen.-low #table { max-height: 35%; border: none; border-top: solid $foreground 40%; }
CompareScreen.-low #table:focus { border: none; border-top: solid $primary; }
CompareScreen.-low #about { display: none; }
CompareScreen.single #table { max-height: 100%; height: 1fr; }
CompareScreen.single.show-chart #table, CompareScreen.single.show-ladder #table, CompareScreen.single.show-notes #table,
CompareScreen.single.show-fields #table { display: none; }
"""


def single(width: int, height: int) -> bool:
    """Whether there is room for only one part at a time."""
    return width < 80 or height < 20


def one_below(width: int, height: int) -> bool:
    """Whether there is room for only one part below the table."""
    return height < (HIGH if width >= WIDE else STACKED)


def views(width: int, height: int) -> tuple[str, ...]:
    """The parts that `v` goes through, starting with the first one shown."""
    if single(width, height):
        return ("table", *PANES)
    return ("chart", "ladder", "notes") if one_below(width, height) else ("chart", "notes")


def whole_sentences(sentences: Sequence[str], console: Console, width: int, height: int) -> Text:
    """The first sentences, as many as there are lines for: a figure is never cut."""
    lines = 2 if single(width, height) else 3 if height < HIGH else 6
    shown = list(sentences)
    while True:
        text = Text(shown[0], "bold").append(" ".join(["", *shown[1:]]), "not bold")
        if len(shown) == 1 or len(text.wrap(console, max(width - 2, 10))) <= lines:
            return text
        shown.pop()

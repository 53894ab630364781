"""The end of a run's logs, one file at a time."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.text import Text
from textual.app import ComposeResult
from textual.containers import Vertical, VerticalScroll
from textual.widgets import Static

if TYPE_CHECKING:
    from lorawatch.watching.logs import LogTail


class LogPage(Vertical):
    """A log and the names of the others.

    Attributes:
        shown: What was read last.
        wanted: The name of the log to read; empty before the first.
    """

    DEFAULT_CSS = """
    LogPage { height: 1fr; }
    LogPage #log-name { height: auto; max-height: 2; padding: 0 1; color: $text-muted; }
    LogPage VerticalScroll { height: 1fr; padding: 0 1; }
    """

    def __init__(self) -> None:
        super().__init__()
        self.shown: LogTail | None = None
        self.wanted = ""
        self._newer: LogTail | None = None

    def compose(self) -> ComposeResult:
        yield Static("reading …", id="log-name")
        with VerticalScroll():
            yield Static(id="log-lines")

    def on_mount(self) -> None:
        self.watch(self.query_one(VerticalScroll), "scroll_y", self._scrolled, init=False)

    def _scrolled(self) -> None:
        if self._newer is not None and self.query_one(VerticalScroll).is_vertical_scroll_end:
            self.show(self._newer)

    def turn(self, forth: bool) -> None:
        """Select the next log, or the one before."""
        names = self.shown.names if self.shown else ()
        if names:
            at = names.index(self.wanted) if self.wanted in names else 0
            self.wanted = names[(at + (1 if forth else -1)) % len(names)]

    def show(self, tail: LogTail) -> None:
        """Draw this; a reader who has scrolled up keeps the lines they read."""
        scroll = self.query_one(VerticalScroll)
        before, same = self.shown, self.shown is not None and self.shown.name == tail.name
        if same and before == tail:
            return
        if same and tail.lines and not scroll.is_vertical_scroll_end:
            self._newer = tail
            self._head(tail, "more has come: end shows it")
            return
        self.shown, self._newer = tail, None
        if self.wanted not in tail.names:
            self.wanted = tail.name
        self.query_one("#log-lines", Static).update(Text("\n".join(tail.lines or (tail.note,))))
        scroll.scroll_end(animate=False)
        self._head(
            tail, f"the last {_size(64 << 10)} of {_size(tail.size_bytes)}" if tail.cut else _size(tail.size_bytes)
        )

    def _head(self, tail: LogTail, words: str) -> None:
        if not tail.names:
            self.query_one("#log-name", Static).update(Text(""))
            return
        place = f"{tail.names.index(tail.name) + 1} of {len(tail.names)}" if tail.name in tail.names else ""
        others = "   l shows the next" if len(tail.names) > 1 else ""
        self.query_one("#log-name", Static).update(Text(f"{tail.name}   {place}   {words}{others}"))


def _size(count: int) -> str:
    if count < 1024:
        return f"{count} bytes"
    return f"{count / 2**10:,.0f} KiB" if count < 2**20 else f"{count / 2**20:,.1f} MiB"

"""The parts of every screen: the bar on top, the footer, help, and a message where the terminal is too small."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, cast

from textual.app import ComposeResult
from textual.binding import BindingType
from textual.events import Resize
from textual.screen import Screen
from textual.widgets import Footer, Static

from lorawatch.screens.shared.topbar import TopBar

if TYPE_CHECKING:
    from lorawatch.screens.shared.services import AppServices

SMALLEST = (40, 12)


class Keys(Footer):
    """A footer that releases the keys that it no longer shows.

    Textual's stays bound to them, some 300 objects a key and time that the keys change, until one of its own settings does.
    """

    async def recompose(self) -> None:
        await super().recompose()
        self.mutate_reactive(Footer.compact)


class BaseScreen(Screen[None]):
    """Base of the full screens.

    Subclasses give `TITLE` (one word), `HELP` (what the screen is for and what its keys do, a few paragraphs) and
    `compose_body`; classes `-narrow` (under 80 columns), `-medium` and `-wide` (from 140) are set by width, `-low`
    (under 30 rows) and `-high` by height, for style sheets.
    """

    HELP: ClassVar[str] = ""
    MODE: ClassVar[str] = ""
    """The highlighted entry of the top bar."""
    HORIZONTAL_BREAKPOINTS = [(0, "-narrow"), (80, "-medium"), (140, "-wide")]  # noqa: RUF012
    VERTICAL_BREAKPOINTS = [(0, "-low"), (30, "-high")]  # noqa: RUF012
    BINDINGS: ClassVar[list[BindingType]] = []

    @property
    def services(self) -> AppServices:
        """The app's shared services."""
        return cast("AppServices", self.app)

    def compose(self) -> ComposeResult:
        yield TopBar(self.MODE)
        yield from self.compose_body()
        yield Static(id="too-small")

    def on_mount(self) -> None:
        """The footer's keys come after the first frame, since it makes a widget for each key."""
        self.call_after_refresh(self._mount_footer)

    async def _mount_footer(self) -> None:
        if self.is_attached:  # the user may have left already
            await self.mount(Keys(show_command_palette=False))
            self.refresh_bindings()  # a footer shows nothing before its bindings are refreshed

    def compose_body(self) -> ComposeResult:
        """The widgets between the top bar and the footer."""
        raise NotImplementedError

    def on_resize(self, event: Resize) -> None:
        width, height = event.size
        small = width < SMALLEST[0] or height < SMALLEST[1]
        self.set_class(small, "-too-small")
        if small:
            self.query_one("#too-small", Static).update(
                f"{width}×{height} is too small\nlorawatch needs {SMALLEST[0]}×{SMALLEST[1]}"
            )

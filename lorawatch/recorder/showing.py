"""The recorder's display: shown what happens, and given up where it fails, since no run ends with its terminal."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from lorawatch.run.records import Event

if TYPE_CHECKING:
    from lorawatch.recorder.recorder import Recorder


class Showing:
    """Hands ticks and events to a display.

    Args:
        on_begin: Called at the beginning; None: there is no display.
        on_tick: Called every tick and once at the end.
        on_event: Called for each event.
        lost: Called once, with why the display was given up.
    """

    def __init__(
        self,
        on_begin: Callable[[], None] | None,
        on_tick: Callable[[Recorder], None] | None,
        on_event: Callable[[Event], None] | None,
        lost: Callable[[str], None],
    ) -> None:
        self._on_begin, self._on_tick, self._on_event, self._lost = on_begin, on_tick, on_event, lost

    def begin(self) -> None:
        """Show that there is a run."""
        if self._on_begin is not None:
            try:
                self._on_begin()
            except Exception as error:  # noqa: BLE001  a terminal that has gone must not end a recorder
                self._give_up(error)

    def tick(self, recorder: Recorder) -> None:
        """Show the run as it is now."""
        if self._on_tick is not None:
            try:
                self._on_tick(recorder)
            except Exception as error:  # noqa: BLE001  a terminal that has gone must not end a recorder
                self._give_up(error)

    def event(self, event: Event) -> None:
        """Show an event."""
        if self._on_event is not None:
            try:
                self._on_event(event)
            except Exception as error:  # noqa: BLE001  a terminal that has gone must not end a recorder
                self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._on_tick = self._on_event = None
        self._lost(f"the display is gone ({type(error).__name__}: {error}); the recording goes on")

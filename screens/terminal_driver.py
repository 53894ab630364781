"""The terminal that Textual writes to, which may disappear during a write."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO, Any

from textual.drivers.linux_driver import LinuxDriver


class _TerminalOutput:
    """A terminal's text stream that reports its loss once and raises nothing.

    Textual writes from a thread that ends at an error; what is written afterwards fills that thread's queue, and then the
    program waits there for good.
    """

    def __init__(self, stream: IO[str], lost: Callable[[], object]) -> None:
        self._stream = stream
        self._lost = lost
        self._is_lost = False

    def write(self, text: str) -> int:
        self._attempt(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._attempt(self._stream.flush)

    def fileno(self) -> int:
        return self._stream.fileno()

    def isatty(self) -> bool:
        return self._stream.isatty()

    def _attempt(self, action: Callable[[], object]) -> None:
        if self._is_lost:
            return
        try:
            action()
        except (OSError, ValueError):
            self._is_lost = True
            self._lost()


class TerminalDriver(LinuxDriver):
    """Textual's driver, which also ends the app where its terminal has gone."""

    def __init__(self, app: Any, **options: Any) -> None:
        super().__init__(app, **options)
        self._file: Any = _TerminalOutput(self._file, lambda: app.call_later(app.exit))

"""Counts a data file's tokens beside everything else, since that may take minutes."""

from __future__ import annotations

import contextlib
from pathlib import Path

from textual.message_pump import MessagePump

from lorawatch.screens.background import Background

_COUNTING = "lorawatch.training.counting"


class TokenCounter:
    """One count at a time, in a process of its own; it ends with the screen, and where another count is asked for."""

    KEY = "count"

    def __init__(self) -> None:
        self._background: Background | None = None

    def count(self, node: MessagePump, path: Path, model: str, sequence_length: int) -> None:
        """Post `Answered(KEY, …)` to `node`: the path, and how many tokens of this model it has."""
        from lorawatch.launch.counting import Counted, count_tokens

        def work() -> tuple[Path, Counted]:
            return path, count_tokens(path, model, sequence_length)

        if self._background is None:
            self._background = Background()
        else:
            self._end()
        self._background.ask(node, self.KEY, work)

    def close(self) -> None:
        """End the count that is on its way."""
        if self._background is not None:
            self._background.close(0)
            self._end()

    def _end(self) -> None:
        import psutil

        for child in psutil.Process().children():
            with contextlib.suppress(psutil.Error):
                if _COUNTING in child.cmdline():
                    child.kill()

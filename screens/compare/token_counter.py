"""Counts a data file's tokens in the background, since that may take minutes."""

from __future__ import annotations

import threading
from pathlib import Path
from typing import TYPE_CHECKING

from textual.message_pump import MessagePump

from lorawatch.errors import LorawatchError
from lorawatch.screens.shared.background import Background

if TYPE_CHECKING:
    from lorawatch.launch.counting import Counted


class TokenCounter:
    """One count at a time, in a process of its own; it ends with the screen, and when another count is asked for."""

    KEY = "count"

    def __init__(self) -> None:
        self._background: Background | None = None
        self._cancelled = threading.Event()

    def count(self, node: MessagePump, path: Path, model: str, sequence_length: int) -> None:
        """Post `Answered(KEY, …)` to `node`: the path, and how many tokens of this model it has; None instead where another
        count was asked for meanwhile."""
        from lorawatch.launch.counting import count_tokens

        self._cancelled.set()
        cancelled = self._cancelled = threading.Event()

        def work() -> tuple[Path, Counted] | None:
            try:
                counted = count_tokens(path, model, sequence_length, cancelled=cancelled)
            except LorawatchError:
                if cancelled.is_set():
                    return None
                raise
            return None if cancelled.is_set() else (path, counted)

        if self._background is None:
            self._background = Background()
        self._background.ask(node, self.KEY, work)

    def close(self) -> None:
        """End the running count."""
        self._cancelled.set()
        if self._background is not None:
            self._background.close()

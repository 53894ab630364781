"""A run's journals, followed as they grow."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Mapping

import msgspec

from lorawatch.run.directory import RunDir
from lorawatch.run.journal import JournalTail
from lorawatch.run.live import LiveView
from lorawatch.run.records import (
    AnyLine,
)

_PIECE = 512 << 10  # bytes between two looks at the clock


class Follower:
    """Tails a run's journals into a LiveView.

    Args:
        skip_host: Leave the host's journals out: the recorder feeds its own samples without the way over the disk.
        feed: Takes each line instead of the view.
        offsets: Where to begin, by journal file's name; what lies before is known from elsewhere.
    """

    def __init__(
        self,
        run: RunDir,
        view: LiveView | None = None,
        *,
        skip_host: bool = False,
        feed: Callable[[AnyLine], None] | None = None,
        offsets: Mapping[str, int] | None = None,
    ) -> None:
        self.run = run
        self.view = view or _view_of(run)
        self._feed = feed or self.view.feed
        self._skip_host = skip_host
        self._tails = {run.journal / name: JournalTail(run.journal / name, at) for name, at in (offsets or {}).items()}

    def poll(self, budget_s: float | None = None) -> list[AnyLine]:
        """Feed all new lines to the view and return them. Ranks' lines come before the host's and events.

        Args:
            budget_s: Come back after about this time though there is more: `unread_bytes` says how much.
        """
        lines: list[AnyLine] = []
        until = math.inf if budget_s is None else time.monotonic() + budget_s
        try:
            files = sorted(self.run.journal.glob("*.jsonl"), key=lambda p: (not p.name.startswith("rank-"), p.name))
        except OSError:
            return lines
        for path in files:
            if self._skip_host and not path.name.startswith("rank-"):
                continue
            tail = self._tails.setdefault(path, JournalTail(path))
            while True:
                new = list(tail.records(_PIECE))
                for line in new:
                    self._feed(line)
                lines += new
                if not new:
                    break
                if time.monotonic() >= until:
                    return lines
        return lines

    def unread_bytes(self) -> int:
        """Bytes of the journals not read yet, a line being written included."""
        unread = 0
        with contextlib.suppress(OSError):
            for path in self.run.journal.glob("*.jsonl"):
                tail = self._tails.get(path)
                unread += max(path.stat().st_size - (tail.offset if tail else 0), 0)
        return unread

    @property
    def broken(self) -> int:
        """Lines stepped over so far because they were no valid record."""
        return sum(t.broken for t in self._tails.values())


def _view_of(run: RunDir) -> LiveView:
    try:
        info = run.info()
    except (OSError, msgspec.MsgspecError):
        return LiveView()
    return LiveView(separate=info.separate, eval_every=info.eval_every)

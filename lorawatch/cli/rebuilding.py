"""What a command does that meets a damaged history: a new one is made, with words on standard error about it."""

from __future__ import annotations

import time

import click

from lorawatch.errors import HistoryDamaged
from lorawatch.text.sanitize import clean

# They only ask, or check before they write: run once more, they do the same.
ASKING = frozenset({"runs", "show", "compare", "estimate", "sql", "snapshot", "import", "replay"})
_EVERY_S = 2.0


def made_again(error: Exception, command: str | None) -> bool:
    """Whether a command ended because of the history, which is whole now, so that it may run once more.

    Raises:
        HistoryError: It cannot be made whole.
    """
    if not isinstance(error, HistoryDamaged) or command not in ASKING or error.answered:
        return False
    _say(error.message)
    rebuild(error)
    return True


def rebuild(error: HistoryDamaged | None = None) -> None:
    """Make the history again, with progress and result on standard error.

    Args:
        error: The damage that was found; without one a history that may be sound is replaced.

    Raises:
        HistoryError: It cannot be written, or others hold it.
    """
    from lorawatch.storage.repair import repair

    done = repair(error, on_wait=_say, on_progress=_Progress().show)
    if done is None:
        _say("another lorawatch has made the history again")
        return
    for line in done.lines():
        _say(line)


class _Progress:
    """How many runs are in: a line every two seconds, none for what is quick."""

    def __init__(self) -> None:
        self._next = time.monotonic() + _EVERY_S

    def show(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + _EVERY_S
            _say(f"{done:,} of {total:,} runs are in the new history")


def _say(words: str) -> None:
    click.echo(f"lorawatch: {clean(words)}", err=True)

"""What a recorder says once: a full disk, ranks that do not report, ranks that it does not know."""

from __future__ import annotations

from collections.abc import Callable

from lorawatch.run.live import LiveView, silent_words
from lorawatch.run.records import EventKind, RankStarted, Severity


class Notices:
    """Says each of these when it begins, and not again at every tick.

    Args:
        say: Called for each event with its kind, message and severity.
        host: This host's name.
    """

    def __init__(self, say: Callable[[EventKind, str, Severity], None], host: str) -> None:
        self._say, self._host = say, host
        self._disk_full = False
        self._reports_missing = False
        self._foreign: set[tuple[int, int]] = set()

    def disk(self, error: str | None) -> None:
        """The journals take no lines, or take them again.

        Args:
            error: Why the last lines were refused; None where they were taken.
        """
        if error and not self._disk_full:
            self._disk_full = True
            self._say("journal_waits", f"no line can be journaled, so they wait in memory: {error}", "warning")
        elif self._disk_full and not error:
            self._disk_full = False
            self._say("journal_back", "lines are journaled again", "info")

    def reports(self, view: LiveView) -> None:
        """Some ranks take steps and do not report them."""
        silent = [] if self._reports_missing else view.silent_ranks
        if silent:
            self._reports_missing = True
            self._say("ranks_missing", silent_words(silent, view.world_size), "warning")

    def foreign(self, line: RankStarted) -> None:
        """A rank's process cannot be found among those of the run."""
        if (line.attempt, line.rank) in self._foreign:
            return
        self._foreign.add((line.attempt, line.rank))
        where = "this host" if line.host.split(".")[0] == self._host else line.host
        words = (
            f"rank {line.rank} says that it is process {line.pid} on {where}, which cannot be found among the run's processes "
            "here: it can be asked to stop, and it is never signalled"
        )
        self._say("foreign_rank", words, "info")

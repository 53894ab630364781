"""A rank's side thread: writes the journal, reads measurements and sees requests. Training never waits for it."""

from __future__ import annotations

import contextlib
import logging
import threading
import time
from collections.abc import Callable

from lorawatch.run.directory import RunDir
from lorawatch.run.journal import JournalWriter
from lorawatch.run.records import Event, EventKind, PhaseChange, Record, Severity, Step
from lorawatch.system.permissions import make_private
from lorawatch.training.rank_info import RankInfo
from lorawatch.training.stopping import SaveAgreement, StopAgreement

_log = logging.getLogger(__name__)


class Observer:
    """Owns a rank's journal, and its part in the agreements to stop and to save.

    Args:
        run: The run's directory.
        rank_info: Which rank this is.
        interval_s: Seconds between two ticks.
    """

    def __init__(self, run: RunDir, rank_info: RankInfo, *, interval_s: float = 0.1) -> None:
        self.run = run
        self.rank_info = rank_info
        self.stopping = StopAgreement(run.control, rank_info)
        self.saving = SaveAgreement(run.control, rank_info)
        self.steps_made = 0
        """Number of step lines that were queued."""
        self._journal = JournalWriter(run.rank_journal(rank_info.rank), rank=rank_info.rank)
        self._interval_s = interval_s
        self._watchers: list[Callable[[], None]] = []
        self._cancel = threading.Event()
        self._ticking = threading.Lock()
        self._thread = threading.Thread(target=self._loop, name="lorawatch-observer", daemon=True)

    def start(self) -> Observer:
        """Start the thread.

        Returns:
            This observer.
        """
        with contextlib.suppress(OSError):
            make_private(self.run.journal)  # in a user's program the umask can be anything
            make_private(self.run.control)
            self.stopping.reserve()
            self._journal.reserve()
        self._thread.start()
        return self

    def append(self, record: Record) -> None:
        """Queue a journal line. Safe on any thread."""
        self.steps_made += isinstance(record, Step)
        self._journal.append(record)

    def phase(self, name: str, detail: str | None = None) -> None:
        """Journal what the rank does from now on."""
        self.append(
            PhaseChange(
                at=time.time(), attempt=self.rank_info.attempt, rank=self.rank_info.rank, name=name, detail=detail
            )
        )

    def emit_event(self, kind: EventKind, message: str, severity: Severity = "info") -> None:
        """Journal an event. Of ranks that train one model, one rank emits it for all; in a separate run it belongs to
        this rank.
        """
        rank = self.rank_info.rank if self.rank_info.separate else None
        self.append(Event(at=time.time(), kind=kind, severity=severity, message=message, rank=rank))

    def watch(self, tick: Callable[[], None]) -> None:
        """Call a function at every tick, on the side thread."""
        self._watchers.append(tick)

    def unwatch(self, tick: Callable[[], None]) -> None:
        """Do not call a function any longer."""
        if tick in self._watchers:
            self._watchers.remove(tick)

    def tick(self) -> None:
        """Make one tick now, on the calling thread: call the watchers, see requests, write the journal."""
        with self._ticking:
            for watcher in list(self._watchers):
                try:
                    watcher()
                except Exception:  # noqa: BLE001  observing must never end training
                    _log.exception("lorawatch stops measuring: an observer failed")
                    self.unwatch(watcher)
            try:
                self.stopping.tick()
                self.saving.tick()
            except OSError as error:
                _log.warning("lorawatch cannot read the run's requests: %s", error)
            self._journal.flush()

    def close(self, wait_s: float = 0.0) -> int:
        """Make a last tick, write what waits, and end the thread. Safe to call twice.

        Args:
            wait_s: Seconds to wait for a disk that does not take the lines.

        Returns:
            Number of lines that the disk did not take.
        """
        self._cancel.set()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join(timeout=5)
        if self._ticking.acquire(timeout=1):  # a thread stuck in a hung file system keeps it
            self._ticking.release()
            self.tick()
            self.stopping.release()
            return self._journal.close(wait_s)
        return self._journal.waiting

    def _loop(self) -> None:
        while not self._cancel.wait(self._interval_s):
            self.tick()

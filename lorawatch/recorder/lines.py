"""What a recorder itself writes: events and samples, on their way into the journals, the live view and the display."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable

from lorawatch.run.directory import RunDir
from lorawatch.run.journal import JournalWriter
from lorawatch.run.live import LiveView
from lorawatch.run.records import Event, EventKind, GpuSample, HostSample, Record, Severity


class RecorderLines:
    """The recorder's lines. `put` is for any thread; all else is for the one that records.

    Args:
        run: Whose journals take the lines.
        host: This host's name.
        view: Is fed each line; it and the display belong to the thread that records.
        show: Called for each event.

    Attributes:
        show: Shows an event that is in a journal already, or can be in none.
        gpu_lost: UUIDs of the GPUs that the driver lost.
    """

    def __init__(self, run: RunDir, host: str, view: LiveView, show: Callable[[Event], None]) -> None:
        self._view, self.show = view, show
        self._host_journal = JournalWriter(run.host_journal(host))
        self._events_journal = JournalWriter(run.events_journal)
        self._inbox: deque[Record] = deque()
        self.gpu_lost: list[str] = []

    def put(self, record: Record) -> None:
        """Leave a line of another thread, until `take`."""
        self._inbox.append(record)

    def take(self) -> None:
        """Take over what other threads have left."""
        while self._inbox:
            record = self._inbox.popleft()
            if isinstance(record, Event):
                self.event(record)
            elif isinstance(record, GpuSample | HostSample):
                self._host_journal.append(record)
                self._view.feed(record)

    def event(self, event: Event) -> None:
        """Journal and show an event."""
        self._events_journal.append(event)
        self._view.feed(event)
        if event.kind == "gpu_lost":
            self.gpu_lost.append(str((event.detail or {}).get("gpu_uuid", "a GPU")))
        self.show(event)

    def say(self, kind: EventKind, message: str, severity: Severity = "info") -> None:
        """Journal and show an event of this moment."""
        self.event(Event(at=time.time(), kind=kind, severity=severity, message=message))

    def show_only(self, kind: EventKind, message: str, severity: Severity = "error") -> None:
        """Show an event that cannot be journaled any more."""
        self.show(Event(at=time.time(), kind=kind, severity=severity, message=message))

    def flush(self) -> str | None:
        """Write what waits. Returns why the disk does not take it, or None."""
        self._host_journal.flush()
        self._events_journal.flush()
        return self._host_journal.error or self._events_journal.error

    def close(self) -> None:
        """Write what waits, and close the journals."""
        self._host_journal.close()
        self._events_journal.close()

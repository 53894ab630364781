"""The recorder's short writes into the history, on a thread of their own: training and sampling never wait for them."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable

from lorawatch.errors import HistoryBusy, LorawatchError
from lorawatch.run.directory import RunDir
from lorawatch.run.records import Event

EVERY_S = 5.0


class Ingesting:
    """Brings a run's new journal lines into the history every few seconds, and all of them at the end.

    A history that is locked by another process, full, or broken costs nothing but time: the lines wait in the journals.

    Args:
        run: The run.
        on_event: Takes the news of a history that does not take lines, once per spell.
        every_s: The cycle.
    """

    def __init__(self, run: RunDir, on_event: Callable[[Event], None], every_s: float = EVERY_S) -> None:
        self._run = run
        self._on_event = on_event
        self._every_s = every_s
        self._cancel = threading.Event()
        self._thread = threading.Thread(target=self._loop, name="ingest", daemon=True)
        self._trouble: str | None = None
        self.cycles = 0
        self.missed = 0
        self.slowest_s = 0.0

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Cancel the cycle and wait for the write in flight."""
        self._cancel.set()
        if self._thread.is_alive():
            self._thread.join(timeout=30)

    def finish(self, wait_s: float, on_wait: Callable[[str], None]) -> str | None:
        """The last write: all lines, the run's final state, its summary.

        Args:
            wait_s: How long to wait for a history that another process has locked.
            on_wait: Told why it waits, once.

        Returns:
            None, or why the history does not have everything yet; the lines are safe in the journals, and the next
            lorawatch command brings them.
        """
        from lorawatch.storage.ingest import finish_run

        deadline = time.monotonic() + wait_s
        reported = False
        while True:
            try:
                finish_run(self._run)
                return None
            except HistoryBusy as error:
                reason = error.message
                if time.monotonic() > deadline:
                    return reason
                if not reported:
                    on_wait(reason)
                    reported = True
            except (LorawatchError, OSError) as error:
                return str(error)
            time.sleep(0.2)

    def _loop(self) -> None:
        from lorawatch.storage.ingest import ingest_run  # duckdb loads here, beside the start of the workers

        while not self._cancel.wait(self._every_s):
            started = time.monotonic()
            try:
                ingest_run(self._run)
            except Exception as error:  # noqa: BLE001  whatever the history's trouble is, the run goes on
                self.missed += 1
                self._report(error)
            else:
                self.cycles += 1
                self.slowest_s = max(self.slowest_s, time.monotonic() - started)
                if self._trouble is not None:
                    self._trouble = None
                    self._on_event(Event(at=time.time(), kind="history_back", message="the history takes lines again"))

    def _report(self, error: Exception) -> None:
        reason = error.message if isinstance(error, LorawatchError) else f"{type(error).__name__}: {error}"
        kind = type(error).__name__
        if self._trouble != kind:
            self._trouble = kind
            self._on_event(
                Event(
                    at=time.time(),
                    kind="history_waits",
                    severity="warning",
                    message=f"the history takes no lines now; they wait in the run's journals: {reason}",
                )
            )

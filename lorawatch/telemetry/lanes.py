"""A lane: a thread that does one thing at a fixed rate, and can say how punctual it is and whether it still moves."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from dataclasses import dataclass

LATE_S = 0.005


@dataclass(frozen=True, slots=True)
class Timing:
    """How punctual a lane has been.

    Attributes:
        ticks: Ticks done.
        missed: Ticks left out because the lane was still busy, or asleep with the whole machine, when they were due.
        late: Ticks that began more than 5 ms after they were due.
        worst_late_s: The worst delay of a tick's begin.
    """

    ticks: int = 0
    missed: int = 0
    late: int = 0
    worst_late_s: float = 0.0

    @property
    def on_time(self) -> float:
        """Share of the due ticks that began within 5 ms; 1 before the first."""
        due = self.ticks + self.missed
        return (self.ticks - self.late) / due if due else 1.0


class Lane:
    """Calls `tick` every `period_s` seconds on a thread of its own, on an absolute schedule: no drift.

    A tick that takes longer than its period leaves the due ones out; they are counted, never made up for in a burst.

    Args:
        name: For messages: what stands still when the lane hangs.
        period_s: Seconds between the begins of two ticks.
        tick: The work, given the tick's number from 0. It must not raise.
        on_wake: Called between two ticks after `wake`.
        on_end: Called once before the thread ends.
    """

    def __init__(
        self,
        name: str,
        period_s: float,
        tick: Callable[[int], None],
        *,
        on_wake: Callable[[], None] | None = None,
        on_end: Callable[[], None] | None = None,
    ) -> None:
        self.name = name
        self.period_s = period_s
        self.busy_with: str | None = None
        """What the tick works on now; the work itself sets it, so that a hang can be blamed."""
        self.beat = time.monotonic()
        """When the last tick ended, on the monotonic clock."""
        self._tick = tick
        self._on_wake = on_wake
        self._on_end = on_end
        self._woken = threading.Event()
        self._stopping = False
        self._ticks = self._missed = self._late = 0
        self._worst = 0.0
        self._thread: threading.Thread | None = None

    @property
    def stopping(self) -> bool:
        """Whether the lane was asked to end."""
        return self._stopping

    @property
    def timing(self) -> Timing:
        """Punctuality so far."""
        return Timing(self._ticks, self._missed, self._late, self._worst)

    def behind_s(self) -> float:
        """Seconds since the lane should have ended a tick again; 0 while it keeps its rate or does not run."""
        if not self.alive():
            return 0.0
        return max(time.monotonic() - self.beat - self.period_s, 0.0)

    def alive(self) -> bool:
        """Whether the thread runs."""
        return self._thread is not None and self._thread.is_alive()

    def start(self) -> None:
        """Begin; the first tick is due at once."""
        self.beat = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"lane-{self.name}", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        """Have `on_wake` called as soon as the lane is free."""
        self._woken.set()

    def stop(self) -> None:
        """Tell the lane to end after what it does now; does not wait."""
        self._stopping = True
        self._woken.set()

    def join(self, timeout_s: float) -> bool:
        """Wait for the end. Returns whether the lane has ended; one that hangs in a call has not."""
        if self._thread is None:
            return True
        self._thread.join(max(timeout_s, 0.0))
        return not self._thread.is_alive()

    def _run(self) -> None:
        start = time.monotonic()
        number = 0
        while True:
            due = start + number * self.period_s
            if not self._wait_until(due):
                break
            late = time.monotonic() - due
            self._worst = max(self._worst, late)
            self._late += late > LATE_S
            self._tick(number)
            self._ticks += 1
            now = self.beat = time.monotonic()
            number += 1
            overdue = int((now - start) / self.period_s) - number
            if overdue > 0:
                self._missed += overdue
                number += overdue
        if self._on_end:
            self._on_end()

    def _wait_until(self, due: float) -> bool:
        """Sleep until a tick is due. Returns False where the lane is to end."""
        while True:
            if self._woken.is_set():
                self._woken.clear()
                if self._stopping:
                    return False
                if self._on_wake:
                    self._on_wake()
            remaining = due - time.monotonic()
            if remaining <= 0:
                return not self._stopping
            self._woken.wait(remaining)

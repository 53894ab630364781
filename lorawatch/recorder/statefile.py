"""A run's `state.json` as its recorder keeps it: a heartbeat while the run lives, its end whatever the disk does."""

from __future__ import annotations

import time
from typing import Literal

import msgspec

from lorawatch.run.directory import RunDir, RunState
from lorawatch.system.files import Reserve
from lorawatch.system.processes import ProcessId

END_WAIT_S = 10.0
_RESERVED_BYTES = 16 << 10
_RETRY_S = 0.2

Loss = Literal["taken", "deleted"]


class StateFile:
    """Writes a run's state.

    Args:
        run: The run's directory.

    Attributes:
        state: What is written; the recorder changes it.
        lost: Why this recorder may write no more: `taken` by another recorder, or `deleted` with its directory.
        over_at: When the run's last process was heard, where it had ended before this recorder came.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self.state = run.state()
        self.lost: Loss | None = None
        self.over_at: float | None = None
        self._own = ProcessId.own()
        self._reserve: Reserve | None = None
        self._recorded_s = self.state.elapsed_s or 0.0
        self._began = time.monotonic()

    def begin(self) -> RunState:
        """Write down that this process records the run. Returns the state as it was.

        Raises:
            OSError: It cannot be written.
        """
        before = self.state
        now = time.time()
        if before.launcher is not None and before.heartbeat_at is not None:  # it went on without a recorder
            self._recorded_s += max((self.over_at or now) - before.heartbeat_at, 0.0)
        self._began = time.monotonic()
        self.state = msgspec.structs.replace(before, recorder=self._own, started_at=before.started_at or now)
        if self.state.state == "queued":
            self.state.state = "starting"
        self._stamp()
        self._run.write_state(self.state)
        self._reserve = Reserve(self._run.root / "state.json", _RESERVED_BYTES)
        return before

    def beat(self) -> Loss | None:
        """Write the state with a fresh heartbeat; what a full disk refuses is written by a later beat.

        Returns:
            Why this recorder may write no more, or None.
        """
        if self.lost is None:
            self.lost = self._check()
        if self.lost is None:
            self._stamp()
            try:
                self._run.write_state(self.state)
            except OSError:  # a full disk, for one
                return None
        return self.lost

    def end(self, wait_s: float = END_WAIT_S) -> bool:
        """Write the run's end, in the room reserved for it where the disk is full, and again until it is there.

        Args:
            wait_s: How long to go on.

        Returns:
            Whether it is written.
        """
        self.lost = self.lost or self._check()
        if self.lost is not None:
            return False
        self.state.ranks, self.state.family = [], []
        self._stamp()
        self.state.ended_at = self.over_at or time.time()
        data = msgspec.json.encode(self.state)
        reserve = self._reserve or Reserve(self._run.root / "state.json", _RESERVED_BYTES)
        deadline = time.monotonic() + wait_s
        while True:
            try:
                reserve.write(data)
                reserve.release()
                return True
            except OSError:
                if time.monotonic() > deadline or not self._run.root.is_dir():
                    return False
                time.sleep(_RETRY_S)

    def _stamp(self) -> None:
        self.state.heartbeat_at = time.time()
        self.state.elapsed_s = self._recorded_s + (0.0 if self.over_at else time.monotonic() - self._began)

    def _check(self) -> Loss | None:
        if not self._run.root.is_dir():
            return "deleted"
        try:
            written = self._run.state().recorder
        except (OSError, msgspec.MsgspecError):  # unreadable for a moment, or changed by hand: written again
            return None
        return None if written is None or written == self._own else "taken"

"""How the ranks agree on the step to stop at, without a collective and without a cost to the steps before.

Whoever wants the run to stop creates `control/stop`. Each rank's side thread sees it at its own moment and pledges the
next step as the earliest at which it could stop: `control/ack-attempt_K-rank-R` holds that number. The run stops at the
highest pledge. A rank waits after its own pledged step until all pledges are there, so it can never have passed the
agreed step; since side threads write the pledges, a rank that waits for another inside a step cannot hold them up.

The ranks of a separate run have nothing to agree on: each stops after the step that it pledged itself.
"""

from __future__ import annotations

import threading
from pathlib import Path

from lorawatch.rundir import write_atomically
from lorawatch.training.place import Place


class StopAgreement:
    """One rank's part in the agreement.

    Args:
        control: The run's `control` folder, which all ranks share.
        place: Which rank of how many, and which attempt.
    """

    def __init__(self, control: Path, place: Place) -> None:
        self._request = control / "stop"
        acks = [control / f"ack-attempt_{place.attempt}-rank-{r}" for r in range(place.world_size)]
        self._own = acks[place.rank] if place.rank < len(acks) else control / "ack"
        self._acks = [self._own] if place.separate else acks
        self._lock = threading.Lock()
        self._completed = 0
        self._pledge: int | None = None
        self._agreed = threading.Event()
        self.stop_at: int | None = None
        """The step after which every rank that takes part stops, once all have pledged."""

    @property
    def completed(self) -> int:
        """The last step that this rank finished."""
        return self._completed

    def resume_from(self, step: int) -> None:
        """Main thread, before the first step: training goes on after this one."""
        with self._lock:
            self._completed = max(self._completed, step)

    def tick(self) -> None:
        """Side thread, every 50–100 ms: see the request, pledge, gather the others' pledges."""
        if self.stop_at is not None or not self._request.exists():
            return
        with self._lock:
            if self._pledge is None:
                pledge = self._completed + 1
                try:
                    write_atomically(self._own, str(pledge).encode())
                except OSError:
                    return  # not pledged until the others can read it
                self._pledge = pledge
        pledges = []
        for path in self._acks:
            try:
                pledges.append(int(path.read_bytes()))
            except (OSError, ValueError):
                return
        self.stop_at = max(pledges)
        self._agreed.set()

    def step_completed(self, step: int, last: int | None = None) -> bool:
        """Main thread, after each step: whether to stop here. Waits only after the step this rank pledged.

        Args:
            step: The step that is done.
            last: The run's last step. There nobody waits: a rank that has already ended pledges no more.
        """
        with self._lock:
            self._completed = step
            pledged = self._pledge
        if pledged is None or step < pledged:
            return False
        if last is not None and step >= last:
            return self.stop_at is not None and step >= self.stop_at
        self._agreed.wait()
        return self.stop_at is not None and step >= self.stop_at

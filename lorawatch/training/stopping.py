"""How the ranks agree on the step to stop at, or to save at, without a collective and without a cost to the steps before.

Whoever wants the run to stop creates `control/stop`. Each rank's side thread sees it at its own moment and pledges the
next step as the earliest at which it could stop: `control/ack-attempt_K-rank-R` holds that number. The run stops at the
highest pledge. A rank waits after its own pledged step until all pledges are there, so it can never have passed the
agreed step; since side threads write the pledges, a rank that waits for another inside a step cannot hold them up.

`control/checkpoint` asks for a checkpoint in the same way, as often as it is written anew.

The ranks of a separate run have nothing to agree on: each stops after the step that it pledged itself.
"""

from __future__ import annotations

import threading
from pathlib import Path

from lorawatch.rundir import write_atomically
from lorawatch.training.place import Place


class _Agreement:
    """One rank's part in agreeing on a step for a request.

    Args:
        request: The request's file.
        place: Which rank of how many, and which attempt.
        acks: Beginning of the names of the pledges, beside the request.
    """

    def __init__(self, request: Path, place: Place, acks: str) -> None:
        self._request = request
        self._place = place
        self._lock = threading.Lock()
        self._completed = 0
        self._begin(acks)

    def _begin(self, acks: str) -> None:
        place, control = self._place, self._request.parent
        paths = [control / f"{acks}-attempt_{place.attempt}-rank-{r}" for r in range(place.world_size)]
        self._own = paths[place.rank] if place.rank < len(paths) else control / acks
        self._acks = [self._own] if place.separate else paths
        self._pledge: int | None = None
        self._agreed = threading.Event()
        self._agreed_step: int | None = None
        self._seen: frozenset[str] = frozenset()

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
        with self._lock:  # a round that is over is left to the main thread, which begins the next
            if self._agreed_step is not None:
                return
        if self._pledge is None:
            asked = self._asked()
            if asked is None:
                return
            with self._lock:
                pledge = self._completed + 1
                try:
                    write_atomically(self._own, f"{pledge} {asked}".strip().encode())
                except OSError:
                    return  # not pledged until the others can read it
                self._pledge = pledge
        pledges = []
        seen = []
        for path in self._acks:
            try:
                number, _, identity = path.read_text().partition(" ")
                pledges.append(int(number))
            except (OSError, ValueError):
                return
            seen.append(identity)
        with self._lock:
            self._seen = frozenset(seen)
            self._agreed_step = max(pledges)
            self._agreed.set()

    def _asked(self) -> str | None:
        """Which request there is that was not served yet; None where there is none."""
        return "" if self._request.exists() else None

    def _reached(self, step: int, last: int | None) -> bool:
        with self._lock:
            self._completed = step
            pledged = self._pledge
        if pledged is None or step < pledged:
            return False
        if last is None or step < last:
            self._agreed.wait()
        return self._agreed_step is not None and step >= self._agreed_step


class StopAgreement(_Agreement):
    """One rank's part in agreeing on the step to stop at.

    Args:
        control: The run's `control` folder, which all ranks share.
        place: Which rank of how many, and which attempt.
    """

    def __init__(self, control: Path, place: Place) -> None:
        super().__init__(control / "stop", place, "ack")

    @property
    def asked(self) -> bool:
        """Whether this rank has seen the request."""
        return self._pledge is not None

    @property
    def stop_at(self) -> int | None:
        """The step after which every rank that takes part stops, once all have pledged."""
        return self._agreed_step

    def step_completed(self, step: int, last: int | None = None) -> bool:
        """Main thread, after each step: whether to stop here. Waits only after the step this rank pledged.

        Args:
            step: The step that is done.
            last: The run's last step. There nobody waits: a rank that has already ended pledges no more.
        """
        return self._reached(step, last)


class SaveAgreement(_Agreement):
    """One rank's part in agreeing on the step after which all save, once for each time that somebody asks.

    A request is known again by its inode and time. Ranks may see different ones where somebody asks twice at the same
    moment, so each pledge says which it saw, and what any rank saw counts as served for all.

    Args:
        control: The run's `control` folder, which all ranks share.
        place: Which rank of how many, and which attempt.
    """

    def __init__(self, control: Path, place: Place) -> None:
        self._round = 0
        self._served: set[str] = set()
        super().__init__(control / "checkpoint", place, "ack-checkpoint-0")

    def _asked(self) -> str | None:
        try:
            found = self._request.stat()
        except FileNotFoundError:
            return None
        identity = f"{found.st_ino}.{found.st_mtime_ns}"
        return None if identity in self._served else identity

    def step_completed(self, step: int, last: int | None = None) -> bool:
        """Main thread, after each step: whether all ranks save here. Waits only after the step this rank pledged.

        Args:
            step: The step that is done.
            last: The run's last step; nobody saves there on request, since not all ranks may have heard of it.
        """
        if not self._reached(step, last) or (last is not None and step >= last):
            return False
        with self._lock:
            self._served |= self._seen
            self._round += 1
            self._begin(f"ack-checkpoint-{self._round}")
        return True

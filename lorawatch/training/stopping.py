"""How the ranks agree on the step to stop at, or to save at, without a collective and without a cost to the steps before.

Whoever wants the run to stop creates `control/stop`. Each rank's side thread sees it at its own moment and pledges the
next step as the earliest at which it could stop: `control/ack-attempt_K-rank-R` holds that number. The run stops at the
highest pledge. A rank waits after its own pledged step until all pledges are there, so it can never have passed the
agreed step; since side threads write the pledges, a rank that waits for another inside a step cannot hold them up.

`control/checkpoint` asks for a checkpoint in the same way, as often as it is written anew.

The ranks of a separate run have nothing to agree on: each stops after the step that it pledged itself.

Ranks that never look (a script with the callback on rank 0 only) pledge nothing: the others wait a bounded time for them, then
withdraw, name who did not answer, and train on.
"""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path

from lorawatch.system.files import Reserve, read_small, write_atomically
from lorawatch.training.rank_info import RankInfo

ANSWER_S = 15.0
"""How long a rank waits for the others' pledges. Their side threads look ten times a second, whatever their main threads do."""
_PLEDGE_BYTES = 128
_PLEDGE = re.compile(rb"(\d{1,18})(?: (\S{0,64}))?")


class Agreement:
    """One rank's part in agreeing on a step for a request.

    Args:
        request: The request's file.
        place: Which rank of how many, and which attempt.
        acks: Beginning of the names of the pledges, beside the request.
    """

    def __init__(self, request: Path, rank_info: RankInfo, acks: str) -> None:
        self.unanswered: list[int] = []
        """The ranks that did not answer in time; the caller takes them away once it has said so."""
        self._request = request
        self._rank_info = rank_info
        self._lock = threading.Lock()
        self._completed = 0
        self._begin_round(acks)

    def _begin_round(self, acks: str) -> None:
        rank_info, control = self._rank_info, self._request.parent
        paths = [control / f"{acks}-attempt_{rank_info.attempt}-rank-{r}" for r in range(rank_info.world_size)]
        self._own = paths[rank_info.rank] if rank_info.rank < len(paths) else control / acks
        self._acks = [self._own] if rank_info.separate else paths
        self._pledge: int | None = None
        self._asked_for = ""
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
            requested = self._open_request()
            if requested is None:
                return
            with self._lock:
                pledge = self._completed + 1
                try:
                    self._write(f"{pledge} {requested}".strip().encode())
                except OSError:
                    return  # not pledged until the others can read it
                self._pledge, self._asked_for = pledge, requested
        pledges = [_pledge(path) for path in self._acks]
        with self._lock:
            if self._pledge is None or any(p is None for p in pledges):
                return
            self._seen = frozenset(identity for _, identity in filter(None, pledges))
            self._agreed_step = max(step for step, _ in filter(None, pledges))
            self._agreed.set()

    def _write(self, pledge: bytes) -> None:
        """Write the pledge down for the others.

        Raises:
            OSError: The disk does not take it.
        """
        write_atomically(self._own, pledge)

    def _open_request(self) -> str | None:
        """Which request there is that was not served yet; None where there is none."""
        return "" if self._request.exists() else None

    def _at_agreed_step(self, step: int, last: int | None) -> bool:
        with self._lock:
            self._completed = step
            pledged = self._pledge
        if pledged is None or step < pledged:
            return False
        if (last is None or step < last) and not self._agreed.wait(ANSWER_S) and self._withdraw():
            return False
        return self._agreed_step is not None and step >= self._agreed_step

    def _withdraw(self) -> bool:
        """Give up waiting for the others, unless they have just answered."""
        silent = [rank for rank, path in enumerate(self._acks) if _pledge(path) is None]
        with self._lock:
            if self._agreed_step is not None:
                return False
            self.unanswered = silent
            self._pledge = None
            with contextlib.suppress(OSError):
                self._own.unlink(missing_ok=True)
            self._mark_unserved()
        return True

    def _mark_unserved(self) -> None:
        """Remember that this request cannot be served, so that no rank waits for it again. The lock is held."""
        raise NotImplementedError


class StopAgreement(Agreement):
    """One rank's part in agreeing on the step to stop at.

    Args:
        control: The run's `control` folder, which all ranks share.
        place: Which rank of how many, and which attempt.
    """

    def __init__(self, control: Path, rank_info: RankInfo) -> None:
        self._unserved = False
        self._room: Reserve | None = None
        super().__init__(control / "stop", rank_info, "ack")

    def reserve(self) -> None:
        """Take room on the disk for the pledge, so that the ranks can agree to stop where the disk is full."""
        self._room = Reserve(self._own, _PLEDGE_BYTES)

    def release(self) -> None:
        """Give the room back."""
        if self._room is not None:
            self._room.release()

    def _write(self, pledge: bytes) -> None:
        if self._room is None:
            super()._write(pledge)
        else:
            self._room.write(pledge)

    @property
    def requested(self) -> bool:
        """Whether this rank has seen the request."""
        return self._pledge is not None

    @property
    def stop_at(self) -> int | None:
        """The step after which every rank that takes part stops, once all have pledged."""
        return self._agreed_step

    def _open_request(self) -> str | None:
        return None if self._unserved else super()._open_request()

    def _mark_unserved(self) -> None:
        self._unserved = True

    def step_completed(self, step: int, last: int | None = None) -> bool:
        """Main thread, after each step: whether to stop here. Waits only after the step this rank pledged.

        Args:
            step: The step that is done.
            last: The run's last step. There nobody waits: a rank that has already ended pledges no more.
        """
        return self._at_agreed_step(step, last)


class SaveAgreement(Agreement):
    """One rank's part in agreeing on the step after which all save, once for each time that somebody asks.

    A request is known again by its inode and time. Ranks may see different ones where somebody asks twice at the same
    moment, so each pledge says which it saw, and what any rank saw counts as served for all.

    Args:
        control: The run's `control` folder, which all ranks share.
        place: Which rank of how many, and which attempt.
    """

    def __init__(self, control: Path, rank_info: RankInfo) -> None:
        self._round = 0
        self._served: set[str] = set()
        super().__init__(control / "checkpoint", rank_info, "ack-checkpoint-0")

    def _open_request(self) -> str | None:
        try:
            found = self._request.stat()
        except FileNotFoundError:
            return None
        identity = f"{found.st_ino}.{found.st_mtime_ns}"
        return None if identity in self._served else identity

    def _mark_unserved(self) -> None:
        self._served.add(self._asked_for)

    def step_completed(self, step: int, last: int | None = None) -> bool:
        """Main thread, after each step: whether all ranks save here. Waits only after the step this rank pledged.

        Args:
            step: The step that is done.
            last: The run's last step; nobody saves there on request, since not all ranks may have heard of it.
        """
        if not self._at_agreed_step(step, last) or (last is not None and step >= last):
            return False
        with self._lock:
            self._served |= self._seen
            self._round += 1
            self._begin_round(f"ack-checkpoint-{self._round}")
        return True


def _pledge(path: Path) -> tuple[int, str] | None:
    """The step that a rank has pledged and the request that it saw; None where it has not, or something else lies there."""
    try:
        found = _PLEDGE.fullmatch(read_small(path, 256))
    except OSError:
        return None
    return (int(found[1]), (found[2] or b"").decode(errors="replace")) if found else None

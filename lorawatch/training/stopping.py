"""How the ranks agree on a step at which to stop or to save, without a collective and at no cost to the steps before.

A stop is requested by the file `control/stop`. Each rank's side thread sees it at its own moment, and pledges the next
step as the earliest at which the rank can stop: `control/ack-attempt_K-rank-R` holds that number. All ranks stop at the
highest pledge. A rank waits after its own pledged step until all pledges are there, so it never passes the agreed step.
Side threads write the pledges, so a rank that waits for another rank inside a step does not delay them.

`control/checkpoint` requests a checkpoint in the same way, each time it is written.

The ranks of a separate run agree on nothing: each stops after the step that it has pledged.

A rank may never pledge: a script may have the callback on rank 0 only. The other ranks wait for a bounded time,
withdraw their pledges, report who did not answer, and continue to train.
"""

from __future__ import annotations

import contextlib
import re
import threading
from pathlib import Path

from lorawatch.system.files import Reserve, read_small, write_atomically
from lorawatch.training.rank_info import RankInfo

ANSWER_S = 15.0
"""Seconds that a rank waits for the others' pledges. Side threads check ten times a second, whatever the main threads
do.
"""
_PLEDGE_BYTES = 128
_PLEDGE = re.compile(rb"(\d{1,18})(?: (\S{0,64}))?")


class Agreement:
    """One rank's part in agreeing on a step for a request.

    Args:
        request: The request's file.
        rank_info: Which rank this is.
        acks: How the names of the pledges' files begin; they are beside the request.
    """

    def __init__(self, request: Path, rank_info: RankInfo, acks: str) -> None:
        self.unanswered: list[int] = []
        """The ranks that did not answer in time; the caller clears the list once it has reported them."""
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
        """The last step that this rank completed."""
        return self._completed

    def resume_from(self, step: int) -> None:
        """Set the step after which training continues. For the main thread, before the first step."""
        with self._lock:
            self._completed = max(self._completed, step)

    def tick(self) -> None:
        """See the request, pledge, and read the other ranks' pledges. For the side thread, every 50–100 ms."""
        with self._lock:  # after an agreement the main thread begins the next round
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
                    return  # a pledge counts only once the other ranks can read it
                self._pledge, self._asked_for = pledge, requested
        pledges = [_pledge(path) for path in self._acks]
        with self._lock:
            if self._pledge is None or any(p is None for p in pledges):
                return
            self._seen = frozenset(identity for _, identity in filter(None, pledges))
            self._agreed_step = max(step for step, _ in filter(None, pledges))
            self._agreed.set()

    def _write(self, pledge: bytes) -> None:
        """Write the pledge for the other ranks.

        Raises:
            OSError: The disk does not take it.
        """
        write_atomically(self._own, pledge)

    def _open_request(self) -> str | None:
        """Identity of a request that is not served yet; None where there is none."""
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
        """Stop waiting for the other ranks, unless they have just answered."""
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
        """Remember that this request cannot be served, so that no rank waits for it again. The caller holds the lock."""
        raise NotImplementedError


class StopAgreement(Agreement):
    """One rank's part in agreeing on the step to stop at.

    Args:
        control: The run's `control` folder, which all ranks share.
        rank_info: Which rank this is.
    """

    def __init__(self, control: Path, rank_info: RankInfo) -> None:
        self._unserved = False
        self._room: Reserve | None = None
        super().__init__(control / "stop", rank_info, "ack")

    def reserve(self) -> None:
        """Reserve disk space for the pledge, so that the ranks can agree to stop when the disk is full."""
        self._room = Reserve(self._own, _PLEDGE_BYTES)

    def release(self) -> None:
        """Release the reserved space."""
        if self._room is not None:
            self._room.release()

    def _write(self, pledge: bytes) -> None:
        if self._room is None:
            super()._write(pledge)
        else:
            self._room.write(pledge)

    @property
    def requested(self) -> bool:
        """Whether this rank has seen a stop request."""
        return self._pledge is not None

    @property
    def stop_at(self) -> int | None:
        """The step after which all ranks stop, once all have pledged; None before."""
        return self._agreed_step

    def _open_request(self) -> str | None:
        return None if self._unserved else super()._open_request()

    def _mark_unserved(self) -> None:
        self._unserved = True

    def step_completed(self, step: int, last: int | None = None) -> bool:
        """Whether to stop after this step. For the main thread; it waits only after the step that this rank pledged.

        Args:
            step: The step that was completed.
            last: The run's last step. No rank waits there, because a rank that has already ended does not pledge.
        """
        return self._at_agreed_step(step, last)


class SaveAgreement(Agreement):
    """One rank's part in agreeing on the step after which all ranks save, once for each request.

    A request is identified by its inode and modification time. If two requests come at the same moment, ranks may see
    different ones. So each pledge names the request that its rank saw, and every request that any rank saw counts as
    served.

    Args:
        control: The run's `control` folder, which all ranks share.
        rank_info: Which rank this is.
    """

    def __init__(self, control: Path, rank_info: RankInfo) -> None:
        self._round = 0
        self._served: set[str] = set()
        super().__init__(control / "checkpoint", rank_info, "ack-checkpoint-0")

    def _open_request(self) -> str | None:
        try:
            status = self._request.stat()
        except FileNotFoundError:
            return None
        identity = f"{status.st_ino}.{status.st_mtime_ns}"
        return None if identity in self._served else identity

    def _mark_unserved(self) -> None:
        self._served.add(self._asked_for)

    def step_completed(self, step: int, last: int | None = None) -> bool:
        """Whether all ranks save after this step. For the main thread; it waits only after the step that this rank
        pledged.

        Args:
            step: The step that was completed.
            last: The run's last step. No rank saves on request there, because some ranks may not have seen the request.
        """
        if not self._at_agreed_step(step, last) or (last is not None and step >= last):
            return False
        with self._lock:
            self._served |= self._seen
            self._round += 1
            self._begin_round(f"ack-checkpoint-{self._round}")
        return True


def _pledge(path: Path) -> tuple[int, str] | None:
    """The step that a rank has pledged, and the request that it saw; None where there is no valid pledge."""
    try:
        pledge = _PLEDGE.fullmatch(read_small(path, 256))
    except OSError:
        return None
    return (int(pledge[1]), (pledge[2] or b"").decode(errors="replace")) if pledge else None

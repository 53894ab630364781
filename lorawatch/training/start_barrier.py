"""How the ranks of a separate run begin their first step at the same moment, without a process group.

Each rank that has loaded leaves `control/ready-attempt_K-rank-R` and waits until every rank's is there. A rank that dies
before keeps nobody waiting for ever: torchrun ends its siblings. A stop request opens the gate too: who waits takes its
first step and stops there.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from lorawatch.system.files import write_atomically
from lorawatch.training.rank_info import RankInfo

_POLL_EVERY_S = 0.005


class StartBarrier:
    """One rank's way through the gate.

    Args:
        control: The run's `control` folder, which all ranks share.
        place: Which rank of how many, and which attempt.
    """

    def __init__(self, control: Path, rank_info: RankInfo) -> None:
        self._stop = control / "stop"
        self._own = control / f"ready-attempt_{rank_info.attempt}-rank-{rank_info.rank}"
        self._all = [control / f"ready-attempt_{rank_info.attempt}-rank-{r}" for r in range(rank_info.world_size)]

    def wait(self) -> bool:
        """Main thread, before the first step: returns once all ranks are ready, or a stop is asked for.

        Returns:
            Whether all are ready.
        """
        waiting = list(self._all)
        written = False
        while True:
            if not written:
                with contextlib.suppress(OSError):  # a full disk: the others wait until it can be written
                    write_atomically(self._own, b"")
                    written = True
            waiting = [path for path in waiting if not path.exists()]
            if not waiting:
                return True
            if self._stop.exists():
                return False
            time.sleep(_POLL_EVERY_S)

"""Lets the ranks of a separate run begin their first step at the same moment, without a process group.

Each rank that has loaded its model writes `control/ready-attempt_K-rank-R` and waits until all ranks' files are there.
If a rank dies before, torchrun ends the others. A stop request releases the waiting ranks too: each takes its first
step and stops.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

from lorawatch.system.files import write_atomically
from lorawatch.training.rank_info import RankInfo

_POLL_EVERY_S = 0.005


class StartBarrier:
    """One rank's part in the barrier.

    Args:
        control: The run's `control` folder, which all ranks share.
        rank_info: Which rank this is.
    """

    def __init__(self, control: Path, rank_info: RankInfo) -> None:
        self._stop = control / "stop"
        self._own = control / f"ready-attempt_{rank_info.attempt}-rank-{rank_info.rank}"
        self._all = [control / f"ready-attempt_{rank_info.attempt}-rank-{r}" for r in range(rank_info.world_size)]

    def wait(self) -> bool:
        """Wait until all ranks are ready or a stop is requested. For the main thread, before the first step.

        Returns:
            Whether all ranks are ready.
        """
        waiting = list(self._all)
        written = False
        while True:
            if not written:
                with contextlib.suppress(OSError):  # a full disk: the other ranks wait until the file can be written
                    write_atomically(self._own, b"")
                    written = True
            waiting = [path for path in waiting if not path.exists()]
            if not waiting:
                return True
            if self._stop.exists():
                return False
            time.sleep(_POLL_EVERY_S)

"""A run's `run.json` as its recorder completes it: how many ranks there are, on what, and which GPUs they use."""

from __future__ import annotations

import contextlib
from collections.abc import Collection

from lorawatch.run.directory import RunDir, RunInfo
from lorawatch.run.records import RankStarted


class InfoFile:
    """Keeps a run's facts and writes them when they change.

    Args:
        run: The run's directory.

    Attributes:
        info: The facts.
    """

    def __init__(self, run: RunDir) -> None:
        self._run = run
        self.info: RunInfo = run.info()

    def rank_started(self, line: RankStarted) -> None:
        """Take over what a rank says of its run."""
        info, changed = self.info, False
        if info.world_size != line.world_size:
            info.world_size, changed = line.world_size, True
        if info.device is None:
            info.device, changed = ("cuda" if line.device == "cuda" else "cpu"), True
        self.uses([line.gpu_uuid] if line.gpu_uuid else [], changed=changed)

    def uses(self, uuids: Collection[str], *, changed: bool = False) -> None:
        """Mark these GPUs as used by the run.

        Args:
            changed: Something else has changed too.
        """
        for gpu in self.info.gpus:
            if gpu.gpu_uuid in uuids and not gpu.used:
                gpu.used = changed = True
        if changed:
            with contextlib.suppress(OSError):  # a full disk; the history has these facts from the ranks' lines too
                self._run.write_info(self.info)

    def started(self, command: list[str]) -> None:
        """Write down the launcher's command line.

        Raises:
            OSError: It cannot be written.
        """
        self.info.command = command
        self._run.write_info(self.info)

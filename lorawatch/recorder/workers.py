"""The processes of a run: the launcher and the ranks, whether started here or adopted."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from collections.abc import Callable

from lorawatch.processes import ProcessId, descendants


class Workers:
    """The launcher (torchrun's agent or an own command) and the ranks below it.

    Args:
        launcher: The launcher's identity.
        process: The launcher where it is our child; None where it is adopted, so that nobody can wait for its status.
        ranks: Ranks known so far, from `state.json` of an adopted run.
    """

    def __init__(
        self, launcher: ProcessId, process: subprocess.Popen[bytes] | None = None, ranks: list[ProcessId] | None = None
    ) -> None:
        self.launcher = launcher
        self._process = process
        self._ranks: dict[int, ProcessId] = {r.pid: r for r in ranks or []}
        self.exit_code: int | None = None

    def note_rank(self, pid: int) -> None:
        """A rank said its pid."""
        identity = ProcessId.of(pid)
        if identity is not None:
            self._ranks[pid] = identity

    @property
    def ranks(self) -> list[ProcessId]:
        return list(self._ranks.values())

    def pids(self) -> list[int]:
        """Pids of the launcher and everything below it, and of ranks that outlived it."""
        below = descendants(self.launcher.pid) if self.launcher_alive() else []
        return list(dict.fromkeys([self.launcher.pid, *below, *(p for p, r in self._ranks.items() if r.alive())]))

    def launcher_alive(self) -> bool:
        """Whether the launcher runs; reaps it and keeps its exit status where it is our child."""
        if self._process is not None:
            code = self._process.poll()
            if code is not None:
                self.exit_code = code
            return code is None
        return self.launcher.alive()

    def any_alive(self) -> bool:
        return self.launcher_alive() or any(r.alive() for r in self._ranks.values())

    def ask_stacks(self) -> list[int]:
        """Make every rank write its Python stacks: its faulthandler answers SIGUSR1, which would end a rank of an own
        command that has no such handler. Returns the pids."""
        ranks = list(self._ranks.values())
        return [r.pid for r in ranks if r.catches(signal.SIGUSR1) and r.send(signal.SIGUSR1)]

    def terminate(self) -> None:
        """Ask the launcher's whole process group to end: SIGTERM."""
        self._signal_group(signal.SIGTERM)

    def kill(self, wait_s: float = 5.0) -> None:
        """End every process of the run at once, and wait until they are gone."""
        victims = [i for i in (ProcessId.of(p) for p in self.pids()) if i is not None and i.pid != os.getpid()]
        self._signal_group(signal.SIGKILL)
        for victim in victims:
            victim.send(signal.SIGKILL)
        self.wait_gone(wait_s)

    def wait_gone(self, wait_s: float, meanwhile: Callable[[], None] | None = None) -> bool:
        """Wait until no process of the run is left."""
        deadline = time.monotonic() + wait_s
        while self.any_alive():
            if time.monotonic() > deadline:
                return False
            if meanwhile:
                meanwhile()
            time.sleep(0.05)
        return True

    def _signal_group(self, number: signal.Signals) -> None:
        if not self.launcher_alive():
            return
        try:
            # the launcher was started as the leader of its own session and group
            os.killpg(self.launcher.pid, number)
        except (ProcessLookupError, PermissionError):
            self.launcher.send(number)

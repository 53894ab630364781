"""The processes of a run: the launcher and all that descends from it, whether started here or adopted.

Only a process that this recorder has found under its own /proc, below the launcher that it started or started for the run
by its environment, is ever signalled. What a rank writes of itself only says which of them it is.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from lorawatch.system.processes import Process, ProcessId, descendants, match, process_table
from lorawatch.text.masking import mask_command_line

_LOOK_AGAIN_S = 0.02
_SHOWN_CHARACTERS = 80
_MASKED_CHARACTERS = 4000


@dataclass(frozen=True)
class Leftover:
    """A process of a run that outlived its launcher."""

    process: ProcessId
    command: str

    def __str__(self) -> str:
        return f"{self.process.pid} ({self.command})" if self.command else str(self.process.pid)


class Workers:
    """The launcher (torchrun's agent or an own command) and what descends from it.

    Args:
        launcher: The launcher's identity.
        process: The launcher where it is this process's child; None where it is adopted, so that its exit status cannot be
            had.
        family: What is known to belong to it of an adopted run: from `state.json`, or by its environment.
        orphans: This process keeps orphans (`processes.keep_orphans`): what loses its parent becomes its child.
        is_ours: Whether an orphan with this pid is the run's. None: each is, since this process had no child before the
            launcher, and no other process leaves it any.
        find: Finds the processes of an adopted run, whose orphans this process does not keep.
    """

    def __init__(
        self,
        launcher: ProcessId,
        process: subprocess.Popen[bytes] | None = None,
        family: Iterable[ProcessId] = (),
        *,
        orphans: bool = False,
        is_ours: Callable[[int], bool] | None = None,
        find: Callable[[], Iterable[ProcessId]] | None = None,
    ) -> None:
        self.launcher = launcher
        self.exit_code: int | None = None
        self._process = process
        self._family: dict[int, ProcessId] = {p.pid: p for p in family if p.here}
        self._unreaped: set[int] = set()  # ended, and not yet this process's children when they were seen so
        self._ranks: dict[int, ProcessId] = {}
        self._orphans, self._is_ours, self._find = orphans, is_ours, find

    # --- who is there

    def look(self) -> list[ProcessId]:
        """Find the run's processes: those known that still live and all that descends from them. One pass over /proc."""
        alive = self.launcher_alive()  # first: of one that dies after this the table has the children
        table = process_table()
        self._reap(table)
        self._unreaped |= {pid for pid in self._family if pid in table and table[pid].ended}
        self._family = {pid: known for pid, known in self._family.items() if _is_there(known, table)}
        roots = {*self._family, *([self.launcher.pid] if alive else [])}
        if self._orphans:  # what lost its parent became this process's child
            children = {p.pid for p in table.values() if p.parent == os.getpid() and not p.ended} - roots
            roots |= {pid for pid in children if pid != self.launcher.pid and self._takes(pid)}
        if self._find is not None:
            roots |= {p.pid for p in self._find() if p.pid in table}
        for process in [*(table[pid] for pid in roots if pid in table), *descendants(roots, table)]:
            if not process.ended and process.pid not in (os.getpid(), self.launcher.pid, *self._family):
                self._family[process.pid] = ProcessId.seen(process.pid, process.started)
        return [*([self.launcher] if alive else []), *self._family.values()]

    def note_rank(self, rank: int, claim: ProcessId | None) -> Literal["ours", "ended", "foreign"]:
        """Find the process of a rank.

        Args:
            claim: What the rank wrote of itself; None where its lorawatch is too old for it.

        Returns:
            `ours`: it is one of the run's processes here. `ended`: it is gone already. `foreign`: it runs where this
            recorder cannot see it, or does not descend from the launcher: it is never signalled.
        """
        pids = {p.pid for p in self.look()}
        process = match(claim, (p for p in process_table().values() if p.pid in pids)) if claim is not None else None
        self._ranks.pop(rank, None)
        if process is not None:
            self._ranks[rank] = process
            return "ours"
        return "ended" if claim is not None and claim.here and not claim.alive() else "foreign"

    @property
    def ranks(self) -> Mapping[int, ProcessId]:
        """The processes of the ranks that were found, by rank."""
        return self._ranks

    @property
    def family(self) -> list[ProcessId]:
        """What was known to descend from the launcher at the last look."""
        return list(self._family.values())

    def launcher_alive(self) -> bool:
        """Whether the launcher runs; reaps it and keeps its exit status where it is this process's child."""
        if self._process is not None:
            code = self._process.poll()
            if code is not None:
                self.exit_code = code
            return code is None
        return self.launcher.alive()

    def leftovers(self) -> list[Leftover]:
        """What lives although the launcher has ended."""
        return [Leftover(p, _shown(p)) for p in self.look() if p != self.launcher]

    # --- what is done to them

    def ask_stacks(self) -> list[int]:
        """Make every rank write its Python stacks: its faulthandler answers SIGUSR1, which would end a rank of an own
        command that has no such handler. Returns the ranks that were asked."""
        asked = self._ranks.items()
        return [rank for rank, p in asked if p.catches(signal.SIGUSR1) and p.send(signal.SIGUSR1)]

    def terminate(self) -> None:
        """Ask the launcher's whole process group to end: SIGTERM."""
        self._signal_group(signal.SIGTERM)

    def kill(self, wait_s: float = 5.0) -> bool:
        """End every process of the run at once. Returns whether all are gone."""
        self._signal_group(signal.SIGKILL)
        return self._end_all(signal.SIGKILL, wait_s)

    def end_leftovers(self, term_s: float = 3.0, kill_s: float = 5.0) -> bool:
        """End what outlived the launcher: SIGTERM, and SIGKILL for what is still there. Returns whether all are gone."""
        for process in self.look():
            process.send(signal.SIGTERM)
        return self.wait_gone(term_s) or self._end_all(signal.SIGKILL, kill_s)

    def wait_gone(self, wait_s: float, meanwhile: Callable[[], None] | None = None) -> bool:
        """Wait until no process of the run is left.

        Args:
            meanwhile: Called between two looks.
        """
        deadline = time.monotonic() + wait_s
        while self._anyone():
            if time.monotonic() > deadline:
                return False
            if meanwhile:
                meanwhile()
            time.sleep(0.05)
        return True

    def _takes(self, pid: int) -> bool:
        """Whether an orphan is the run's."""
        if self._is_ours is None:
            return True
        try:
            return os.getsid(pid) == self.launcher.pid or self._is_ours(pid)
        except ProcessLookupError:
            return False

    def _anyone(self) -> bool:
        """Whether a process of the run lives. Asked twice: one pass may miss a process that has just started another and
        ended."""
        return bool(self.look() or self.look())

    def _end_all(self, number: signal.Signals, wait_s: float) -> bool:
        # A process may start another between two looks, and what loses its parent may only now come into sight.
        deadline = time.monotonic() + wait_s
        while self._anyone():
            for process in self.look():
                process.send(number)
            if time.monotonic() > deadline:
                return False
            time.sleep(_LOOK_AGAIN_S)
        return True

    def _signal_group(self, number: signal.Signals) -> None:
        if not self.launcher_alive():
            return
        if self._process is not None:  # it is the leader of its own session and group, and its pid is not free yet
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.launcher.pid, number)
            return
        group = {p.pid for p in process_table().values() if p.group == self.launcher.pid}
        for process in self.look():
            if process.pid in group:
                process.send(number)

    def _reap(self, table: dict[int, Process]) -> None:
        for pid in (*self._family, *self._unreaped):
            process = table.get(pid)
            if process is None or not process.ended:
                self._unreaped.discard(pid)
            elif process.parent == os.getpid():
                self._unreaped.discard(pid)
                with contextlib.suppress(ChildProcessError):
                    os.waitpid(pid, os.WNOHANG)


def _shown(process: ProcessId) -> str:
    """A process's command line without secrets, cut."""
    text = mask_command_line(process.command(limit=_MASKED_CHARACTERS))
    return text if len(text) <= _SHOWN_CHARACTERS else text[: _SHOWN_CHARACTERS - 1] + "…"


def _is_there(known: ProcessId, table: dict[int, Process]) -> bool:
    process = table.get(known.pid)
    return process is not None and not process.ended and process.started == known.started

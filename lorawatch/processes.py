"""Knowing a process again: by pid, start time and boot, never by pid alone; and what this one may use."""

from __future__ import annotations

import math
import os
import signal
from pathlib import Path

import msgspec


class ProcessId(msgspec.Struct, frozen=True):
    """A process's identity that survives the reuse of pids and a reboot."""

    pid: int
    started: int
    """Clock ticks after boot, field 22 of /proc/PID/stat."""
    boot_id: str

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The identity of a live process; None where it is gone (a zombie counts as gone)."""
        started = _start_ticks(pid)
        return None if started is None else cls(pid, started, boot_id())

    def alive(self) -> bool:
        """Whether this very process still runs."""
        return self.boot_id == boot_id() and _start_ticks(self.pid) == self.started

    def stopped(self) -> bool:
        """Whether it stands still until somebody lets it go on: SIGSTOP, ctrl-z, or a debugger."""
        return self.alive() and _stat(self.pid)[:1] in (["T"], ["t"])

    def catches(self, number: signal.Signals) -> bool:
        """Whether it has a handler of its own for a signal, so that the signal does not end it."""
        try:
            lines = Path(f"/proc/{self.pid}/status").read_text().splitlines()
        except OSError:
            return False
        mask = next((int(line.split()[1], 16) for line in lines if line.startswith("SigCgt:")), 0)
        return self.alive() and bool(mask >> (number - 1) & 1)

    def send(self, number: signal.Signals) -> bool:
        """Signal this very process; False where it is gone."""
        if not self.alive():
            return False
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            return False
        return True


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


def _start_ticks(pid: int) -> int | None:
    fields = _stat(pid)
    return None if not fields or fields[0] in "ZX" else int(fields[19])


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty where the process is gone."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return []
    return stat[stat.rindex(")") + 2 :].split()  # a command's name may hold spaces and parentheses


def descendants(pid: int) -> list[int]:
    """Pids of all processes below this one; a walk over the machine's processes, milliseconds on a busy host."""
    import psutil

    try:
        return [child.pid for child in psutil.Process(pid).children(recursive=True)]
    except psutil.Error:
        return []


def oom_kills() -> int | None:
    """How many processes the kernel has killed for want of memory since boot; None where it does not say."""
    try:
        for line in Path("/proc/vmstat").read_text().splitlines():
            if line.startswith("oom_kill "):
                return int(line.split()[1])
    except OSError:
        pass
    return None


def usable_cores(proc: Path = Path("/proc/self/cgroup"), groups: Path = Path("/sys/fs/cgroup")) -> int:
    """Cores that this process may use: those of its affinity, which Slurm sets, and no more than the CPU time that a
    container or a slice above it is allowed (`cpu.max`, cgroup v2). At least 1.

    Args:
        proc: What says which group it is in.
        groups: Where the groups are mounted.
    """
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        own = next((line[3:] for line in proc.read_text().splitlines() if line.startswith("0::")), "/")
    except OSError:
        own = "/"
    group = groups / own.strip("/")
    for above in (group, *group.parents):
        if not above.is_relative_to(groups):
            break
        try:
            quota, period = (above / "cpu.max").read_text().split()
            cores = min(cores, math.ceil(int(quota) / int(period)))
        except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
            continue
    return max(cores, 1)

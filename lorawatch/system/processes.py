"""Knowing a process again by more than its pid, finding what descends from one, and what this process may use.

A pid is a number in one PID namespace of one boot of one machine. A process is therefore known by its pid, start time, boot
and namespace together, and it is only signalled where this process has seen it under its own /proc.
"""

from __future__ import annotations

import ctypes
import hashlib
import math
import os
import signal
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import msgspec

from lorawatch.system.home import host_name

_PR_SET_CHILD_SUBREAPER = 36
_INITIAL_PID_NAMESPACE = 0xEFFFFFFC  # PROC_PID_INIT_INO of linux/proc_ns.h
_STATE, _PARENT, _GROUP, _STARTED = 0, 1, 2, 19  # fields of /proc/PID/stat behind the command's name


class ProcessId(msgspec.Struct, frozen=True, omit_defaults=True):
    """A process's identity that survives the reuse of pids, a reboot, containers, and a home that several hosts share."""

    pid: int
    started: int
    """Clock ticks after boot, field 22 of /proc/PID/stat."""
    boot_id: str
    pid_namespace: int | None = None
    """Inode of the PID namespace in which `pid` is its number; None where it was not written down."""
    host: str = ""
    """The host's name."""
    machine: str = ""
    """A digest of the machine's id, the same after a reboot; empty where the machine has none."""

    @classmethod
    def own(cls) -> ProcessId:
        """This process, also where /proc belongs to another PID namespace than its own."""
        fields = _stat("self")
        started = int(fields[_STARTED]) if fields else 0
        return cls(os.getpid(), started, boot_id(), _pid_namespace("self"), host_name(), machine_digest())

    @classmethod
    def of(cls, pid: int) -> ProcessId | None:
        """The identity of a live process that this one sees; None where it is gone (a zombie counts as gone)."""
        fields = _stat(pid) if _proc_is_own() else []
        return None if not fields or fields[_STATE] in "ZX" else cls.seen(pid, int(fields[_STARTED]))

    @classmethod
    def seen(cls, pid: int, started: int) -> ProcessId:
        """The identity of a process with this pid and start time under this process's own /proc."""
        return cls(pid, started, boot_id(), _pid_namespace("self"), host_name(), machine_digest())

    @property
    def here(self) -> bool:
        """Whether this process can tell if it lives: same boot, same PID namespace."""
        return self.boot_id == boot_id() and self.pid_namespace in (None, _pid_namespace("self")) and _proc_is_own()

    @property
    def before_reboot(self) -> bool:
        """Whether it ran on this machine before the machine started again, so that it is certainly gone."""
        same = self.machine == machine_digest() != "" and self.host == host_name()
        return same and self.boot_id != boot_id()

    def alive(self) -> bool:
        """Whether this very process still runs; False also for one that cannot be seen from here."""
        return self.here and _start_ticks(self.pid) == self.started

    def stopped(self) -> bool:
        """Whether it is stopped until a SIGCONT: by SIGSTOP, ctrl-z, or a debugger."""
        return self.alive() and _stat(self.pid)[:1] in (["T"], ["t"])

    def catches(self, number: signal.Signals) -> bool:
        """Whether it has a handler of its own for a signal, so that the signal does not end it."""
        mask = int(next(iter(_status(self.pid, "SigCgt")), "0"), 16)
        return self.alive() and bool(mask >> (number - 1) & 1)

    def send(self, number: signal.Signals) -> bool:
        """Signal this very process; False where it is gone, cannot be seen from here, or belongs to another user.

        The process is held by a descriptor between the check and the signal, so that no other can take its pid meanwhile.
        """
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        except (OSError, AttributeError):  # a kernel without pidfd
            return self.alive() and _quietly_kill(self.pid, number)
        try:
            if not self.alive():
                return False
            signal.pidfd_send_signal(descriptor, number)
        except (ProcessLookupError, PermissionError):
            return False
        finally:
            os.close(descriptor)
        return True

    def command(self, limit: int = 80) -> str:
        """Its command line, cut; empty where it is gone or cannot be seen."""
        try:
            words = Path(f"/proc/{self.pid}/cmdline").read_bytes().split(b"\0") if self.alive() else []
        except OSError:
            return ""
        text = " ".join(w.decode(errors="replace") for w in words if w)
        return text if len(text) <= limit else text[: limit - 1] + "…"


@dataclass(frozen=True)
class Process:
    """A process as one pass over /proc has found it."""

    pid: int
    parent: int
    group: int
    started: int
    ended: bool
    """A zombie: it has ended, and its parent has not asked how."""


def boot_id() -> str:
    """The kernel's id of this boot."""
    return Path("/proc/sys/kernel/random/boot_id").read_text().strip()


@cache
def machine_digest() -> str:
    """A digest of the machine's id (man 5 machine-id asks not to show the id itself); empty where there is none."""
    for path in ("/etc/machine-id", "/var/lib/dbus/machine-id"):
        try:
            machine_id = Path(path).read_bytes().strip()
        except OSError:
            continue
        if machine_id:
            return hashlib.sha256(b"lorawatch " + machine_id).hexdigest()[:16]
    return ""


def in_initial_namespace() -> bool:
    """Whether pids here are those that the host's drivers name."""
    return _pid_namespace("self") == _INITIAL_PID_NAMESPACE


def keep_orphans() -> bool:
    """Let processes whose parent dies become children of this process instead of init's, so that they stay in sight.

    Returns:
        Whether the kernel agreed.
    """
    return bool(ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def has_children() -> bool:
    """Whether this process has living children, whoever started them: a program keeps those of the shell that it replaces."""
    return any(p.parent == os.getpid() and not p.ended for p in process_table().values())


def process_table() -> dict[int, Process]:
    """All processes by pid, zombies included; one pass over /proc, some 30 µs a process."""
    return {p.pid: p for p in _each()} if _proc_is_own() else {}


def descendants(roots: Collection[int], table: dict[int, Process]) -> list[Process]:
    """The processes that descend from these pids, without them; parents before their children.

    Args:
        table: As `process_table` gives it.
    """
    children: dict[int, list[Process]] = {}
    for process in table.values():
        children.setdefault(process.parent, []).append(process)
    result: list[Process] = []
    waiting, seen = list(roots), set(roots)
    while waiting:
        for child in children.get(waiting.pop(), ()):
            if child.pid not in seen:
                seen.add(child.pid)
                result.append(child)
                waiting.append(child.pid)
    return result


def environment_of(pid: int) -> dict[str, str]:
    """The environment that a process was started with; empty where it cannot be read."""
    try:
        words = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return {}
    return dict(os.fsdecode(w).split("=", 1) for w in words if b"=" in w)


def match(claim: ProcessId, among: Iterable[Process]) -> ProcessId | None:
    """Which of these processes is the one that says this of itself; None where none of them is.

    A process in a PID namespace below this one's has another pid there than here: /proc/PID/status names both.

    Args:
        claim: What the process wrote of itself.
        among: Processes that this process has found by itself.
    """
    if claim.boot_id != boot_id():
        return None
    for process in among:
        if process.ended or process.started != claim.started:
            continue
        inside = _status(process.pid, "NSpid")[-1:] or [str(process.pid)]
        namespace = _pid_namespace(process.pid)  # None where another user's namespace may not be read
        if inside == [str(claim.pid)] and namespace in (None, claim.pid_namespace):
            return ProcessId.seen(process.pid, process.started)
    return None


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


def _each() -> Iterator[Process]:
    with os.scandir("/proc") as entries:
        for entry in entries:
            fields = _stat(entry.name) if entry.name.isdecimal() else []
            if fields:
                parent, group, started = (int(fields[i]) for i in (_PARENT, _GROUP, _STARTED))
                yield Process(int(entry.name), parent, group, started, fields[_STATE] in "ZX")


def _proc_is_own() -> bool:
    """Whether /proc counts as this process counts: in a new PID namespace it may still be the one above."""
    try:
        return os.readlink("/proc/self") == str(os.getpid())  # noqa: PTH115  Path.readlink would cost ten times as much
    except OSError:
        return False


def _pid_namespace(pid: int | str) -> int | None:
    try:
        return os.stat(f"/proc/{pid}/ns/pid").st_ino  # noqa: PTH116  likewise
    except OSError:
        return None


def _start_ticks(pid: int) -> int | None:
    fields = _stat(pid)
    return None if not fields or fields[_STATE] in "ZX" else int(fields[_STARTED])


def _stat(pid: int | str) -> list[str]:
    """The fields of /proc/PID/stat from the state on; empty where the process is gone."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            stat = file.read()
    except OSError:
        return []
    return stat[stat.rindex(b")") + 2 :].decode().split()  # a command's name may hold spaces and parentheses


def _status(pid: int, name: str) -> list[str]:
    """The words of one line of /proc/PID/status; none where the process or the line is not there."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text(errors="replace").splitlines()
    except OSError:
        return []
    return next((line.split()[1:] for line in lines if line.startswith(f"{name}:")), [])


def _quietly_kill(pid: int, number: signal.Signals) -> bool:
    try:
        os.kill(pid, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True

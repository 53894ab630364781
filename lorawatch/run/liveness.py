"""Whether a run has a living recorder, as far as this process can see, and what it may therefore do to the run.

On the host and in the container of the recorder its identity decides. Elsewhere only the age of its heartbeat does, by the
clock of the file server, so that the clocks of two hosts need not agree: while it is fresh, and for as long as it is not
certain that the recorder is gone, nothing of the run is changed.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec

from lorawatch.errors import RunElsewhere, UsageError
from lorawatch.run.directory import ENDED, RUN_DIR_VARIABLE, RunDir, RunState
from lorawatch.system import home
from lorawatch.system.files import beside
from lorawatch.system.home import host_name
from lorawatch.system.processes import ProcessId, environment_of, process_table
from lorawatch.text.numbers import duration

SILENT_S = 60.0
START_GRACE_S = 60.0
"""A prepared run has no recorder for a moment; only after this is it taken for given up."""

Kind = Literal["ended", "starting", "recorded", "unrecorded", "elsewhere", "silent", "over"]


@dataclass(frozen=True)
class Liveness:
    """What is known of a run's recorder and processes.

    Attributes:
        kind: `ended`: the run's state says so. `starting`: prepared a moment ago. `recorded`: its recorder lives here.
            `unrecorded`: its recorder is gone, but processes of it live here. `elsewhere`: another host's recorder, or
            another container's, was heard in the last minute. `silent`: it was not. `over`: neither recorder nor processes
            are left, so that its end may be judged.
        host: Where its recorder is, or was.
        silent_s: Seconds since it was heard, by the file server's clock; None where that was not asked.
        recorder: The recorder's identity; None where it has none yet.
    """

    kind: Kind
    host: str = ""
    silent_s: float | None = None
    recorder: ProcessId | None = None

    @property
    def words(self) -> str:
        """What a person should know of a recorder that cannot be seen from here; empty where it can."""
        if self.kind == "elsewhere":
            return f"recorded on {self.host}"
        return f"no word from {self.host} for {duration(self.silent_s)}" if self.kind == "silent" else ""


def liveness(run: RunDir, state: RunState | None = None) -> Liveness:
    """Look at a run's state, its processes and, where these cannot be seen from here, at the age of its heartbeat.

    Args:
        state: What `state.json` says; None: it is read.

    Raises:
        OSError: The run's directory cannot be read.
    """
    try:
        state = run.state() if state is None else state
    except msgspec.MsgspecError:  # nothing of ours writes such a state; what it says of a recorder is not known
        state = RunState()
    recorder = state.recorder
    host = recorder.host or _host_of(run) if recorder is not None else ""
    if state.state in ENDED:
        return Liveness("ended", host, recorder=recorder)
    if recorder is None:
        silent = heartbeat_age(run)
        return Liveness("starting" if silent < START_GRACE_S else "over", silent_s=silent)
    if recorder.here:
        kind: Kind = "recorded" if recorder.alive() else "unrecorded" if _workers_alive(run, state) else "over"
        return Liveness(kind, host, recorder=recorder)
    silent = heartbeat_age(run)
    if silent < SILENT_S:
        return Liveness("elsewhere", host, silent, recorder)
    gone = recorder.before_reboot or (not recorder.host and host == host_name())
    return Liveness("over" if gone else "silent", host, silent, recorder)


def known_workers(state: RunState) -> list[ProcessId]:
    """The processes that a run's last recorder had found below the launcher, where this process counts as it did."""
    if state.recorder is None or not state.recorder.here:
        return []
    return [ProcessId.seen(pid, started) for pid, started in state.family]


def started_for(run: RunDir) -> list[ProcessId]:
    """This user's processes that were started for a run, as the kernel has their environment, the oldest first: also those
    that its recorder had no time to write down. One pass over /proc and the environments in it.

    This process and those that it descends from are left out: a person may adopt a run from a shell that the run started.
    """
    table = process_table()
    above, pid = set(), os.getpid()
    while pid in table and pid not in above:
        above.add(pid)
        pid = table[pid].parent
    living = (p for p in table.values() if not p.ended and p.pid not in above and was_started_for(run, p.pid))
    return [ProcessId.seen(p.pid, p.started) for p in sorted(living, key=lambda p: (p.started, p.pid))]


def was_started_for(run: RunDir, pid: int) -> bool:
    """Whether a process of this user has the run's directory in the environment that it was started with."""
    folder = Path(environment_of(pid).get(RUN_DIR_VARIABLE, ""))
    if folder.name != run.run_id:
        return False
    try:
        return folder.samefile(run.root) and Path(f"/proc/{pid}").stat().st_uid == os.geteuid()
    except OSError:
        return False


def _workers_alive(run: RunDir, state: RunState) -> bool:
    """Whether a process of the run lives, as far as this process can see."""
    known = [state.launcher, *state.ranks, *known_workers(state)]
    return any(p is not None and p.alive() for p in known) or bool(started_for(run))


def heartbeat_age(run: RunDir) -> float:
    """Seconds since anything of the run wrote to its directory: its recorder's heartbeat, or a rank's journal."""
    heard = [at for path in _signs_of_life(run) if (at := _changed_at(path)) is not None]
    return max(_file_clock(run.root) - max(heard, default=0.0), 0.0)


def note(run_id: str, state: str) -> str | None:
    """What a run's own files and processes say beyond its row in the history, in words; None where they agree.

    Args:
        state: As the history has it.
    """
    run = RunDir(home.runs_folder() / run_id)
    if state in ENDED or not run.root.is_dir():
        return None
    try:
        now = run.state()
        status = liveness(run, now)
    except (OSError, msgspec.MsgspecError):
        return None
    if status.kind == "ended":
        return f"has ended ({now.state}); the history does not have its end yet"
    if status.kind == "unrecorded":
        return f"has lost its recorder and goes on: lorawatch adopt {run_id} records it"
    return f"{status.words}; it may still go on there" if status.kind == "silent" else None


@contextlib.contextmanager
def deciding(run: RunDir, *, host_gone: bool = False) -> Iterator[Liveness]:
    """Decide what becomes of a run, alone and with the truth about who looks after it.

    Args:
        host_gone: A person says that the host which was last to look after it does not come back.

    Raises:
        RunBusy, RunNotFound: As `RunDir.locked`.
        RunElsewhere: Another host looks after the run, or may still do so.
        OSError: The run's directory cannot be read.
    """
    with run.locked():
        status = liveness(run)
        if status.kind == "elsewhere" or (status.kind == "silent" and not host_gone):
            raise elsewhere(run, status)
        yield status


def elsewhere(run: RunDir, status: Liveness) -> RunElsewhere:
    """The error for a run that another host looks after, or may still do."""
    if status.kind == "elsewhere":
        return RunElsewhere(
            f"run {run.run_id} is recorded on {status.host}",
            hint=f"act on it there; lorawatch attach {run.run_id} follows it",
        )
    return RunElsewhere(
        f"run {run.run_id}: {status.words}, which was recording it",
        hint=f"if {status.host} does not come back: lorawatch stop {run.run_id} --host-gone, and then try again",
    )


def refuse_living(run: RunDir, status: Liveness, action: str) -> None:
    """Refuse what only a run without processes allows.

    Args:
        action: What was to be done, as in "it cannot be deleted".

    Raises:
        UsageError: It lives; says what to do first.
    """
    ways: dict[Kind, tuple[str, str]] = {
        "starting": ("is about to start", f"lorawatch attach {run.run_id} follows it"),
        "recorded": (
            f"lives (pid {status.recorder.pid if status.recorder else '?'} records it)",
            f"lorawatch stop {run.run_id} --wait ends it first",
        ),
        "unrecorded": (
            "has lost its recorder, but its processes live on",
            f"lorawatch adopt {run.run_id} records on; lorawatch stop {run.run_id} asks them to stop",
        ),
    }
    if status.kind in ways:
        what, hint = ways[status.kind]
        raise UsageError(f"run {run.run_id} {what}: it cannot be {action}", hint=hint)


def _host_of(run: RunDir) -> str:
    """The host that a run was started on: recorders of older versions did not write their own."""
    try:
        return run.info().host
    except (OSError, msgspec.MsgspecError):
        return ""


def _signs_of_life(run: RunDir) -> list[Path]:
    with contextlib.suppress(OSError):
        return [run.root / "state.json", run.root / "run.json", *run.journal.glob("*.jsonl")]
    return []


def _changed_at(path: Path) -> float | None:
    """When a file was last written, by the clock of the file server."""
    try:  # opened, since a network file system asks its server for the time only then
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return os.fstat(descriptor).st_mtime
    finally:
        os.close(descriptor)


def _file_clock(folder: Path) -> float:
    """The time by the clock of the file server; this host's own where nothing may be written there."""
    path = beside(folder / "clock")
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except OSError:
        return time.time()
    try:
        os.write(descriptor, b"\n")
        return os.fstat(descriptor).st_mtime
    except OSError:
        return time.time()
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            path.unlink()

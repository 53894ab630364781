"""What a case of the matrix came to: the run's end, and each row that a rank made, in the history or not."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil


class Trouble(Exception):
    """The scene could not be played: not what the program is judged by, but never passed over."""


class Skip(Exception):
    """This machine lacks what the case needs."""


@dataclass
class Found:
    """What a case came to.

    Attributes:
        state, failure, message: As the run's `state.json` has them.
        rc: Exit status of the command that recorded the run at its end.
        printed: All that this command printed.
        seconds: From the fault to the final state on disk; None where no fault ended the run.
        orphans: Command lines of processes of the run that are left when its recorder is gone.
        made, kept: Steps that the ranks made, and rows of them in the history.
        lost, doubled: Rows whose line was complete in a journal and that the history lacks; rows that it has twice.
        unsaid: Steps that are nowhere, although their rank lived to say so.
        wrong: What else is not as it should be, in words.
    """

    state: str = ""
    failure: str | None = None
    message: str = ""
    rc: int | None = None
    printed: str = ""
    seconds: float | None = None
    orphans: list[str] = field(default_factory=list)
    made: int = 0
    kept: int = 0
    lost: int = 0
    doubled: int = 0
    unsaid: int = 0
    wrong: list[str] = field(default_factory=list)


def processes_of(home: Path, but: Collection[int] = ()) -> list[psutil.Process]:
    """Every live process that was started with this home: recorders, launchers, ranks, and what they started."""
    wanted = f"LORAWATCH_HOME={home}".encode()
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdecimal() or int(entry.name) in but:
            continue
        with contextlib.suppress(OSError, psutil.Error):
            if wanted in (entry / "environ").read_bytes().split(b"\0"):
                process = psutil.Process(int(entry.name))
                if process.status() != psutil.STATUS_ZOMBIE:
                    found.append(process)
    return found


def lines_of(path: Path, kind: str) -> list[dict[str, Any]]:
    """Complete lines of a kind in a journal."""
    try:
        content = path.read_bytes()
    except OSError:
        return []
    found = []
    for line in content[: content.rfind(b"\n") + 1].splitlines():
        with contextlib.suppress(ValueError):
            data = json.loads(line)
            if isinstance(data, dict) and data.get("t") == kind:
                found.append(data)
    return found


def count_rows(found: Found, rows: Sequence[tuple[Any, ...]], roots: Sequence[Path], made: Path) -> None:
    """Hold the history against the journals, and the journals and exit records against what the ranks made.

    Args:
        found: Gets `made`, `kept`, `lost`, `doubled` and `unsaid`.
        rows: Run, attempt, rank, step and how often it is there, of each step in the history.
        roots: The runs' directories.
        made: Where each rank has written a byte for each step.
    """
    there = {row[:4] for row in rows}
    found.kept, found.doubled = len(there), sum(row[4] - 1 for row in rows)
    for root in roots:
        for path in sorted((root / "journal").glob("rank-*.jsonl")):
            lines = {(root.name, d["attempt"], d["rank"], d["step"]) for d in lines_of(path, "step")}
            found.lost += len(lines - there)
    for path in sorted(made.glob("attempt_*-rank-*")):
        attempt, rank = (int(path.name.split("-")[0][8:]), int(path.name.split("-")[2]))
        steps = path.stat().st_size
        found.made += steps
        kept = sum((a, r) == (attempt, rank) for _, a, r, _ in there)
        said = _exit_record(roots[-1], attempt, rank) if roots else None
        if said is not None and steps - kept > said.get("unwritten", 0) + 1:
            found.unsaid += steps - kept - said.get("unwritten", 0)


def _exit_record(root: Path, attempt: int, rank: int) -> dict[str, Any] | None:
    path = root / "logs" / f"attempt_{attempt}" / f"rank-{rank}.exit.json"
    try:
        found = json.loads(path.read_bytes())
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


def one_of(wanted: Sequence[str], got: str) -> bool:
    """Whether a value is among those that are right; none wanted: any is."""
    return not wanted or got in wanted

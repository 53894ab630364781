"""The end of a run's logs, as harmless text."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from lorawatch.launch.choose import LOG_NAMES
from lorawatch.run.directory import RunDir
from lorawatch.run.records import ExitRecord
from lorawatch.run.verdict import cause
from lorawatch.system.files import read_json
from lorawatch.text.sanitize import clean

TAIL_BYTES = 64 << 10
WIDEST = 2000  # characters of a line


@dataclass(frozen=True)
class LogTail:
    """The last lines of one log.

    Attributes:
        names: All logs of the run, by their paths under `logs/`: the ranks' of the latest attempt, then torchrun's, the
            own command's and the recorder's, then those of earlier attempts.
        name: The one that was read; empty where there is none.
        lines: Its last lines, clean; of a line that was written over (a progress bar), its last text.
        size_bytes: How long the file is.
        cut: Whether lines before these were left out.
        note: Why there are no lines, for people; empty where there are some.
    """

    names: tuple[str, ...] = ()
    name: str = ""
    lines: tuple[str, ...] = ()
    size_bytes: int = 0
    cut: bool = False
    note: str = ""


def log_files(run: RunDir) -> list[Path]:
    """The run's logs in the order in which `LogTail.names` lists them."""
    attempts = sorted(
        (p for p in run.logs.glob("attempt_*") if p.name[8:].isdecimal()), key=lambda p: int(p.name[8:]), reverse=True
    )
    ranks = [_by_rank(folder) for folder in attempts]
    order = {name: place for place, name in enumerate((*LOG_NAMES, "recorder.log"))}
    others = sorted(run.logs.glob("*.log"), key=lambda p: (order.get(p.name, len(order)), p.name))
    return [*(ranks[0] if ranks else []), *others, *(p for folder in ranks[1:] for p in folder)]


def read_tail(run: RunDir, name: str = "") -> LogTail:
    """The end of this log.

    Args:
        name: One of `LogTail.names`; empty for the one to begin with: a failed rank's, else the first that says anything.
    """
    if not run.root.is_dir():
        return LogTail(note=f"the run directory was deleted: {clean(str(run.root))}")
    files = log_files(run)
    if not files:
        return LogTail(note=f"there is no log in {clean(str(run.logs))}")
    names = tuple(clean(str(p.relative_to(run.logs))) for p in files)
    path = files[names.index(name)] if name in names else _first(run, files)
    name = names[files.index(path)]
    try:
        with open(path, "rb") as file:
            size = file.seek(0, 2)
            begin = file.seek(max(size - TAIL_BYTES, 0))
            data = file.read(TAIL_BYTES)
    except OSError as error:
        return LogTail(names, name, note=f"{clean(str(path))} cannot be read: {error.strerror}")
    if begin and b"\n" in data:
        data = data.partition(b"\n")[2]
    text = data.decode(errors="replace")
    lines = tuple(_line(line) for line in text.removesuffix("\n").split("\n")) if text else ()
    return LogTail(names, name, lines, size, begin > 0, "" if lines else "this log is empty")


def _by_rank(folder: Path) -> list[Path]:
    return sorted(
        (p for p in folder.glob("rank-*.log") if p.stem[5:].isdecimal()), key=lambda p: int(p.stem[5:])
    )  # fmt: skip


def _first(run: RunDir, files: list[Path]) -> Path:
    records = {path: read_json(path.with_name(f"{path.stem}.exit.json"), ExitRecord) for path in files}
    first = cause(r for r in records.values() if r is not None)
    for path, record in records.items():
        if record is not None and record is first:
            return path
    for path in files:
        try:
            if path.stat().st_size:
                return path
        except OSError:
            continue
    return files[0]


def _line(line: str) -> str:
    parts = [part for part in line.split("\r") if part.strip()]
    return clean((parts[-1] if parts else "")[: 4 * WIDEST]).expandtabs()[:WIDEST]

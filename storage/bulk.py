"""Journal lines into tables, many at a time.

Complete lines of the frequent kinds (steps, GPU and host samples) go to DuckDB's JSON reader as they are, through a file
in memory; only what is rare or suspicious is decoded here. A batch that the reader refuses is taken again line by line,
so that one broken line costs itself only. Where a line was cut, is no JSON, lacks a field or has a value of a wrong kind,
it is stepped over and counted.
"""

from __future__ import annotations

import os
import types
from dataclasses import dataclass, field
from typing import Any, Union, get_args, get_origin

import msgspec

from lorawatch.journal import JournalTail
from lorawatch.records import (
    NOT_IN_HISTORY,
    AnyLine,
    Evaluation,
    Event,
    GpuSample,
    HostSample,
    LinesLost,
    PhaseChange,
    RankStarted,
    Record,
    Step,
)
from lorawatch.rundir import RunDir
from lorawatch.sanitize import cleaned
from lorawatch.storage.engine import Connection

LONGEST_LINE = 1 << 20
_PIECE = 1 << 20
_LAST_TIME = 1e11  # a time past the year 5000 is no time
_encode = msgspec.json.Encoder().encode
# Numbers written as text pass, as they pass DuckDB's reader.
_decode = msgspec.json.Decoder(AnyLine, strict=False).decode
_DUCKDB_TYPES = {int: "BIGINT", float: "DOUBLE", str: "VARCHAR"}


class _EventRow(msgspec.Struct, omit_defaults=True):
    """What becomes a row of `events`."""

    at: float
    kind: str
    severity: str
    message: str
    attempt: int | None = None
    rank: int | None = None
    detail: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Target:
    """A table and how a line's fields become its columns."""

    table: str
    columns: dict[str, str]
    select: str
    where: str


def _target(
    table: str, kind: type[msgspec.Struct], *, rename: dict[str, str] | None = None, extra: str = ""
) -> _Target:
    columns: dict[str, str] = {}
    select: list[str] = []
    where: list[str] = [extra] if extra else []
    for info in msgspec.structs.fields(kind):
        name = info.encode_name
        if name in NOT_IN_HISTORY:
            continue
        plain = _plain(info.type)
        columns[name] = _DUCKDB_TYPES.get(plain, "JSON" if plain is dict else "VARCHAR")
        quoted = f'"{name}"'
        value = quoted
        if name in ("at", "sampled_at", "ended_at"):
            value = f"make_timestamptz(({quoted} * 1e6)::BIGINT)"
            where.append(f"{quoted} BETWEEN 0 AND {_LAST_TIME}")
        elif columns[name] == "DOUBLE":
            where.append(f"isfinite({quoted})" if info.required else f"({quoted} IS NULL OR isfinite({quoted}))")
        elif info.required:
            where.append(f"{quoted} IS NOT NULL")
        if name == "phase":
            value = "coalesce(phase, 'train')"
            where.append("(phase IS NULL OR phase IN ('warmup', 'train'))")
        select.append(f'{value} AS "{(rename or {}).get(name, name)}"')
    return _Target(table, columns, ", ".join(select), " AND ".join(where))


def _plain(kind: Any) -> Any:
    """`int` of `int | None`, `dict` of `dict[str, object]`; text for anything else, such as a Literal."""
    if get_origin(kind) in (Union, types.UnionType):
        kind = next(a for a in get_args(kind) if a is not type(None))
    return get_origin(kind) if get_origin(kind) is dict else kind


_INTEGERS = (
    "(sm_clock_mhz IS NULL OR abs(sm_clock_mhz) < 2e9) AND (memory_clock_mhz IS NULL OR abs(memory_clock_mhz) < 2e9)"
)
_SMALL = "abs(attempt) < 2e9 AND abs(rank) < 2e9"
_TARGETS: dict[type[msgspec.Struct], _Target] = {
    Step: _target("steps", Step, extra=_SMALL),
    Evaluation: _target("evaluations", Evaluation, extra=_SMALL),
    GpuSample: _target("gpu_samples", GpuSample, extra=_INTEGERS),
    HostSample: _target("host_samples", HostSample),
    RankStarted: _target("ranks", RankStarted, rename={"at": "started_at"}, extra=_SMALL),
    _EventRow: _target("events", _EventRow),
}
# How our own writers begin a line of a frequent kind; such a line needs no decoding here.
_PREFIXES: tuple[tuple[type[msgspec.Struct], bytes], ...] = (
    (GpuSample, b'{"t":"gpu",'),
    (Step, b'{"t":"step",'),
    (HostSample, b'{"t":"host",'),
)
_ALL_PREFIXES = tuple(prefix for _, prefix in _PREFIXES)


@dataclass
class Position:
    """How far a journal file has been taken over."""

    byte_offset: int = 0
    lines: int = 0
    broken_lines: int = 0


@dataclass
class Batch:
    """Complete lines of a run's journals, sorted by table, in files in memory."""

    positions: dict[str, Position]
    """After this batch, by file name; only files that have moved."""
    lines: dict[type[msgspec.Struct], int] = field(default_factory=dict)
    byte_count: int = 0
    complete: bool = True
    """Whether the journals' ends were reached."""


class Loader:
    """Reads batches and inserts them; holds the files in memory. Use as a context manager."""

    def __init__(self) -> None:
        self._files: dict[type[msgspec.Struct], int] = {}
        self._sizes: dict[type[msgspec.Struct], int] = {}

    def __enter__(self) -> Loader:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._files.values():
            os.close(descriptor)
        self._files.clear()

    def read(self, run: RunDir, start: dict[str, Position], limit: int, *, careful: bool = False) -> Batch:
        """The next complete lines of all journal files, about `limit` bytes at most.

        Args:
            start: Where to go on, by file name.
            careful: Decode every line, because the quick way failed on this batch.
        """
        batch = Batch({})
        self._sizes = dict.fromkeys(self._files, 0)
        for path in sorted(run.journal.glob("*.jsonl")):
            known = start.get(path.name, Position())
            at = Position(known.byte_offset, known.lines, known.broken_lines)
            tail = JournalTail(path, at.byte_offset)
            while batch.byte_count < limit:
                piece = tail.read(_PIECE)
                if not piece:
                    break
                self._sort(piece, batch, at, careful)
                batch.byte_count += len(piece)
            else:
                batch.complete = False
            if tail.offset != known.byte_offset:
                at.byte_offset = tail.offset
                batch.positions[path.name] = at
        return batch

    def insert(self, connection: Connection, run_id: str, batch: Batch, *, careful: bool = False) -> tuple[int, int]:
        """Insert a batch's rows. Returns (rows inserted, lines refused).

        Raises:
            Error: A line of the batch is broken (not when `careful`), or the file cannot be written.
        """
        inserted = refused = 0
        for kind, count in batch.lines.items():
            target = _TARGETS[kind]
            descriptor = self._files[kind]
            os.ftruncate(descriptor, self._sizes[kind])
            columns = ", ".join(f"'{name}': '{sql}'" for name, sql in target.columns.items())
            row = connection.execute(
                f"INSERT INTO {target.table} BY NAME SELECT $1 AS run_id, {target.select} "  # noqa: S608  fixed names
                f"FROM read_json('/proc/self/fd/{descriptor}', format = 'newline_delimited', compression = 'none', "
                f"maximum_object_size = {2 * LONGEST_LINE}, ignore_errors = {str(careful).lower()}, "
                f"columns = {{{columns}}}) WHERE {target.where}",
                [run_id],
            ).fetchone()
            taken = int(row[0]) if row else 0
            inserted += taken
            refused += count - taken
        return inserted, refused

    def _sort(self, piece: bytes, batch: Batch, at: Position, careful: bool) -> None:
        """Hand each line of a piece to its table's file."""
        count = piece.count(b"\n")
        at.lines += count
        # Without a backslash or a byte beyond ASCII, no text in it can hold a control character: as such it would not
        # be JSON, and escaped it needs the backslash.
        quick = not careful and len(piece) <= _PIECE and piece.isascii() and b"\\" not in piece and b"\x7f" not in piece
        if quick:
            for kind, prefix in _PREFIXES:
                if piece.startswith(prefix) and piece.count(b"\n" + prefix) == count - 1:  # all of one kind
                    self._put(batch, kind, piece, count)
                    return
        lines = piece.split(b"\n")
        lines.pop()  # behind the last newline
        if quick:
            left = count
            for kind, prefix in _PREFIXES:
                mine = [line for line in lines if line.startswith(prefix)]
                if mine:
                    mine.append(b"")
                    self._put(batch, kind, b"\n".join(mine), len(mine) - 1)
                    left -= len(mine) - 1
                if not left:
                    return
            lines = [line for line in lines if not line.startswith(_ALL_PREFIXES)]
        decoded: dict[type[msgspec.Struct], list[bytes]] = {}
        for line in lines:
            if not line.strip():
                continue
            try:
                if len(line) > LONGEST_LINE:
                    raise ValueError("a line longer than any record")
                record = _row(_decode(line))
                text = _encode(cleaned(msgspec.to_builtins(record)))
            except (ValueError, RecursionError):
                at.broken_lines += 1
            else:
                decoded.setdefault(type(record), []).append(text)
        for kind, texts in decoded.items():
            self._put(batch, kind, b"\n".join([*texts, b""]), len(texts))

    def _put(self, batch: Batch, kind: type[msgspec.Struct], data: bytes, count: int) -> None:
        """Append whole lines to a table's file in memory."""
        if kind not in self._files:
            self._files[kind] = os.memfd_create(f"lorawatch-{kind.__name__}", os.MFD_CLOEXEC)
        size = self._sizes.get(kind, 0)
        written = 0
        while written < len(data):  # overwrites the last batch: pages that are there need not be made again
            written += os.pwrite(self._files[kind], data[written:] if written else data, size + written)
        self._sizes[kind] = size + len(data)
        batch.lines[kind] = batch.lines.get(kind, 0) + count


def _row(record: Record) -> msgspec.Struct:
    """The row that a line becomes: itself, or an event."""
    if isinstance(record, Event):
        return _EventRow(
            record.at, record.kind, record.severity, record.message, rank=record.rank, detail=record.detail or None
        )
    if isinstance(record, PhaseChange):
        message = f"{record.name}: {record.detail}" if record.detail else record.name
        return _EventRow(record.at, "phase", "info", message, attempt=record.attempt, rank=record.rank)
    if isinstance(record, LinesLost):
        return _EventRow(
            record.at,
            "lines_lost",
            "warning",
            f"{record.lines} journal lines were lost while the disk took none",
            rank=record.rank,
            detail={"lines": record.lines},
        )
    return record

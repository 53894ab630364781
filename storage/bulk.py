"""Journal lines into tables, many at a time.

Complete lines of the frequent kinds (steps, GPU and host samples) go to DuckDB's JSON reader as they are, through a file
in memory; only rare or suspicious lines are decoded here. A batch that the reader refuses is read again line by line,
so that only the broken line is lost. A line that was cut, is not JSON, lacks a field or has a value of a wrong kind is
skipped and counted.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
from msgspec import inspect

from lorawatch.run.directory import RunDir
from lorawatch.run.journal import JournalTail
from lorawatch.run.line import Attempt, Rank, UnixTime
from lorawatch.run.records import (
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
    Severity,
    Step,
)
from lorawatch.storage.engine import Connection
from lorawatch.text.sanitize import cleaned

LONGEST_LINE = 1 << 20
_PIECE = 1 << 20
_encode = msgspec.json.Encoder().encode
# Numbers written as text pass, as they pass DuckDB's reader.
_decode = msgspec.json.Decoder(AnyLine, strict=False).decode


class _EventRow(msgspec.Struct, omit_defaults=True):
    """What becomes a row of `events`."""

    at: UnixTime
    kind: str
    severity: Severity
    message: str
    attempt: Attempt | None = None
    rank: Rank | None = None
    detail: dict[str, Any] | None = None


@dataclass(frozen=True)
class _Target:
    """A table and how a line's fields become its columns."""

    table: str
    columns: dict[str, str]
    select: str
    names: str
    """Of the table's columns, as they are selected."""
    where: str


def _target(kind: type[msgspec.Struct], table: str, *, rename: dict[str, str] | None = None) -> _Target:
    """The columns that DuckDB reads of a kind of line, and the conditions that its fields' types and bounds make."""
    columns: dict[str, str] = {}
    select: list[str] = []
    names: list[str] = []
    where: list[str] = []
    for field_ in inspect.type_info(kind).fields:  # type: ignore[attr-defined]
        name, quoted = field_.encode_name, f'"{field_.encode_name}"'
        if name in NOT_IN_HISTORY:
            continue
        choices = field_.type.types if isinstance(field_.type, inspect.UnionType) else (field_.type,)
        holds = next(c for c in choices if not isinstance(c, inspect.NoneType))
        value = quoted
        condition = ""
        match holds:
            case inspect.IntType():
                # as DOUBLE, so that a fraction is seen and not rounded away; all bounds lie where a double is exact
                columns[name], value = "DOUBLE", f"{quoted}::BIGINT"
                condition = f"{_within(quoted, holds)} AND {quoted} = trunc({quoted})"
            case inspect.FloatType():
                columns[name], condition = "DOUBLE", _within(quoted, holds)
            case inspect.LiteralType():
                columns[name], condition = "VARCHAR", f"{quoted} IN {tuple(holds.values)!r}"
            case inspect.DictType():
                columns[name] = "JSON"
            case _:
                columns[name] = "VARCHAR"
        if name in ("at", "sampled_at", "ended_at"):
            value = f"make_timestamptz(({quoted} * 1e6)::BIGINT)"
        if isinstance(field_.default, str):
            value = f"coalesce({value}, '{field_.default}')"
        if field_.required:
            where.append(condition or f"{quoted} IS NOT NULL")
        elif condition:
            where.append(f"({quoted} IS NULL OR {condition})")
        names.append(f'"{(rename or {}).get(name, name)}"')
        select.append(f"{value} AS {names[-1]}")
    return _Target(table, columns, ", ".join(select), ", ".join(names), " AND ".join(where))


def _within(quoted: str, kind: inspect.IntType | inspect.FloatType) -> str:
    """A number between its bounds; NaN and the infinities are not."""
    bounds = ((">=", kind.ge), (">", kind.gt), ("<=", kind.le), ("<", kind.lt))
    conditions = [f"{quoted} {sign} {bound!r}" for sign, bound in bounds if bound is not None]
    return " AND ".join([*conditions, f"isfinite({quoted})"] if kind.le is kind.lt is None else conditions)


_TARGETS: dict[type[msgspec.Struct], _Target] = {
    Step: _target(Step, "steps"),
    Evaluation: _target(Evaluation, "evaluations"),
    GpuSample: _target(GpuSample, "gpu_samples"),
    HostSample: _target(HostSample, "host_samples"),
    RankStarted: _target(RankStarted, "ranks", rename={"at": "started_at"}),
    _EventRow: _target(_EventRow, "events"),
}
# How our own writers begin a line of a frequent kind; such a line needs no decoding here.
_PREFIXES: tuple[tuple[type[msgspec.Struct], bytes], ...] = (
    (GpuSample, b'{"t":"gpu",'),
    (Step, b'{"t":"step",'),
    (HostSample, b'{"t":"host",'),
)


@dataclass
class Position:
    """How far a journal file has been ingested.

    Attributes:
        mark: What `JournalTail.mark` was there; None where an older lorawatch came this far.
        known_until: Lines before this offset may be in the history already: the file was cut or replaced, and is read
            again.
        cuts: How often that happened.
    """

    byte_offset: int = 0
    lines: int = 0
    broken_lines: int = 0
    mark: int | None = None
    known_until: int = 0
    cuts: int = 0

    @property
    def again(self) -> bool:
        return self.byte_offset < self.known_until


@dataclass
class Batch:
    """Complete lines of a run's journals, sorted by table, in files in memory.

    Attributes:
        positions: After this batch, by file name; only files that have moved.
        complete: Whether the journals' ends were reached.
        again: Whether its lines may be in the history already.
        cut: Files that were cut or replaced, with how far they had been read and their present size.
        unread: Files that could not be read, and why.
    """

    positions: dict[str, Position] = field(default_factory=dict)
    lines: dict[type[msgspec.Struct], int] = field(default_factory=dict)
    byte_count: int = 0
    complete: bool = True
    again: bool = False
    cut: dict[str, tuple[int, int]] = field(default_factory=dict)
    unread: dict[str, str] = field(default_factory=dict)


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
            start: Where to continue, by file name.
            careful: Decode every line, because the fast path failed on this batch.
        """
        self._sizes = dict.fromkeys(self._files, 0)
        files = sorted(run.journal.glob("*.jsonl"))
        # What is read again is compared with the history: in batches of its own, one file at a time.
        again = next((f for f in files if f.name in start and start[f.name].again), None)
        batch = Batch(again=again is not None, complete=again is None)
        for path in [again] if again else files:
            self._read_file(path, start.get(path.name, Position()), batch, limit, careful)
        return batch

    def _read_file(self, path: Path, known: Position, batch: Batch, limit: int, careful: bool) -> None:
        at = replace(known)
        tail = JournalTail(path, at.byte_offset, at.mark)
        while batch.byte_count < limit and (at.again or not batch.again):
            piece = tail.read(_PIECE)
            if tail.error is not None:
                batch.unread[path.name] = tail.error
            if tail.cut:  # from its beginning, in the next batch
                size = path.stat().st_size
                batch.cut[path.name] = (known.byte_offset, size)
                batch.positions[path.name] = Position(known_until=size, cuts=known.cuts + 1)
                batch.complete = False
                return
            if not piece:
                at.known_until = min(at.known_until, tail.offset)
                break
            self._sort(piece, batch, at, careful)
            batch.byte_count += len(piece)
            at.byte_offset, at.mark = tail.offset, tail.mark
        else:
            batch.complete = False
        if at != known:
            batch.positions[path.name] = at

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
            rows = (
                f"SELECT $1 AS run_id, {target.select} "  # noqa: S608  fixed names
                f"FROM read_json('/proc/self/fd/{descriptor}', format = 'newline_delimited', compression = 'none', "
                f"maximum_object_size = {2 * LONGEST_LINE}, ignore_errors = {str(careful).lower()}, "
                f"columns = {{{columns}}}) WHERE {target.where}"
            )
            if batch.again:
                valid = _number(connection.execute(f"SELECT count(*) FROM ({rows})", [run_id]))  # noqa: S608
                there = f"SELECT run_id, {target.names} FROM {target.table} WHERE run_id = $1"  # noqa: S608
                rows = f"({rows}) EXCEPT ({there})"
            taken = _number(connection.execute(f"INSERT INTO {target.table} BY NAME {rows}", [run_id]))
            inserted += taken
            refused += count - (valid if batch.again else taken)
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
                    if _is_plain(piece):
                        self._put(batch, kind, piece, count)
                        return
                    break
        lines = piece.split(b"\n")
        lines.pop()  # behind the last newline
        if quick:
            for kind, prefix in _PREFIXES:
                of_kind = [line for line in lines if line.startswith(prefix)]
                if not of_kind:
                    continue
                text = b"\n".join([*of_kind, b""])
                if _is_plain(text):
                    self._put(batch, kind, text, len(of_kind))
                    if len(of_kind) == len(lines):
                        return
                    lines = [line for line in lines if not line.startswith(prefix)]
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


def _is_plain(text: bytes) -> bool:
    """Whether lines are as our own writers make them in what DuckDB's reader would pass over: space inside a number's
    quotes, and a truth value where a number belongs."""
    return not any(sign in text for sign in (b" ", b"\t", b"\r", b":true", b":false"))


def _number(answer: Connection) -> int:
    row = answer.fetchone()
    return int(row[0]) if row else 0


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
            detail={"lines": record.lines, "steps": record.steps, "last_step": record.last_step},
        )
    return record

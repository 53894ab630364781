"""One read-only SELECT of a user's: it can read only the history, has a time limit, and is answered in batches."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorawatch.errors import HistoryError, UsageError
from lorawatch.storage.connection import reading
from lorawatch.storage.engine import Connection, Error, duckdb
from lorawatch.storage.explain import about_the_file, explain
from lorawatch.system import home as paths
from lorawatch.system.processes import usable_cores

MEMORY = "1GB"
"""DuckDB's limit; it does not count a single text that DuckDB makes, nor Python's copies of rows."""
SPILL_BYTES = 4 << 30
"""Of temporary files on the disk of the history, where memory runs out; never more than a tenth of what is free there."""
_KEPT_BYTES = 256 << 20
_BATCH_BYTES = 1 << 20
_MOST_ROWS = 256
_STALE_S = 86_400.0
_EXPLAIN = re.compile(r"^(\s|--[^\n]*\n|/\*(?:[^*]|\*(?!/))*\*/)*EXPLAIN\s+(\([^)]*\)\s*|ANALYZE\s+)*", re.IGNORECASE)
_HINT = 'for example lorawatch sql "SELECT * FROM v_runs"; lorawatch sql "SHOW TABLES" lists what there is'
_LESS = "ask for less at once, or ask a copy: lorawatch snapshot FILE"


@dataclass(frozen=True)
class Answer:
    """A query's answer while it is read.

    Attributes:
        columns: Names, in order; a name may come twice.
        types: DuckDB's type names, in order.
        nested: Which columns are lists, structs or the like; their values are JSON text.
        batches: The rows, some at a time, each once; times with a zone and intervals are text.
    """

    columns: list[str]
    types: list[str]
    nested: list[bool]
    batches: Iterator[list[tuple[Any, ...]]]


@dataclass(frozen=True)
class Result:
    """A query's answer as a whole, as in `Answer`.

    Attributes:
        cut: Whether there were more rows than asked for.
    """

    columns: list[str]
    types: list[str]
    rows: list[tuple[Any, ...]]
    cut: bool = False
    nested: list[bool] = field(default_factory=list)


@contextlib.contextmanager
def answering(query: str, *, timeout_s: float = 60.0, history: Path | None = None) -> Iterator[Answer]:
    """Answer one SELECT (or WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN).

    The history stays open, and recorders wait with their rows, until the context ends.

    Args:
        timeout_s: The query is interrupted after this, the reading of its rows included.

    Raises:
        UsageError: It is not one read-only statement, or DuckDB refuses it.
        HistoryBusy: A writer held the history for 2 s.
        HistoryError: It exceeded its time or memory, or the history cannot be read.
    """
    with _guarded(timeout_s, history) as connection:
        text = _checked(connection, query)
        if isinstance(text, _Explain):
            plan = [(row[-1],) for row in connection.execute(text.query).fetchall()]
            yield Answer(["plan"], ["VARCHAR"], [False], iter([plan]))
            return
        described = connection.execute(f"DESCRIBE {text}").fetchall()
        columns, types = [row[0] for row in described], [row[1] for row in described]
        nested = [_is_nested(kind) for kind in types]
        picked = ", ".join(_picked(f"c{i}", kind, nested[i]) for i, kind in enumerate(types))
        names = ", ".join(f"c{i}" for i in range(len(types)))
        rows = connection.execute(f"SELECT {picked} FROM ({text}\n) AS answer({names})")  # noqa: S608
        yield Answer(columns, types, nested, _batches(rows))


def run_select(
    query: str, *, timeout_s: float = 60.0, max_rows: int | None = None, history: Path | None = None
) -> Result:
    """A query's answer as a whole, of at most 256 MB.

    Args:
        timeout_s: The query is interrupted after this.
        max_rows: Keep only so many rows.

    Raises:
        UsageError, HistoryBusy, HistoryError: As `answering`; also where the answer is larger.
    """
    rows: list[tuple[Any, ...]] = []
    size = 0
    with answering(query, timeout_s=timeout_s, history=history) as answer:
        for batch in answer.batches:
            rows += batch
            size += _rough_bytes(batch)
            if max_rows is not None and len(rows) > max_rows:
                break
            if size > _KEPT_BYTES:
                raise HistoryError(f"the answer is larger than {_KEPT_BYTES >> 20} MB", hint=_LESS)
    cut = max_rows is not None and len(rows) > max_rows
    return Result(answer.columns, answer.types, rows[:max_rows] if cut else rows, cut, answer.nested)


def copy_select(query: str, target: Path, *, timeout_s: float = 60.0, history: Path | None = None) -> int:
    """Write one SELECT's answer to a new Parquet file. Returns the number of rows.

    Raises:
        UsageError, HistoryBusy, HistoryError: As `answering`; also where the file cannot be written.
    """
    with _guarded(timeout_s, history, may_write=target) as connection:
        text = _checked(connection, query)
        if isinstance(text, _Explain):
            raise UsageError("a plan is no table", hint="choose --format table")
        place = str(target.absolute()).replace("'", "''")
        row = connection.execute(
            f"COPY (SELECT * FROM ({text}\n)) TO '{place}' (FORMAT parquet, USE_TMP_FILE false)"  # noqa: S608
        ).fetchone()
        return int(row[0]) if row else 0


def _is_nested(kind: str) -> bool:
    return kind.endswith("]") or kind.startswith(("STRUCT(", "MAP(", "UNION(", "VARIANT"))


def _picked(name: str, kind: str, nested: bool) -> str:
    """A column in a form that the Python client can read.

    Nested values would become Python objects of many times their size, past every limit, so DuckDB writes them as JSON. A time
    with a zone needs another package, and an interval may be longer than Python's; as text both keep their value.
    """
    if nested:
        return f"to_json({name})::VARCHAR"
    return f"{name}::VARCHAR" if "TIME ZONE" in kind or "TIMESTAMPTZ" in kind or kind == "INTERVAL" else name


def _batches(rows: Connection) -> Iterator[list[tuple[Any, ...]]]:
    """The rows, about a megabyte at a time: one row may be as large as all others together."""
    count = 16
    while batch := rows.fetchmany(count):
        size = _rough_bytes(batch)
        yield batch
        count = min(max(count * _BATCH_BYTES // max(size, 1), 1), 2 * count, _MOST_ROWS)


def _rough_bytes(batch: list[tuple[Any, ...]]) -> int:
    """The size by some of the rows: measuring each would take longer than writing them."""
    some = batch[:: max(len(batch) // 4, 1)]
    size = sum(32 + (sys.getsizeof(value) if isinstance(value, (str, bytes)) else 0) for row in some for value in row)
    return size * len(batch) // len(some)


class _Explain:
    def __init__(self, query: str) -> None:
        self.query = query


def _checked(connection: Connection, query: str) -> str | _Explain:
    """The statement's text without its semicolon; writing is impossible anyway, since the file is open for reading."""
    statements = _statements(connection, query)
    if len(statements) != 1:
        word = "no statement" if not statements else f"{len(statements)} statements"
        raise UsageError(f"one SELECT is expected, not {word}", hint=_HINT)
    statement = statements[0]
    kind = _kind(statement)
    if kind == "EXPLAIN":
        explained = _EXPLAIN.sub("", statement.query, count=1)  # ANALYZE runs the statement
        if [_kind(inner) for inner in _statements(connection, explained)] != ["SELECT"]:
            raise UsageError("only a SELECT is explained", hint=_HINT)
        return _Explain(statement.query)
    if kind != "SELECT":
        raise UsageError(f"only reading is allowed, not {kind}", hint=_HINT)
    return str(statement.query).strip().rstrip(";")


def _statements(connection: Connection, query: str) -> list[Any]:
    try:
        return connection.extract_statements(query)
    except Error as error:
        raise UsageError(_first_lines(error), hint=_HINT) from None


def _kind(statement: Any) -> str:
    try:
        return str(statement.type.name)
    except ValueError:  # a type without a name in the Python client
        return "this"


@contextlib.contextmanager
def _guarded(timeout_s: float, history: Path | None, may_write: Path | None = None) -> Iterator[Connection]:
    path = history or paths.history_file()
    with _spill_folder(path.parent) as folder:
        config = {"memory_limit": MEMORY, "threads": str(min(usable_cores(), 8))}
        with reading(history, config={**config, "temp_directory": str(folder or "")}) as connection:
            if folder is not None:  # has no effect among the options of opening
                most = min(SPILL_BYTES, shutil.disk_usage(folder).free // 10)
                connection.execute(f"SET max_temp_directory_size = '{most >> 10}KiB'")
            if may_write is not None:
                place = str(may_write.absolute()).replace("'", "''")
                connection.execute(f"SET allowed_paths = ['{place}']")
            connection.execute("SET enable_external_access = false")
            connection.execute("SET lock_configuration = true")
            timer = threading.Timer(timeout_s, connection.interrupt)
            timer.daemon = True
            timer.start()
            try:
                yield connection
            except (Error, MemoryError) as error:
                raise _explained(error, path, timeout_s) from None
            finally:
                timer.cancel()


def _explained(error: Exception, path: Path, timeout_s: float) -> HistoryError | UsageError:
    if isinstance(error, duckdb.InterruptException):
        return HistoryError(
            f"the query did not end within {timeout_s:g} s",
            hint="raise --timeout, or ask a copy: lorawatch snapshot FILE",
        )
    if isinstance(error, (duckdb.OutOfMemoryException, MemoryError)):
        return HistoryError(f"the query needs more than {MEMORY} of memory", hint=_LESS)
    if about_the_file(error):
        return explain(error, path)
    return UsageError(_first_lines(error), hint=_HINT)


@contextlib.contextmanager
def _spill_folder(home: Path) -> Iterator[Path | None]:
    """A folder for one query's temporary files, for this user only; None where none can be made."""
    with contextlib.ExitStack() as stack:
        folder = None
        with contextlib.suppress(OSError):  # a home that is read-only, or does not exist
            _remove_stale(home)
            made = tempfile.TemporaryDirectory(prefix=f".spill-{os.getpid()}-", dir=home, ignore_cleanup_errors=True)
            folder = Path(stack.enter_context(made))
        yield folder


def _remove_stale(home: Path) -> None:
    """Remove the temporary folders of killed queries."""
    for folder in home.glob(".spill-*"):
        with contextlib.suppress(OSError):
            if time.time() - folder.stat().st_mtime > _STALE_S:
                shutil.rmtree(folder)


def _first_lines(error: Exception) -> str:
    """DuckDB's message with the user's own text under its caret."""
    lines = []
    shift = 0
    for line in str(error).splitlines():
        if line.startswith("LINE 1: DESCRIBE "):
            line, shift = line.replace("DESCRIBE ", "", 1), len("DESCRIBE ")
        elif shift and line.strip().startswith("^"):
            line, shift = line[shift:], 0
        if line.strip():
            lines.append(line)
    return "\n".join(lines)

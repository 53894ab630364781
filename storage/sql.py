"""One read-only SELECT of a user's: it can read the history and nothing else, and it ends."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorawatch.errors import HistoryError, UsageError
from lorawatch.processes import usable_cores
from lorawatch.storage.connection import explain, reading
from lorawatch.storage.engine import Connection, Error, duckdb

MEMORY = "1GB"
_HINT = 'for example lorawatch sql "SELECT * FROM v_runs"; lorawatch sql "SHOW TABLES" lists what there is'


@dataclass(frozen=True)
class Result:
    """A query's answer.

    Attributes:
        columns: Names, in order; a name may come twice.
        types: DuckDB's type names, in order.
        rows: The rows; times with a zone as ISO text.
        cut: Whether there were more rows than asked for.
    """

    columns: list[str]
    types: list[str]
    rows: list[tuple[Any, ...]]
    cut: bool = False


def run_select(
    query: str, *, timeout_s: float = 60.0, max_rows: int | None = None, history: Path | None = None
) -> Result:
    """Answer one SELECT (or WITH, FROM, VALUES, DESCRIBE, SHOW, SUMMARIZE, EXPLAIN).

    The history is open for as long as the query runs, so that recorders wait that long with their rows; the answer is
    held in memory.

    Args:
        timeout_s: The query is interrupted after this.
        max_rows: Keep only so many rows.

    Raises:
        UsageError: It is not one read-only statement, or DuckDB does not understand it.
        HistoryBusy: A writer held the history for 2 s.
        HistoryError: It ran out of time or memory, or the history cannot be read.
    """
    with _guarded(timeout_s, history) as connection:
        text = _checked(connection, query)
        if isinstance(text, _Explain):
            return Result(["plan"], ["VARCHAR"], [(row[-1],) for row in connection.execute(text.query).fetchall()])
        described = connection.execute(f"DESCRIBE {text}").fetchall()
        columns, types = [row[0] for row in described], [row[1] for row in described]
        # The Python client needs another package to show a time with a zone; its text says the same.
        picked = ", ".join(f"c{i}::VARCHAR" if "WITH TIME ZONE" in kind else f"c{i}" for i, kind in enumerate(types))
        names = ", ".join(f"c{i}" for i in range(len(types)))
        limit = "" if max_rows is None else f" LIMIT {int(max_rows) + 1}"
        rows = connection.execute(f"SELECT {picked} FROM ({text}\n) AS answer({names}){limit}").fetchall()  # noqa: S608
        cut = max_rows is not None and len(rows) > max_rows
        return Result(columns, types, rows[:max_rows] if cut else rows, cut)


def copy_select(query: str, target: Path, *, timeout_s: float = 60.0, history: Path | None = None) -> int:
    """Write one SELECT's answer to a new Parquet file. Returns the number of rows.

    Raises:
        UsageError, HistoryBusy, HistoryError: As `run_select`; also where the file cannot be written.
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


class _Explain:
    def __init__(self, query: str) -> None:
        self.query = query


def _checked(connection: Connection, query: str) -> str | _Explain:
    """The statement's text without its semicolon; it still may not write, since the file is open for reading."""
    try:
        statements = connection.extract_statements(query)
    except Error as error:
        raise UsageError(_first_lines(error), hint=_HINT) from None
    if len(statements) != 1:
        word = "no statement" if not statements else f"{len(statements)} statements"
        raise UsageError(f"one SELECT is expected, not {word}", hint=_HINT)
    statement = statements[0]
    if statement.type == duckdb.StatementType.EXPLAIN:
        return _Explain(statement.query)
    if statement.type != duckdb.StatementType.SELECT:
        raise UsageError(f"only reading is allowed, not {statement.type.name}", hint=_HINT)
    return statement.query.strip().rstrip(";")


@contextlib.contextmanager
def _guarded(timeout_s: float, history: Path | None, may_write: Path | None = None) -> Iterator[Connection]:
    config = {"memory_limit": MEMORY, "threads": str(min(usable_cores(), 8))}
    with reading(history, config=config) as connection:
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
        except duckdb.InterruptException:
            raise HistoryError(
                f"the query did not end within {timeout_s:g} s",
                hint="raise --timeout, or ask a copy: lorawatch snapshot FILE",
            ) from None
        except duckdb.OutOfMemoryException:
            raise HistoryError(
                f"the query needs more than {MEMORY} of memory",
                hint="ask for less at once, or ask a copy: lorawatch snapshot FILE",
            ) from None
        except Error as error:
            told = explain(error, history or Path("history.duckdb"))
            if type(told) is not HistoryError or isinstance(error, duckdb.IOException):
                raise told from None
            raise UsageError(_first_lines(error), hint=_HINT) from None
        finally:
            timer.cancel()


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

"""Copies what only the old history has into the new one: runs without journals, imported tables, a user's own tables."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lorawatch.run.directory import ENDED, RunDir
from lorawatch.storage import files
from lorawatch.storage.connection import writing
from lorawatch.storage.edit import RUN_TABLES
from lorawatch.storage.engine import Connection, Error, duckdb
from lorawatch.storage.explain import about_the_file, explain
from lorawatch.storage.schema import view_names
from lorawatch.storage.summary import summarize
from lorawatch.system import home
from lorawatch.text.sanitize import clean

# Tables that come from journals, compared row by row where journals are incomplete; a run's other rows come from its directory.
_FACTS = ("ranks", "steps", "evaluations", "gpu_samples", "host_samples", "events")
_WAIT_S = 30.0  # time for recorders that write in between
_Columns = Mapping[str, Sequence[str]]


@dataclass
class Rescued:
    """What was copied, and what was not.

    Attributes:
        runs: Runs whose directory is gone.
        parts: Runs whose journals are incomplete.
        imported: Rows of imported tables, by source.
        own: Tables and views of the user's own.
        lost: What could not be read, in sentences.
    """

    runs: list[str] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    imported: dict[str, int] = field(default_factory=dict)
    own: list[str] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def rescue(aside: Path, history: Path) -> Rescued:
    """Copy what the new history cannot get from journals; rows that it has stay as they are.

    May be called again after a crash: each run, and each table, is one transaction.

    Raises:
        HistoryBusy, HistoryError: The new history cannot be written.
    """
    rescued = Rescued()
    if not aside.is_file():
        rescued.lost.append(f"nothing can be read from {aside.name}, which is no file")
        return rescued
    with _readable(aside, rescued) as source:
        if source is None:
            return rescued
        there = _Source(source)
        with writing(history, deadline_s=_WAIT_S) as connection:
            own_columns = _columns(connection)
            known = {row[0] for row in connection.execute("SELECT run_id FROM runs").fetchall()}
        shared = {
            t: [c for c in there.columns[t] if c in names] for t, names in own_columns.items() if t in there.columns
        }
        ids, unread = there.run_ids(shared)
        for run_id in sorted(ids | known):
            gone = not (home.runs_folder() / run_id / "run.json").is_file()
            if run_id not in known if gone else there.lacks_journals(run_id):
                _take_run(history, there, shared, run_id, gone, rescued)
        if unread:
            rescued.lost.append(
                f"{', '.join(unread)} of the old one cannot be read whole: rows of runs without journals may be missing"
            )
        _take_imported(history, there, shared.get("published_results", ()), rescued)
        for name in [t for t in there.columns if t not in own_columns]:
            _take_own(history, there, f"CREATE TABLE {_quoted(name)} AS FROM old.{_quoted(name)}", name, rescued)
        for name, text in there.views():
            _take_own(history, there, text, name, rescued)
    return rescued


class _Source:
    """The history that was set aside, opened again for each query, since an error from damage makes a connection unusable."""

    def __init__(self, path: Path) -> None:
        self.attach = f"ATTACH '{str(path).replace(chr(39), 2 * chr(39))}' AS old (READ_ONLY)"
        self._offsets: dict[str, list[tuple[str, int]]] | None = None
        with self.opened() as connection:
            self.columns = _columns(connection, "old")

    @contextlib.contextmanager
    def opened(self) -> Iterator[Connection]:
        connection = duckdb.connect(":memory:", config=dict(files.CONFIG))
        try:
            connection.execute(self.attach)
            yield connection
        finally:
            connection.close()

    def ask(self, query: str, values: Sequence[Any] = ()) -> list[tuple[Any, ...]] | None:
        """The rows; None where they cannot be read."""
        try:
            with self.opened() as connection:
                return connection.execute(query, list(values)).fetchall()
        except Error:
            return None

    def run_ids(self, tables: _Columns) -> tuple[set[str], list[str]]:
        """The ids of all runs that any table names; and the tables that cannot be read."""
        ids: set[str] = set()
        unread = []
        for table in (t for t in RUN_TABLES if t in tables):
            rows = self.ask(f"SELECT DISTINCT run_id FROM old.{table}")  # noqa: S608  names of our own
            ids.update(run_id for (run_id,) in rows or () if run_id)
            if rows is None:
                unread.append(table)
        return ids, unread

    def lacks_journals(self, run_id: str) -> bool:
        """Whether the run's journals are gone or were cut; True where that cannot be read."""
        cuts = "cuts" if "cuts" in self.columns.get("journal_offsets", ()) else "0"
        rows = self.ask(f"SELECT file, byte_offset, {cuts} FROM old.journal_offsets WHERE run_id = ?", [run_id])  # noqa: S608
        folder = RunDir(home.runs_folder() / run_id).journal
        return rows is None or any(cuts or _size(folder / file) < taken for file, taken, cuts in rows)

    def readable(self, table: str, run_id: str) -> bool:
        query = f"SELECT bit_xor(hash(COLUMNS(*))) FROM old.{table} WHERE run_id = ?"  # noqa: S608  names of our own
        return self.ask(query, [run_id]) is not None

    def count(self, table: str, run_id: str) -> int | None:
        """The number of a run's rows; None where it cannot be read."""
        rows = self.ask(f"SELECT count(*) FROM old.{table} WHERE run_id = ?", [run_id])  # noqa: S608  likewise
        return rows[0][0] if rows else None

    def views(self) -> list[tuple[str, str]]:
        """The user's own views, and the statements that make them."""
        views = self.ask("SELECT view_name, sql FROM duckdb_views() WHERE database_name = 'old' AND NOT internal") or []
        return [(name, text) for name, text in views if name not in view_names()]


@contextlib.contextmanager
def _readable(aside: Path, rescued: Rescued) -> Iterator[Path | None]:
    """A path under which DuckDB opens the file, without its log where the log is damaged; None where it cannot be opened."""
    with tempfile.TemporaryDirectory(prefix=".rescue-", dir=aside.parent) as folder:
        bare = Path(folder) / aside.name
        for source in (aside, bare):
            if source is bare:
                _same_content(aside, bare)
            try:
                _Source(source)
            except Error as error:
                why = str(error).splitlines()[0]
                continue
            if source is bare and files.wal(aside).exists():
                rescued.lost.append(
                    f"the log {files.wal(aside).name} cannot be read: what was imported last may be missing"
                )
            yield source
            return
        rescued.lost.append(f"nothing can be read from {aside.name}: {why.replace(str(bare), str(aside))}")
        yield None


def _same_content(path: Path, name: Path) -> None:
    try:
        os.link(path, name)
    except OSError:  # a file system without links
        shutil.copyfile(path, name)


def _take_run(history: Path, there: _Source, shared: _Columns, run_id: str, gone: bool, rescued: Rescued) -> None:
    """Copy a run's rows: all of them where its directory is gone, else those that the new history lacks."""
    tables = [t for t in (RUN_TABLES if gone else _FACTS) if t in shared]
    good = [t for t in tables if there.readable(t, run_id)]

    def take(connection: Connection) -> int:
        taken = 0
        for table in good:
            names = ", ".join(map(_quoted, shared[table]))
            rows = f"SELECT {names} FROM old.{table} WHERE run_id = $1"  # noqa: S608  names of our own
            if not gone:
                rows = f"({rows}) EXCEPT (SELECT {names} FROM {table} WHERE run_id = $1)"  # noqa: S608  likewise
            answer = connection.execute(f"INSERT INTO {table} ({names}) {rows}", [run_id]).fetchone()
            taken += answer[0] if answer else 0
        if not gone and taken and there.readable("journal_offsets", run_id):
            _remember_journals(connection, shared["journal_offsets"], run_id)
        return taken

    taken = _write(history, there, take)
    if taken:
        (rescued.runs if gone else rescued.parts).append(run_id)
    if taken and not gone and _ended(run_id):
        with writing(history, deadline_s=_WAIT_S) as connection:
            summarize(connection, run_id)
    for table in tables if taken is None else [t for t in tables if t not in good]:
        count = there.count(table, run_id)
        if count is not None or gone:
            rows = "rows" if count is None else f"{count:,} rows"
            rescued.lost.append(f"{rows} of {table} of run {clean(run_id)} cannot be read")


def _remember_journals(connection: Connection, columns: Sequence[str], run_id: str) -> None:
    """Record that the history has rows which the journals lack, so that a later rebuild keeps them."""
    names = ", ".join(map(_quoted, columns))
    connection.execute(
        f"INSERT INTO journal_offsets ({names}) SELECT {names} FROM old.journal_offsets WHERE run_id = $1 "  # noqa: S608
        "AND file NOT IN (SELECT file FROM journal_offsets WHERE run_id = $1)",
        [run_id],
    )
    were_cut = "o.byte_offset > n.byte_offset" + (" OR o.cuts > 0" if "cuts" in columns else "")
    connection.execute(
        f"UPDATE journal_offsets AS n SET cuts = coalesce(n.cuts, 0) + 1 FROM old.journal_offsets AS o "  # noqa: S608
        f"WHERE n.run_id = $1 AND o.run_id = $1 AND o.file = n.file AND ({were_cut})",
        [run_id],
    )


def _ended(run_id: str) -> bool:
    try:
        return RunDir(home.runs_folder() / run_id).state().state in ENDED
    except (OSError, ValueError):
        return False


def _take_imported(history: Path, there: _Source, columns: Sequence[str], rescued: Rescued) -> None:
    if "builtin" not in columns:
        return
    names = ", ".join(map(_quoted, columns))
    sources = there.ask("SELECT source, count(*) FROM old.published_results WHERE builtin IS NULL GROUP BY source")
    if sources is None:
        rescued.lost.append("the imported tables cannot be read")
    for source, count in sources or ():

        def take(connection: Connection, source: str = source) -> int:
            connection.execute(
                f"INSERT INTO published_results ({names}) SELECT {names} FROM old.published_results "  # noqa: S608
                "WHERE builtin IS NULL AND source = $1 AND NOT EXISTS "
                "(FROM published_results AS p WHERE p.builtin IS NULL AND p.source = $1)",
                [source],
            )
            return 1

        if _write(history, there, take):
            rescued.imported[source] = count
        else:
            rescued.lost.append(f"{count:,} rows of the imported table {clean(source)} cannot be read")


def _take_own(history: Path, there: _Source, statement: str, name: str, rescued: Rescued) -> None:
    def take(connection: Connection) -> int:
        if not connection.execute(
            "SELECT 1 FROM duckdb_columns() WHERE table_name = ? AND database_name = current_database()", [name]
        ).fetchall():
            connection.execute(statement)
        return 1

    if _write(history, there, take):
        rescued.own.append(name)
    else:
        rescued.lost.append(f"your own {clean(name)} cannot be read")


def _write(history: Path, there: _Source, take: Callable[[Connection], int]) -> int | None:
    """Run one transaction that reads `old`. Returns its result, or None where `old` could not be read.

    Raises:
        HistoryError: The new history cannot be written.
    """
    with writing(history, deadline_s=_WAIT_S) as connection:
        try:
            connection.execute(there.attach)
            connection.execute("BEGIN")
            taken = take(connection)
            connection.execute("COMMIT")
        except Error as error:
            if about_the_file(error) and "No space left" in str(error):
                raise explain(error, history) from error
            return None
    return taken


def _columns(connection: Connection, database: str | None = None) -> dict[str, list[str]]:
    """The columns of each table of a database (the current one), in order."""
    rows = connection.execute(
        "SELECT c.table_name, list(c.column_name ORDER BY c.column_index) FROM duckdb_columns() AS c "
        "JOIN duckdb_tables() AS t USING (database_name, schema_name, table_name) WHERE NOT t.internal "
        "AND c.schema_name = 'main' AND c.database_name = coalesce(?, current_database()) GROUP BY ALL",
        [database],
    ).fetchall()
    return dict(rows)


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return -1


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"'

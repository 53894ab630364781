"""The history's schema: numbered migrations, a column for each metric of the registry, and views and comments.

A metric that the registry (`lorawatch.run.metrics`) has and a table lacks gets its column when the history is opened for
writing, without a migration of its own and without a new version: lorawatch of either age reads and writes such a file.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Sequence
from importlib import resources

from lorawatch.errors import HistoryTooNew
from lorawatch.run.metrics import TABLES, Metric
from lorawatch.storage import builtin, expressions, workloads
from lorawatch.storage.engine import Connection, duckdb, roll_back
from lorawatch.system.version import __version__

_CREATE_MIGRATIONS = """
CREATE TABLE IF NOT EXISTS schema_migrations (
    version INTEGER, name VARCHAR, applied_at TIMESTAMPTZ, lorawatch_version VARCHAR
)
"""


@functools.cache
def latest() -> int:
    """The schema version of this lorawatch."""
    return max(number for number, _ in _names())


def version(connection: Connection) -> int:
    """The file's schema version; 0 for a database without our tables."""
    try:
        row = connection.execute("SELECT coalesce(max(version), 0) FROM schema_migrations").fetchone()
    except duckdb.CatalogException:
        return 0
    return int(row[0]) if row else 0


def _names() -> list[tuple[int, str]]:
    """(number, file name) of every migration, in order; the number is the file name's beginning."""
    folder = resources.files("lorawatch.storage") / "migrations"
    return sorted((int(f.name.partition("_")[0]), f.name) for f in folder.iterdir() if f.name.endswith(".sql"))


def _text(name: str) -> str:
    return resources.files("lorawatch.storage").joinpath(name).read_text(encoding="utf-8")


@functools.cache
def _views() -> str:
    """The views' SQL, with the expressions that they share with other questions in place."""
    return expressions.filled_in(_text("views.sql"))


def check(connection: Connection, where: str) -> int:
    """The file's schema version.

    Raises:
        HistoryTooNew: A newer lorawatch has written it.
    """
    present, known = version(connection), latest()
    if present > known:
        raise HistoryTooNew(
            f"the history {where} has schema {present}, this lorawatch knows up to {known}",
            hint="upgrade lorawatch, or set LORAWATCH_HOME to another folder",
        )
    return present


def is_current(connection: Connection, where: str) -> bool:
    """Whether the file has every migration, a column for every metric, and the runs' work as this lorawatch defines it.

    Raises:
        HistoryTooNew: A newer lorawatch has written it.
    """
    if check(connection, where) < latest() or workloads.stale(connection):
        return False
    return not any(_lacking(connection, table) for table in TABLES)


def migrate(connection: Connection, where: str) -> bool:
    """Bring the schema up to date, each migration one transaction with its version in it, then the metrics' columns, and
    the package's published tables with it.

    Returns:
        Whether the schema was not.

    Raises:
        HistoryTooNew: A newer lorawatch has written it; nothing is touched.
    """
    before = check(connection, where)
    for number, name in _names():
        if number > before:
            connection.execute("BEGIN")
            try:
                connection.execute(_CREATE_MIGRATIONS)
                _drop_views(connection)
                connection.execute(_text(f"migrations/{name}"))
                connection.execute("INSERT INTO schema_migrations VALUES (?, ?, now(), ?)", [number, name, __version__])
                if number == latest():  # the views in the same transaction: a reader never finds a schema without them
                    connection.execute(_views())
                    connection.execute(_text("comments.sql"))
                    for table, metrics in TABLES.items():
                        lacking = _lacking(connection, table)
                        _comment(connection, table, [m for m in metrics if m not in lacking])
                connection.execute("COMMIT")
            except BaseException:
                roll_back(connection)
                raise
    added = [table for table in TABLES if _add(connection, table, _lacking(connection, table))]
    builtin.refresh(connection)
    workloads.refresh(connection)
    return before < latest() or bool(added)


def with_metrics(connection: Connection, table: str) -> str:
    """What a question selects from to find a column for every metric of a table, also in a history that an older lorawatch
    has written and that cannot be changed: there it is NULL."""
    lacking = _lacking(connection, table)
    if not lacking:
        return table
    missing = ", ".join(f"NULL::{m.sql} AS {m.column}" for m in lacking)
    return f"(SELECT *, {missing} FROM {table})"  # noqa: S608  names of the registry


def _lacking(connection: Connection, table: str) -> list[Metric]:
    """The metrics of a table that have no column in it."""
    described = connection.execute(f"SELECT * FROM {table} LIMIT 0").description or []  # noqa: S608  names of the registry
    there = {column[0] for column in described}
    return [m for m in TABLES[table] if m.column not in there]


def _add(connection: Connection, table: str, metrics: Sequence[Metric]) -> bool:
    """Give these metrics their columns in one transaction, NULL in the rows that are there. Returns whether there are any."""
    if not metrics:
        return False
    connection.execute("BEGIN")
    try:
        for metric in metrics:
            connection.execute(f"ALTER TABLE {table} ADD COLUMN {metric.column} {metric.sql}")
        _comment(connection, table, metrics)
        connection.execute("COMMIT")
    except BaseException:
        roll_back(connection)
        raise
    return True


def _comment(connection: Connection, table: str, metrics: Sequence[Metric]) -> None:
    for metric in metrics:
        text = metric.comment.replace("'", "''")
        connection.execute(f"COMMENT ON COLUMN {table}.{metric.column} IS '{text}'")


def view_names() -> list[str]:
    """The views that lorawatch makes."""
    return re.findall(r"^CREATE VIEW (\w+) AS", _views(), re.MULTILINE)


def _drop_views(connection: Connection) -> None:
    """Drop our views, and leave a user's own alone."""
    for name in view_names():
        connection.execute(f"DROP VIEW IF EXISTS {name}")

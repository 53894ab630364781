"""The history's schema: numbered migrations, and the views and comments that are created again after them."""

from __future__ import annotations

import functools
import re
from importlib import resources

from lorawatch.errors import HistoryTooNew
from lorawatch.storage import builtin
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


def check(connection: Connection, where: str) -> int:
    """The file's schema version.

    Raises:
        HistoryTooNew: A newer lorawatch has written it.
    """
    found, known = version(connection), latest()
    if found > known:
        raise HistoryTooNew(
            f"the history {where} has schema {found}, this lorawatch knows up to {known}",
            hint="upgrade lorawatch, or set LORAWATCH_HOME to another folder",
        )
    return found


def migrate(connection: Connection, where: str) -> bool:
    """Bring the schema up to date, each migration one transaction with its version in it, and the package's published
    tables with it.

    Returns:
        Whether the schema was not.

    Raises:
        HistoryTooNew: A newer lorawatch has written it; nothing is touched.
    """
    found = check(connection, where)
    for number, name in _names():
        if number > found:
            connection.execute("BEGIN")
            try:
                connection.execute(_CREATE_MIGRATIONS)
                _drop_views(connection)
                connection.execute(_text(f"migrations/{name}"))
                connection.execute("INSERT INTO schema_migrations VALUES (?, ?, now(), ?)", [number, name, __version__])
                if number == latest():  # the views in the same transaction: a reader never finds a schema without them
                    connection.execute(_text("views.sql"))
                    connection.execute(_text("comments.sql"))
                connection.execute("COMMIT")
            except BaseException:
                roll_back(connection)
                raise
    builtin.refresh(connection)
    return found < latest()


def view_names() -> list[str]:
    """The views that lorawatch makes."""
    return re.findall(r"^CREATE VIEW (\w+) AS", _text("views.sql"), re.MULTILINE)


def _drop_views(connection: Connection) -> None:
    """Drop our views, and leave a user's own alone."""
    for name in view_names():
        connection.execute(f"DROP VIEW IF EXISTS {name}")

"""Published tables in the history: those that the package ships, and those that the user imported."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from lorawatch.errors import UsageError
from lorawatch.published.builtin import builtin_rows, builtin_sources
from lorawatch.published.rows import PublishedRow
from lorawatch.storage import builtin, files, schema
from lorawatch.storage.connection import once_more, reading_with, writing
from lorawatch.storage.engine import Connection, roll_back

_FIELDS = tuple(PublishedRow.__dataclass_fields__)
_SINCE = 2  # the migration that added printed cells


def replace_source(rows: Sequence[PublishedRow], *, replace: bool = True, deadline_s: float = 2.0) -> int:
    """Put rows into the history, replacing the rows of the same sources; all of them or none.

    Args:
        replace: Otherwise a source that exists already is refused.
        deadline_s: How long to wait for others to leave the history.

    Returns:
        The number of replaced rows.

    Raises:
        UsageError: A source is the package's own, or exists already; nothing has changed.
        HistoryBusy: Others held the history that long; nothing has changed.
        HistoryError: It cannot be written.
    """
    return once_more(None, lambda: _replace(rows, _sources(rows), replace, deadline_s))


def _replace(rows: Sequence[PublishedRow], sources: list[str], replace: bool, deadline_s: float) -> int:
    with writing(deadline_s=deadline_s) as connection:
        connection.execute("BEGIN")
        there = connection.execute(
            "SELECT source, count(*) FROM published_results WHERE builtin IS NULL AND list_contains(?, source) "
            "GROUP BY source ORDER BY source",
            [sources],
        ).fetchall()
        if there and not replace:
            roll_back(connection)
            raise _is_there(*there[0])
        connection.execute(
            "DELETE FROM published_results WHERE builtin IS NULL AND list_contains(?, source)", [sources]
        )
        builtin.insert(connection, rows)
        connection.execute("COMMIT")
    return sum(count for _, count in there)


def list_published(*, connection: Connection | None = None, deadline_s: float = 2.0) -> list[PublishedRow]:
    """The package's rows, then the imported ones, by source in the order of their tables.

    Without a history, and in one that an older lorawatch has written, there are only the package's rows.

    Args:
        connection: An open connection to the history, if there is one.

    Raises:
        HistoryBusy: A writer held the history that long.
        HistoryError: It cannot be read.
    """
    own = list(builtin_rows())
    if files.absent():
        return own
    with reading_with(connection, deadline_s=deadline_s) as connection:
        if schema.version(connection) < _SINCE:
            return own
        rows = connection.execute(
            f"SELECT {', '.join(_FIELDS)} FROM published_results WHERE builtin IS NULL ORDER BY source, rowid"  # noqa: S608
        ).fetchall()
    return own + [_row(dict(zip(_FIELDS, values, strict=True))) for values in rows]


def check_source(rows: Sequence[PublishedRow], *, replace: bool, deadline_s: float = 2.0) -> int:
    """Check what `replace_source` would do, without doing it.

    Returns:
        The number of rows that it would replace.

    Raises:
        UsageError, HistoryBusy, HistoryError: As `replace_source`.
    """
    sources = _sources(rows)
    there = [row.source for row in list_published(deadline_s=deadline_s) if row.source in sources]
    if there and not replace:
        raise _is_there(there[0], there.count(there[0]))
    return len(there)


def _sources(rows: Sequence[PublishedRow]) -> list[str]:
    """The rows' sources, none of them the package's own."""
    sources = sorted({row.source for row in rows})
    for known in builtin_sources():
        if known.source in sources:
            raise UsageError(
                f"{known.source!r} is a table that lorawatch ships", hint="--source NAME gives yours another name"
            )
    return sources


def _is_there(source: str, count: int) -> UsageError:
    return UsageError(
        f"the history has {count} row{'' if count == 1 else 's'} of {source!r} already",
        hint="--replace exchanges them, --source NAME gives these another name",
    )


def _row(values: dict[str, object]) -> PublishedRow:
    for name in ("printed", "work"):
        text = values[name]
        values[name] = msgspec.json.decode(text) if isinstance(text, str) else None
    values["printed"] = values["printed"] or {}
    return msgspec.convert(values, PublishedRow)
